"""A broker that alters, invents, replays and reorders; floods of nonsense. Devices and server stay as they are."""

from __future__ import annotations

import contextlib
import random
import sqlite3
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import psutil
import pytest
from refusals import raises
from victim import BLOCKS, DEVICE, JOB, NOWHERE, TOPICS, Victim

from fedspzo.broker.rounds.job import Job
from fedspzo.broker.server import blocking, inbox, recovery, standing
from fedspzo.broker.server.devices import Roster
from fedspzo.broker.server.evaluation import Evaluator, Schedule
from fedspzo.broker.server.loop import Loop
from fedspzo.broker.server.outbox import Outbox
from fedspzo.broker.server.state_folder import read_history
from fedspzo.broker.server.store import ServerStore
from fedspzo.device_runtime.device import agent, catch_up
from fedspzo.device_runtime.device.events import Acknowledged
from fedspzo.device_runtime.engines.protocol import create_engine
from fedspzo.device_runtime.link.events import Received
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.privacy.partners import sign_partner
from fedspzo.device_runtime.protocol.agreement import key_agreement
from fedspzo.device_runtime.protocol.codec import decode, encode, fingerprint
from fedspzo.device_runtime.protocol.entry import Contribution, Entry
from fedspzo.device_runtime.protocol.masked import Ready
from fedspzo.device_runtime.protocol.messages import (
    ROUNDS,
    Ack,
    Decline,
    Dismissal,
    EntryBatch,
    Finish,
    Hello,
    Keep,
    Message,
    Offer,
    Presence,
    Refusal,
    Report,
    Result,
    Sync,
)
from fedspzo.device_runtime.protocol.plan import Plan
from fedspzo.device_runtime.protocol.signing import Scope, Signer, split
from fedspzo.device_runtime.replica.chain import EMPTY, chain
from fedspzo.device_runtime.replica.weights import Replica


@pytest.fixture
def entries(make_plan: Callable[..., Plan]) -> list[Entry]:
    """A journal of five rounds."""
    return [
        Entry(make_plan(round=n, base_seed=n, blocks=BLOCKS), (Contribution("", 1.0, (1.0, -2.0, 0.5, n)),))
        for n in range(1, 6)
    ]


def heads(entries: list[Entry]) -> list[bytes]:
    """Hash of the journal before each of its entries, and at its end."""
    found = [EMPTY]
    for entry in entries:
        found.append(chain(found[-1], encode(entry)))
    return found


def test_only_what_the_server_signed_for_here_and_now_is_applied(
    victim: Victim, entries: list[Entry], make_plan: Callable[..., Plan], tmp_path: Path
) -> None:
    at = heads(entries)
    first, second = (victim.sign(entry, head=head) for entry, head in zip(entries[:2], at, strict=False))
    other = Signer(tmp_path / "other.key")
    elsewhere = Entry(make_plan(base_seed=99, blocks=BLOCKS), entries[0].contributions)
    start = victim.standing
    hostile = [
        encode(entries[0]),  # not signed
        victim.sign(entries[0], head=EMPTY, signer=other),  # by another
        victim.sign(entries[0], head=EMPTY, job="another"),  # of another job
        victim.sign(entries[0], head=bytes(15) + b"x"),  # of another journal
        victim.sign(entries[0], to=DEVICE, head=EMPTY),  # not meant for all
        first[:50] + bytes([first[50] ^ 1]) + first[51:],  # altered
        first[:-1] + bytes([first[-1] ^ 1]),
        encode(elsewhere) + first[-64:],  # with another's signature
        second,  # too early
        victim.sign(EntryBatch((second, first)), to=DEVICE),  # in the wrong order
        victim.sign(EntryBatch((victim.sign(elsewhere, head=EMPTY, signer=other),)), to=DEVICE),
        victim.sign(EntryBatch((victim.sign(Ack(1, True)),)), to=DEVICE),
        victim.sign(EntryBatch((first,)), to="b"),  # for another device
    ]
    for message in hostile:
        victim.hear(message)
        victim.hear(message, TOPICS.result)
        assert victim.standing == start
    victim.hear(first, TOPICS.result)
    assert victim.standing[:2] == (1, at[1])
    after = victim.standing
    for message in (*hostile[:-5], first):  # replayed
        victim.hear(message)
        assert victim.standing == after
    victim.hear(victim.sign(EntryBatch(tuple(map(victim.sign, entries[1:], [""] * 4, at[1:]))), to=DEVICE))
    assert victim.standing[:2] == (5, at[5])


