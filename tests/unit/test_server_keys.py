"""A server's change to another key: what a hand-over says, who follows it, and what a state folder has of it."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
from heard import HeardByServer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from refusals import raises, refused
from victim import Victim

from fedspzo.broker.rounds.aggregate import ClosedRound
from fedspzo.broker.server.backup import back_up
from fedspzo.broker.server.devices import Member
from fedspzo.broker.server.key_change import change_key
from fedspzo.broker.server.recovery import FolderSource, Repaired, open_stopped, repair
from fedspzo.broker.server.signing_key import KEY, NEXT
from fedspzo.broker.server.state_folder import DATABASE, pin_bundle, read_journal
from fedspzo.broker.server.store import ServerStore
from fedspzo.cli import main
from fedspzo.device_runtime.data.store import DataStore
from fedspzo.device_runtime.files import move_into_place
from fedspzo.device_runtime.link.events import Connected
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.protocol.codec import encode, fingerprint
from fedspzo.device_runtime.protocol.entry import Contribution, Entry
from fedspzo.device_runtime.protocol.glance import glance
from fedspzo.device_runtime.protocol.messages import CAPABILITIES, Ack, HandOver, Hello, Result
from fedspzo.device_runtime.protocol.plan import Plan
from fedspzo.device_runtime.protocol.server_keys import ServerKeys
from fedspzo.device_runtime.protocol.signing import Scope, Signer, check, read_pin, split
from fedspzo.device_runtime.replica.chain import EMPTY
from fedspzo.device_runtime.replica.state import HAND_OVERS, DeviceState

IDENTITY, JOB = bytes(32), "default"
SCOPE = Scope(JOB, IDENTITY)


@pytest.fixture(scope="module")
def signers(tmp_path_factory: pytest.TempPathFactory) -> list[Signer]:
    folder = tmp_path_factory.mktemp("keys")
    return [Signer(folder / str(number)) for number in range(6)]


def hand_over(before: Signer, after: Signer, round: int, scope: Scope = SCOPE) -> bytes:
    return before.sign(encode(HandOver(before.public, after.public, round)), scope)


def chain(signers: Sequence[Signer], rounds: Sequence[int]) -> list[bytes]:
    return [hand_over(signers[i], signers[i + 1], round) for i, round in enumerate(rounds)]


def make_entry(plan: Plan) -> Entry:
    return Entry(plan, (Contribution("", 1.0, (0.5,) * plan.scalars),))


def close(folder: Path, make_plan: Callable[..., Plan], up_to: int, bundle: bytes = IDENTITY) -> None:
    """What a server does with a folder: it settles there, and closes rounds."""
    with ServerStore(folder, bundle) as store:
        store.settle()
        for round in range(store.journal.last_round + 1, up_to + 1):
            entry = make_entry(make_plan(round=round))
            store.close_round(entry, ClosedRound(round, 1.0, ("a",), 1.0, 0.1))


def test_vectors() -> None:
    message = HandOver(bytes(32), b"\x01" * 32, 7)
    assert encode(message).hex() == "8501175820" + "00" * 32 + "5820" + "01" * 32 + "07"


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(0, 6), max_size=5), st.data())
def test_who_knows_the_first_key_follows_to_the_newest(
    signers: list[Signer], make_plan: Callable[..., Plan], steps: list[int], data: st.DataObject
) -> None:
    """In order only; each entry is believed by the key of its round, and all else by the newest."""
    rounds = [sum(steps[: i + 1]) for i in range(len(steps))]
    signed = chain(signers, rounds)
    keys = ServerKeys(signers[0].public, IDENTITY, JOB)
    for i, statement in enumerate(signed):
        for other in {*signed} - {statement}:  # those to come, and those that were there
            with raises("message.wrong-signature"):
                keys.follow(other)
        keys.follow(statement)
        assert keys.newest == signers[i + 1].public
    assert keys.hand_overs == tuple(signed)
    round, signer = data.draw(st.integers(1, 40)), data.draw(st.sampled_from(signers))
    right = signers[sum(first <= round for first in rounds)]
    entry = signer.sign(encode(make_entry(make_plan(round=round))), replace(SCOPE, head=EMPTY))
    if signer is right:
        keys.check_entry(entry, EMPTY)
    else:
        with raises("message.wrong-signature"):
            keys.check_entry(entry, EMPTY)
    keys.check(signers[len(steps)].sign(encode(Hello()), SCOPE))
    if steps:
        with raises("message.wrong-signature"):
            keys.check(signers[0].sign(encode(Hello()), SCOPE))


def test_what_does_not_hand_over_is_refused(signers: list[Signer]) -> None:
    first, second, third = signers[:3]
    keys = ServerKeys(first.public, IDENTITY, JOB)
    for scope in (replace(SCOPE, job="other"), replace(SCOPE, bundle=b"x" * 32), replace(SCOPE, device="a")):
        with raises("message.wrong-signature"):
            keys.follow(hand_over(first, second, 3, scope))
    with raises("message.wrong-signature"):
        keys.follow(hand_over(third, second, 3))
    wrong = (
        HandOver(third.public, second.public, 3),
        HandOver(first.public, first.public, 3),
        HandOver(first.public, b"short", 3),
        Hello(),
    )
    for message in wrong:
        with raises("message.hand-over"):
            keys.follow(first.sign(encode(message), SCOPE))
    keys.follow(hand_over(first, second, 3))
    for again in (hand_over(second, first, 5), hand_over(second, third, 2)):  # to a former key, and back in the journal
        with raises("message.hand-over"):
            keys.follow(again)
    assert (keys.newest, len(keys.hand_overs)) == (second.public, 1)


def test_a_device_follows_keeps_and_refuses(pinned: Bundle, tmp_path: Path, store: DataStore) -> None:
    """What it follows is on its disk first, and outlives a restart and ``--afresh``; damage is sent again."""
    victim = Victim(pinned, tmp_path, store)
    first, second, third = victim.server, Signer(tmp_path / "2"), Signer(tmp_path / "3")
    scope = Scope(JOB, pinned.identity)
    one, two = hand_over(first, second, 1, scope), hand_over(second, third, 1, scope)
    stolen = hand_over(first, Signer(tmp_path / "thief"), 1, scope)

    def known(device: Victim) -> int:
        assert device.agent._keys.hand_overs == device.state.hand_overs()
        return len(device.state.hand_overs())

    victim.hear(two)
    assert known(victim) == 0
    victim.hear(one)
    for wrong in (one, stolen, hand_over(first, third, 1, replace(scope, job="other"))):
        victim.hear(wrong)
        assert known(victim) == 1
    victim.hear(two)
    assert known(victim) == 2
    victim.state.close()
    DeviceState(tmp_path / "device", pinned, "a", afresh=True).close()
    again = Victim(pinned, tmp_path, store)
    assert known(again) == 2
    again.hear(stolen)
    assert again.agent._keys.newest == third.public
    again.state.close()
    for damage in (b"", b"\xff", b"\x81\x01"):
        (tmp_path / "device" / HAND_OVERS).write_bytes(damage)
        damaged = Victim(pinned, tmp_path, store)
        assert known(damaged) == 0
        damaged.state.close()


def test_a_server_says_which_key_is_its_own_before_all_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """To a device that has not followed; and it tells its operator of one that has followed further than it came."""
    folder = tmp_path / "server-robust"
    ServerStore(folder, IDENTITY).close()
    change_key(folder)
    heard = HeardByServer(tmp_path, "robust", Random(0))
    sent: list[bytes] = []
    monkeypatch.setattr(heard.server._link, "publish", lambda topic, signed, **more: sent.append(signed))
    result = encode(Result(1, fingerprint(heard.plan), (1.0,) * heard.plan.scalars, 1.0, 4, 0.1, b""))

    def kinds(payload: bytes) -> list[type]:
        sent.clear()
        heard._hear("d0", payload)
        return [glance(split(signed))[0] for signed in sent]

    sync = heard._sync("d0")
    for known, answers in ((0, [HandOver, Plan]), (1, [Plan])):
        assert kinds(encode(replace(sync, hand_overs=known))) == answers
        assert kinds(result) == [*answers[:-1], Ack]
        heard.server._progress.round.results.clear()  # type: ignore[union-attr]
    check(sent[-1], replace(SCOPE, device="d0"), heard.store.signer.public)
    heard.server.turn([Connected()])
    assert [glance(split(signed))[0] for signed in sent[-2:]] == [HandOver, Hello]
    assert "restored" not in caplog.text
    kinds(encode(replace(sync, hand_overs=2)))
    assert "'d0' says that this server has changed its key since" in caplog.text
    heard.close()


def test_a_changed_server_has_its_journal_and_a_backup_as_before(
    make_plan: Callable[..., Plan], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, backup = tmp_path / "server", tmp_path / "backup"
    close(folder, make_plan, 3)
    pin_bundle(tmp_path, folder)
    old = (folder / KEY).read_bytes()
    with ServerStore(folder, IDENTITY):
        assert "a server runs on" in refused(capsys, "server rotate", folder)
    assert main(["server", "rotate", str(folder)]) == 0
    said = capsys.readouterr().out
    close(folder, make_plan, 5)
    assert (folder / KEY).read_bytes() != old
    assert not (folder / NEXT).exists()
    change_key(folder)
    close(folder, make_plan, 6)
    with ServerStore(folder, IDENTITY) as opened:
        keys = opened.keys
        assert keys.at(4).hex() in said
        assert len({keys.at(round) for round in (3, 4, 5)}) == 2
        assert [keys.at(round) == keys.newest for round in (3, 5, 6)] == [False, False, True]
        assert opened.signer.public == keys.newest
        assert read_pin(tmp_path) == keys.at(1)
    pin_bundle(tmp_path, folder)  # the bundle's key stays the first
    assert len(read_journal(folder)) == 6
    assert back_up(folder, backup) == 6
    (folder / KEY).write_bytes(old)
    with raises("state.other-key", "after the change"):
        ServerStore(folder, IDENTITY)
    with raises("state.other-key"):
        back_up(folder, tmp_path / "other")
    shutil.copy(backup / KEY, folder / KEY)
    close(folder, make_plan, 7)
    with raises("server.key-change-in-doubt", "restored or copied"):
        change_key(backup)
    close(backup, make_plan, 7)
    change_key(backup)
    change(folder, "UPDATE hand_overs SET signed = zeroblob(200) WHERE number = 1")
    with raises("state.hand-over-damaged", "backup"):
        ServerStore(folder, IDENTITY)


def test_a_change_that_is_killed_counts_or_has_not_happened(make_plan: Callable[..., Plan], tmp_path: Path) -> None:
    folder = tmp_path / "server"
    close(folder, make_plan, 2)
    Signer(folder / NEXT)  # killed before its hand-over was on disk
    close(folder, make_plan, 3)
    old = (folder / KEY).read_bytes()
    change_key(folder)
    shutil.copy(folder / KEY, folder / NEXT)  # killed right after it was
    (folder / KEY).write_bytes(old)
    back_up(folder, tmp_path / "backup")
    assert (tmp_path / "backup" / KEY).read_bytes() == (folder / NEXT).read_bytes() != old
    assert len(read_journal(folder)) == 3
    close(folder, make_plan, 4)
    assert not (folder / NEXT).exists()
    assert (folder / KEY).read_bytes() != old


@pytest.mark.parametrize(("moves", "rounds"), [(0, 2), (1, 3)])
def test_a_backup_that_is_killed_after_a_change_leaves_the_older_one_or_the_new(
    make_plan: Callable[..., Plan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moves: int, rounds: int
) -> None:
    """Killed before its file has its name, or between that and its key."""
    folder, backup = tmp_path / "server", tmp_path / "backup"
    close(folder, make_plan, 2)
    back_up(folder, backup)
    change_key(folder)
    close(folder, make_plan, 3)
    left = [move_into_place] * moves

    def move(partial: Path, path: Path) -> None:
        if not left:
            raise KeyboardInterrupt
        left.pop()(partial, path)

    with monkeypatch.context() as killed:
        killed.setattr("fedspzo.broker.server.backup.move_into_place", move)
        with pytest.raises(KeyboardInterrupt):
            back_up(folder, backup)
    restored = shutil.copytree(backup, tmp_path / "restored")
    with ServerStore(restored, IDENTITY) as store:
        assert store.journal.last_round == rounds
    assert back_up(folder, backup) == 3
    assert (backup / KEY).read_bytes() == (folder / KEY).read_bytes()
    assert not (backup / NEXT).exists()


def test_devices_that_could_not_follow_are_named(make_plan: Callable[..., Plan], tmp_path: Path) -> None:
    close(tmp_path, make_plan, 1)
    able, old = frozenset(CAPABILITIES), frozenset({"bound"})
    with ServerStore(tmp_path, IDENTITY) as store:
        store.save_members([Member("new", b"1" * 32, can=able), Member("old", b"2" * 32, can=old)])
        store.save_members([Member(f"older-{number}", b"%d" % number * 32) for number in range(7)])
    with raises("server.key-change-too-early", "old, older-0, older-1", "3 others", "fedspzo forget"):
        change_key(tmp_path)
    change(tmp_path, "INSERT INTO blocked SELECT name, key FROM devices WHERE name != 'new'")
    change_key(tmp_path)


def test_a_key_that_is_missing_is_made_for_a_new_server_alone(make_plan: Callable[..., Plan], tmp_path: Path) -> None:
    """Another one would have the whole journal look damaged."""
    folder, bundle = tmp_path / "server", tmp_path / "bundle"
    bundle.mkdir()
    ServerStore(folder, IDENTITY).close()
    for _ in range(2):  # a job that has begun, then one with a round
        key = (folder / KEY).read_bytes()
        (folder / KEY).unlink()
        for act in (
            lambda: ServerStore(folder, IDENTITY),
            lambda: pin_bundle(bundle, folder),
            lambda: back_up(folder, tmp_path / "backup"),
        ):
            with raises("state.key-missing", folder / KEY, "backup"):
                act()
        assert not (folder / KEY).exists()
        (folder / KEY).write_bytes(key)
        close(folder, make_plan, 1)


def test_a_key_that_has_signed_nothing_in_a_journal_repairs_no_signature(
    make_plan: Callable[..., Plan], tmp_path: Path
) -> None:
    folder, backup = tmp_path / "server", tmp_path / "backup"
    close(folder, make_plan, 2)
    back_up(folder, backup)
    key = (folder / KEY).read_bytes()
    (folder / KEY).write_bytes(bytes(range(32)))
    with raises("journal.other-key", KEY, "backup"), open_stopped(folder) as own:
        list(repair(own, []))
    (folder / KEY).write_bytes(key)
    assert len(read_journal(folder)) == 2
    change(folder, "UPDATE journal SET signature = zeroblob(64)")
    with raises("journal.other-key"), open_stopped(folder) as own:
        list(repair(own, []))
    source = FolderSource(backup)
    with open_stopped(folder) as own:  # a copy says whose key it is
        assert list(repair(own, [source])) == [Repaired(1, "signature", source.name), Repaired(2, "signature", "")]


def test_a_signature_by_an_earlier_key_is_repaired_from_a_copy(make_plan: Callable[..., Plan], tmp_path: Path) -> None:
    folder, backup = tmp_path / "server", tmp_path / "backup"
    close(folder, make_plan, 3)
    change_key(folder)
    close(folder, make_plan, 5)
    back_up(folder, backup)
    for round in (2, 5):
        change(folder, "UPDATE journal SET signature = zeroblob(64) WHERE round = ?", round)
    with raises("journal.no-good-copy", "round 2"), open_stopped(folder) as own:
        list(repair(own, []))
    source = FolderSource(backup)
    with open_stopped(folder) as own:
        assert list(repair(own, [source])) == [
            Repaired(2, "signature", source.name),
            Repaired(5, "signature", ""),
        ]
    assert len(read_journal(folder)) == 5


def change(server: Path, statement: str, *values: object) -> None:
    with closing(sqlite3.connect(server / DATABASE, isolation_level=None)) as connection:
        connection.execute(statement, values)