def test_an_entry_is_decoded_encoded_and_hashed_once(victim: Victim, entries: list[Entry]) -> None:
    """On its way from the broker into the journal and the weights. Decoding encodes, to see that no other form came."""
    calls: Counter[object] = Counter()

    def count(frame: FrameType, event: str, argument: object) -> None:
        calls[frame.f_code] += event == "call"

    signed = [victim.sign(entry, head=head) for entry, head in zip(entries, heads(entries), strict=False)]
    batch = victim.sign(EntryBatch(tuple(signed[1:])), to=DEVICE)
    for message, topic, once in ((signed[0], TOPICS.result, 1), (batch, TOPICS.down(DEVICE), len(signed) - 1)):
        calls.clear()
        sys.setprofile(count)
        victim.hear(message, topic)
        sys.setprofile(None)
        around = 2 * (message is batch)  # the batch itself, and the sync that follows it
        found = calls[decode.__code__], calls[encode.__code__], calls[chain.__code__]
        assert found == (once + (message is batch), once + around, once)
    assert victim.standing[0] == len(entries)


def test_only_the_servers_plans_are_answered(
    victim: Victim, entries: list[Entry], make_plan: Callable[..., Plan], tmp_path: Path
) -> None:
    at, plan = heads(entries), make_plan(blocks=BLOCKS)
    other = Signer(tmp_path / "other.key")
    good = victim.sign(plan, DEVICE, EMPTY)
    for message in (
        victim.sign(plan, DEVICE, EMPTY, signer=other),
        victim.sign(plan, "b", EMPTY),
        victim.sign(plan, DEVICE, at[1]),
        victim.sign(plan, DEVICE, EMPTY, job="another"),
        encode(replace(plan, epsilon=1.0)) + good[-64:],
    ):
        victim.hear(message)
        assert victim.agent._plan is None
    victim.hear(good)
    assert victim.agent._plan == plan
    victim.hear(victim.sign(entries[0], head=EMPTY), TOPICS.result)
    victim.agent._answer_plan()  # its round is over
    assert victim.agent._measurer.answered == 0
    victim.hear(good)  # replayed
    assert victim.agent._plan is None


def test_a_round_is_told_once_however_often_it_is_acknowledged(
    victim: Victim, make_plan: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that asks again gets the same result again, and says again that it has it."""
    told: list[object] = []
    monkeypatch.setattr(victim.agent, "_observe", told.append)
    for counted in (True, True):
        victim.hear(victim.sign(make_plan(blocks=BLOCKS), DEVICE, EMPTY))
        victim.agent._answer_plan()
        assert isinstance(victim.agent._outbox.pending, Result)
        victim.hear(victim.sign(Ack(1, counted), DEVICE))
    assert [event.counted for event in told if isinstance(event, Acknowledged)] == [True]


def test_a_plan_that_came_early_is_checked_when_its_time_comes(
    victim: Victim, entries: list[Entry], make_plan: Callable[..., Plan], tmp_path: Path
) -> None:
    at, plan = heads(entries), make_plan(round=2, blocks=BLOCKS)
    first = victim.sign(entries[0], head=EMPTY)
    for signer in (Signer(tmp_path / "other.key"), victim.server):
        victim.hear(victim.sign(plan, DEVICE, at[1], signer=signer))
        assert victim.agent._plan is None
    victim.hear(first, TOPICS.result)
    assert victim.agent._plan == plan


def test_only_the_server_can_send_a_device_away(victim: Victim, tmp_path: Path) -> None:
    other, session, key = Signer(tmp_path / "other.key"), victim.agent._outbox.session, victim.state.signer.public
    for message in (
        victim.sign(Refusal(key, session, "go"), DEVICE, signer=other),
        victim.sign(Refusal(key, session, "go"), "b"),
        victim.sign(Refusal(key, session + 1, "go"), DEVICE),  # of an earlier process
        victim.sign(Finish(0), head=bytes(15) + b"x"),
        victim.sign(Finish(0), head=EMPTY, signer=other),
        victim.sign(Hello(), signer=other),
        victim.sign(Refusal(other.public, session, "go"), DEVICE),  # meant for somebody who used its name
    ):
        victim.hear(message)
    assert not victim.agent._finished
    assert victim.agent._last_round is None
    with raises("device.refused", "'a'", "go"):
        victim.hear(victim.sign(Refusal(key, session, "go"), DEVICE))


class Host:
    """A server in the middle of a round, whose broker is the test."""

    def __init__(
        self, bundle: Bundle, folder: Path, names: Sequence[str] = ("a", "b", "evil"), **settings: Any
    ) -> None:
        self.store = ServerStore(folder / "server", bundle.identity)
        size = len(names)
        job = Job(rounds=10, cohort=size, quorum=size, deadline=600.0, seed=1, batch=4, digest_every=5, **settings)
        self.server = Loop(
            NOWHERE, JOB, job.with_blocks(BLOCKS), self.store,
            lambda report: Evaluator(
                create_engine("litert"), Replica(bundle, self.store.snapshot), None, self.store,
                Schedule(10, 20, 5), report,
            ),
            devices=size,
        )  # fmt: skip
        self.identity = bundle.identity
        self.keys = {name: Signer(folder / f"{name}.key") for name in names}
        for session, name in enumerate(self.keys, 1):
            self.hear(name, self.sync(name, session))

    def sync(self, name: str, session: int) -> Sync:
        return Sync(self.keys[name].public, session, self.identity, 0, EMPTY, 9, 1.0, True, True)

    def sign(self, name: str, payload: bytes) -> bytes:
        return self.keys[name].sign(payload, Scope(JOB, self.identity, name))

    def hear(self, name: str, *messages: Message) -> None:
        self.server.turn([Received(TOPICS.up(name), self.sign(name, encode(message))) for message in messages])

    @property
    def standing(self) -> tuple[object, ...]:
        opened = self.store.load_open_round(0.0)
        assert opened is not None
        honest = [(m.name, m.key, m.session, m.served) for m in self.store.load_members() if m.name in ("a", "b")]
        return self.store.journal.last_round, opened.plan, opened.cohort, opened.results, honest


def test_what_is_not_signed_is_not_decoded(
    victim: Victim, pinned: Bundle, entries: list[Entry], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But a Sync, which brings its key along, and is short."""
    host = Host(pinned, tmp_path)
    valid = every_kind(entries[0].plan, entries[0], host.keys["evil"].public, pinned.identity)
    seen: list[bytes] = []
    for module in (agent, catch_up, inbox, recovery, standing):
        monkeypatch.setattr(module, "decode", seen.append, raising=False)
    for payload in valid:
        if decode(payload) == Sync(host.keys["evil"].public, 3, pinned.identity, 0, EMPTY, 5, 0.5, True, True):
            payload = encode(Refusal(b"", 0, "x" * 3000)).replace(b"\x84\x01\x06", b"\x8b\x01\x05")
        for topic in (TOPICS.up("a"), TOPICS.state("a"), TOPICS.up("stranger")):
            host.server.turn([Received(topic, payload + bytes(64))])
        for topic in (TOPICS.round, TOPICS.result, TOPICS.down(DEVICE)):
            victim.hear(payload + bytes(64), topic)
    assert not seen


def test_numbers_that_a_database_cannot_hold(pinned: Bundle, entries: list[Entry], tmp_path: Path) -> None:
    host = Host(pinned, tmp_path)
    before = host.standing
    for changes in ({"round": 1 << 63}, {"examples": 1 << 63}, {"session": (1 << 64) - 1}):
        host.hear("evil", replace(host.sync("evil", 3), **changes))  # type: ignore[arg-type]
    far = replace(entries[0], plan=replace(entries[0].plan, round=(1 << 64) - 1))
    host.hear("evil", EntryBatch((host.sign("evil", encode(far)),)))
    assert host.standing == before


def test_a_device_is_told_how_many_rounds_there_are_where_it_knows_of_that(
    victim: Victim, pinned: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Message] = []
    monkeypatch.setattr(Outbox, "send", lambda outbox, device, message: told.append(message))
    host = Host(pinned, tmp_path, ("old",))
    host.hear("old", host.sync("old", 1), replace(host.sync("old", 2), can=("a word of later", ROUNDS)))
    assert [message for message in told if isinstance(message, Keep)] == [Keep(0), Keep(0, 10)]
    for message in told:
        victim.hear(victim.sign(message, DEVICE))
    assert victim.agent.rounds == 10
    victim.hear(victim.sign(Keep(1), DEVICE))
    assert victim.agent.rounds == 0, "an older server has taken over"


def test_keys_that_no_message_could_pass_on_are_not_kept(pinned: Bundle, tmp_path: Path) -> None:
    names = ("a", "b", "c", "evil")
    host = Host(pinned, tmp_path, names, mode="secure")
    opened = host.server._progress.round
    assert opened is not None
    print_of = fingerprint(opened.plan)
    host.hear("evil", Result(1, print_of, (1.0,) * opened.plan.scalars, 1.0, 4, 0.1, b""))
    assert not opened.results, "results are only summed"
    for name in names:
        agreement = key_agreement().private_key(name.encode().zfill(32)).public
        card = sign_partner(host.keys[name], agreement, JOB, host.identity, bytes(65_000 if name == "evil" else 0))
        host.hear(name, Ready(1, print_of, b"", (card,)))
    assert set(opened.answered) == {"a", "b", "c"}
    assert host.store.journal.last_round == 0


def test_one_that_declines_does_not_end_the_job(
    pinned: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    host = Host(pinned, tmp_path)
    opened = host.server._progress.round
    assert opened is not None
    answer = Result(1, fingerprint(opened.plan), (1.0,) * 4, 1.0, 4, 0.1, b"")
    host.hear("a", answer)
    host.hear("b", answer)
    host.hear("evil", Decline(1, "I would rather not", False))
    assert "device 'evil' cannot answer round 1: I would rather not" in caplog.messages, "its operator reads it at once"
    opened.deadline = 0.0
    host.server.turn([])
    assert opened.missing == ["evil"]
    host.hear("evil", answer)
    assert host.store.journal.last_round == 1


def test_a_blocked_device_is_not_heard_by_another_name_either(
    pinned: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocking, "LOOK_S", 0.0)
    host = Host(pinned, tmp_path)
    opened = host.server._progress.round
    assert opened is not None
    assert host.server.status().ready == 3
    blocking.block(tmp_path / "server", ["evil"])
    host.server.turn([])
    assert host.server.status().ready == 2
    host.keys["other"] = host.keys["evil"]
    for name in ("evil", "other"):
        host.hear(name, host.sync(name, 7), Result(1, fingerprint(opened.plan), (1.0,) * 4, 1.0, 4, 0.1, b""))
    assert (host.server.status().ready, opened.results) == (2, {})
    assert opened.hopeless(lambda name: name != "evil" or host.server._roster.left(name, 0.0))
    blocking.unblock(tmp_path / "server", ["evil"])
    host.server.turn([])
    host.hear("evil", host.sync("evil", 8))
    assert host.server.status().ready == 3


@pytest.mark.parametrize("names", [("a",), ("a", "b", "evil")])
def test_no_single_device_ends_a_job_by_declining(
    pinned: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture, names: tuple[str, ...]
) -> None:
    """Most of them do; what they say is one line, and does nothing to a terminal."""
    host = Host(pinned, tmp_path, names)
    opened = host.server._progress.round
    assert opened is not None
    for name in names:
        host.hear(name, Decline(1, "no\n\x1b[2J" + "o" * 4000, False))
    opened.deadline = 0.0
    with raises("server.all-decline", "most devices", "\\x1b[2Jooo") if names[1:] else contextlib.nullcontext():
        host.server.turn([])
    if names == ("a",):
        said = next(text for record in caplog.records if "cannot answer" in (text := record.getMessage()))
        assert said.startswith("device 'a' cannot answer round 1: no\\n\\x1b[2Jooo")
        assert len(said) < 400
        assert said.isprintable()
        host.hear("a", Result(1, fingerprint(opened.plan), (1.0,) * 4, 1.0, 4, 0.1, b""))
        assert host.store.journal.last_round == 1


def test_who_sends_far_too_much_is_sent_away_for_good(pinned: Bundle, tmp_path: Path) -> None:
    """It moves the live rounds little, and those after it do without it, as a restarted server does."""
    host = Host(pinned, tmp_path)
    for number in (1, 2, 3):
        opened = host.server._progress.round
        assert opened is not None
        assert (opened.plan.round, len(opened.cohort)) == (number, 3)
        for name, size in (("a", 1.0), ("b", 2.0), ("evil", -1e8)):
            host.hear(name, Result(number, fingerprint(opened.plan), (size,) * 4, 1.0, 4, 0.1, b""))
    assert [entry.contributions[0].scalars for entry in host.store.journal.entries()] == [
        (np.float32((1 + 2 - 2 * 2) / 3),) * 4
    ] * 3
    said = host.server.status()
    assert said.records["evil"].expelled == 3
    assert (said.ready, said.counts["devices expelled"]) == (2, 1)
    assert said.records["evil"].large == 3
    assert host.server._progress.round is None, "it takes three"
    host.hear("evil", replace(host.sync("evil", 9), round=3, head=host.store.journal.head(3)))
    assert host.server.status().ready == 2
    host.store.close()
    again = ServerStore(tmp_path / "server", pinned.identity)
    assert again.load_records()["evil"].expelled == 3


def test_who_floods_is_named_and_not_heard(pinned: Bundle, tmp_path: Path) -> None:
    """With Syncs that ask for the journal from the start, again and again; the others' round closes meanwhile."""
    host = Host(pinned, tmp_path)
    opened = host.server._progress.round
    assert opened is not None
    answer = Result(1, fingerprint(opened.plan), (1.0,) * 4, 1.0, 4, 0.1, b"")
    for name in ("a", "b", "evil"):
        host.hear(name, answer)
    assert host.store.journal.last_round == 1
    events, before = host.server._link.events, len(host.store.journal.signed(0, 9)[0])
    flood = Received(TOPICS.up("evil"), host.sign("evil", encode(host.sync("evil", 3))))
    for _ in range(200):
        events.receive(flood)
        host.server.turn(events.take(0.0, 256))
    evil, honest = (next(m for m in host.store.load_members() if m.name == name) for name in ("evil", "a"))
    assert (evil.floods, evil.cut_off, honest.floods) == (1, False, 0)
    assert evil.bytes_down < 60 * (before + 200) + 2000, "it was sent a page once a second at most"
    assert host.server.status().counts["floods"] == 1
    host.server.turn([flood] * 3)  # as taken from its lane at once
    assert "evil" not in host.server._roster.there(time.monotonic()), "no round waits for it"
    host.hear("a", replace(answer, round=2, plan=fingerprint(host.server._progress.round.plan)))  # type: ignore[union-attr]
    assert set(host.server._progress.round.results) == {"a"}  # type: ignore[union-attr]


def test_a_copied_device_is_named(pinned: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Its two processes take turns; one that is only started again does not."""
    host = Host(pinned, tmp_path)
    for session in (11, 12, 13):
        host.hear("a", host.sync("a", session))
    assert "two processes" not in caplog.text
    for session in (21, 22, 21, 22):
        host.hear("b", host.sync("b", session))
    members = {member.name: member.copies for member in host.store.load_members()}
    assert members == {"a": 0, "b": 2, "evil": 0}
    assert "device 'b' runs in two processes with one key" in caplog.text
    assert host.server.status().counts["copies seen"] == 2


def test_a_key_counts_under_one_name(
    pinned: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy of a device under another id is refused on both sides, also by a server that was started again."""
    host = Host(pinned, tmp_path)
    sent: list[tuple[str, bytes]] = []
    monkeypatch.setattr(host.server._link, "publish", lambda topic, signed, useful: sent.append((topic, signed)))
    host.keys["copy"] = host.keys["a"]
    host.hear("copy", host.sync("copy", 31))
    assert "device 'copy' is refused, for its key is that of device 'a'" in caplog.text
    (signed,) = [signed for topic, signed in sent if topic == TOPICS.down("copy")]
    refusal = decode(split(signed))
    assert isinstance(refusal, Refusal)
    assert (refusal.key, refusal.session) == (host.keys["a"].public, 31)
    assert refusal.reason.startswith("its key is that of device 'a'; start it with a state folder of its own, or ")
    assert {member.name: member.copies for member in host.store.load_members()} == {"a": 1, "b": 0, "evil": 0}
    assert host.server.status().counts["copies seen"] == 1
    roster = Roster(host.store.load_members())
    assert [roster.owner(host.keys[name].public) for name in ("copy", "b")] == ["a", "b"]
    member = roster.get("a")
    assert member is not None
    new = Signer(tmp_path / "new.key").public
    roster.rekey(member, new)
    assert [roster.owner(key) for key in (host.keys["a"].public, new)] == [None, "a"], "its old key is free again"


def test_results_beyond_the_cohort_are_late(pinned: Bundle, tmp_path: Path) -> None:
    """All in one turn: the round closes with the cohort's worth of them."""
    host = Host(pinned, tmp_path)
    opened = host.server._progress.round
    assert opened is not None
    opened.cohort = (*opened.cohort, "d")
    host.keys["d"] = Signer(tmp_path / "d.key")
    host.hear("d", host.sync("d", 4))
    answer = encode(Result(1, fingerprint(opened.plan), (1.0,) * 4, 1.0, 4, 0.1, b""))
    host.server.turn([Received(TOPICS.up(name), host.sign(name, answer)) for name in ("d", "a", "evil", "b")])
    assert read_history(tmp_path / "server")[0].devices == ("a", "d", "evil")
    assert host.server.status().counts["results late"] == 1


def test_a_snapshot_that_is_ahead_of_the_journal(pinned: Bundle, entries: list[Entry], tmp_path: Path) -> None:
    replica = Replica(pinned)
    replica.apply(entries[0])
    (tmp_path / "server" / "snapshots").mkdir(parents=True)
    replica.save_snapshot(tmp_path / "server" / "snapshots" / "00000001.safetensors")
    with raises("state.snapshot-of-another-journal", "remove it"):
        Host(pinned, tmp_path)


def test_a_folder_of_another_job_or_program(pinned: Bundle, tmp_path: Path) -> None:
    ServerStore(tmp_path / "one", pinned.identity, "a")
    with raises("state.other-job", "'a'"):
        ServerStore(tmp_path / "one", pinned.identity, "b")
    (tmp_path / "two").mkdir()
    with sqlite3.connect(tmp_path / "two" / "server.sqlite") as connection:
        connection.execute("CREATE TABLE job (id INTEGER)")
    with raises("state.not-a-servers-database"):
        ServerStore(tmp_path / "two", pinned.identity)


def every_kind(plan: Plan, entry: Entry, key: bytes, identity: bytes) -> list[bytes]:
    """The bytes of one valid message of each kind."""
    messages: list[Message] = [
        plan, entry, Result(1, fingerprint(plan), (1.0, 2.0, 3.0, 4.0), 1.0, 4, 0.1, b""), Ack(1, True),
        Refusal(key, 1, "x"), Sync(key, 3, identity, 0, EMPTY, 5, 0.5, True, True), Finish(1),
        Report(1, bytes(16), 1, 2, 3, 4), Hello(), Presence(True, 3), Decline(1, "no", False),
        EntryBatch((encode(entry) + bytes(64),)),         Offer(9, key, 9, "http://x"), Dismissal(3),
    ]  # fmt: skip
    return [encode(message) for message in messages]


def nonsense(valid: list[bytes], draw: random.Random) -> bytes:
    """Bytes that may be anything, though mostly nearly a message."""
    blob = bytearray(draw.choice(valid))
    choice = draw.random()
    if choice < 0.1:
        return draw.randbytes(draw.choice((0, 1, 63, 64, 65, 200, 3000)))
    if choice < 0.2:
        del blob[draw.randrange(len(blob)) :]
    elif choice < 0.3:
        blob[draw.randrange(len(blob)) :] = draw.choice(valid)
    for _ in range(draw.randint(1, 4)):
        if blob:
            blob[draw.randrange(len(blob))] = draw.randrange(256)
    return bytes(blob)


@pytest.mark.parametrize("count", [5_000, pytest.param(500_000, marks=pytest.mark.slow)])
def test_floods_of_nonsense(victim: Victim, pinned: Bundle, entries: list[Entry], tmp_path: Path, count: int) -> None:
    """As many messages to a server and as many to a device: mutated and random, with any signature, on every topic."""
    host = Host(pinned, tmp_path)
    host.hear("a", Result(1, fingerprint(host.server._progress.round.plan), (1.0,) * 4, 1.0, 4, 0.1, b""))  # type: ignore[union-attr]
    valid = every_kind(entries[0].plan, entries[0], host.keys["evil"].public, pinned.identity)
    draw = random.Random(count)
    server, device = host.standing, victim.standing
    process = psutil.Process()
    topics = [TOPICS.up("a"), TOPICS.up("evil"), TOPICS.state("b"), TOPICS.up("x"), TOPICS.down("a"), "", "up/a", "a//"]
    growth = []
    for start in range(0, count, 1000):
        batch: list[object] = []
        for _ in range(1000):
            payload, topic = nonsense(valid, draw), draw.choice(topics)
            signed = host.sign("evil", payload) if draw.random() < 0.2 else payload + draw.randbytes(64)
            batch.append(Received(topic, signed))
            topic = draw.choice((TOPICS.round, TOPICS.result, TOPICS.down(DEVICE)))
            payload = nonsense(valid, draw)
            victim.hear(payload + draw.randbytes(64) if draw.random() < 0.9 else host.sign("evil", payload), topic)
        host.server.turn(batch)
        if start == count // 5:
            growth.append(process.memory_info().rss)
    assert host.standing == server
    assert victim.standing == device
    assert victim.agent._plan is None
    assert process.memory_info().rss - growth[0] < 30e6
    assert sum(host.server.status().counts.values()) >= 0.9 * count
    host.hear("b", Result(1, fingerprint(server[1]), (1.0,) * 4, 1.0, 4, 0.1, b""))  # type: ignore[arg-type]
    assert set(host.store.load_open_round(0.0).results) == {"a", "b"}  # type: ignore[union-attr]
