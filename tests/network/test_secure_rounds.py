"""Rounds whose results are masked, over a broker: the server learns sums, which are those of the plain integers."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from federation import broker
from patience import PATIENCE_S, wait_until
from refusals import raises
from test_server import copy_bundle, make_job
from victim import DEVICE, Victim

from fedspzo.broker.mqtt.embedded import EmbeddedBroker
from fedspzo.broker.privacy.accounting import Spent
from fedspzo.broker.rounds.aggregate import close_round
from fedspzo.broker.rounds.groups import close_sums, try_again
from fedspzo.broker.rounds.job import plan_round
from fedspzo.broker.server.backup import back_up
from fedspzo.broker.server.server import Server
from fedspzo.broker.server.state_folder import pin_bundle, read_history, read_journal
from fedspzo.device_runtime.data.store import DataStore
from fedspzo.device_runtime.device.agent import Agent
from fedspzo.device_runtime.device.device import Device as DeviceProgram
from fedspzo.device_runtime.device.events import Acknowledged, Event
from fedspzo.device_runtime.device.masking import Masker
from fedspzo.device_runtime.energy.book import NoBook
from fedspzo.device_runtime.engines.protocol import create_engine
from fedspzo.device_runtime.errors import DataError
from fedspzo.device_runtime.link.access import Access
from fedspzo.device_runtime.link.events import Connected
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.model.manifest import MANIFEST
from fedspzo.device_runtime.privacy.budget import epsilon
from fedspzo.device_runtime.privacy.masks import PSEUDONYM_BYTES, seed_attempt, unmask
from fedspzo.device_runtime.privacy.words import add_up, pack
from fedspzo.device_runtime.protocol.codec import fingerprint
from fedspzo.device_runtime.protocol.entry import Entry
from fedspzo.device_runtime.protocol.masked import Group, Inquiry, Masked, Partner, Partners, Ready
from fedspzo.device_runtime.protocol.messages import Decline, Energy, Message, Report, Result, Sync
from fedspzo.device_runtime.protocol.plan import Plan
from fedspzo.device_runtime.protocol.signing import KEY_BYTES
from fedspzo.device_runtime.replica.state import DeviceState

__all__ = ["broker"]


class Device:
    """An agent on a thread of its own.

    Attributes:
        measured: round → its last result there that was acknowledged.
    """

    def __init__(self, url: str, bundle: Bundle, folder: Path, store: DataStore, least: str = "robust") -> None:
        self.measured: dict[int, Result] = {}
        self.state = DeviceState(folder, bundle, folder.name)
        self.agent = Agent(
            Access(url), "default", create_engine("litert"), self.state, lambda: store, self._note, least=least
        )
        self.thread = threading.Thread(target=self.agent.run, daemon=True)

    def start(self) -> None:
        self.agent.connect()
        self.thread.start()

    def _note(self, event: Event) -> None:
        if isinstance(event, Acknowledged):
            self.measured[event.result.round] = event.result

    def digest(self) -> bytes:
        self.thread.join(PATIENCE_S)
        assert not self.thread.is_alive()
        return self.state.replica.digest()


def check_sums(entry: Entry, counted: Sequence[Device]) -> None:
    """The journal has sums, of which its scalars are made, and they are those of the plain integers of the devices."""
    assert entry == close_sums(entry.plan, entry.sums, close_round)
    plain = np.sum([pack(entry.plan, device.measured[entry.round]) for device in counted], axis=0)
    total = np.sum([np.frombuffer(each.words, "<i4").astype(np.int64) for each in entry.sums], axis=0)
    assert total.tolist() == plain.tolist()
    assert sum(each.devices for each in entry.sums) == len(counted)


@pytest.mark.parametrize(("mode", "cohort"), [("groups", 12), ("secure", 4)])
def test_the_sums_of_a_job_are_those_of_the_plain_integers(
    bundle: Bundle, broker: EmbeddedBroker, store: DataStore, tmp_path: Path, mode: str, cohort: int
) -> None:
    own = copy_bundle(bundle, tmp_path / "bundle")
    job = replace(make_job(rounds=2, cohort=cohort), mode=mode)
    with Server(own, job, Access(broker.url), tmp_path / "server", devices=cohort, serve_after=0) as server:
        devices = [Device(broker.url, own, tmp_path / f"device-{n}", store, mode) for n in range(cohort)]
        for device in devices:
            device.start()
        result = server.wait(PATIENCE_S)
    assert result is not None
    assert {device.digest() for device in devices} == {result.digest}
    entries = read_journal(tmp_path / "server")
    assert [entry.plan.mode for entry in entries] == [mode] * 2
    for entry in entries:
        check_sums(entry, devices)


def test_a_group_without_a_member_is_left_out_and_the_rest_counts(
    bundle: Bundle, broker: EmbeddedBroker, store: DataStore, tmp_path: Path
) -> None:
    """Of 12 devices one goes before it is ready, and one when it was put into a group."""
    own = copy_bundle(bundle, tmp_path / "bundle")
    job = replace(make_job(rounds=2, cohort=12, deadline=6.0), quorum=4)

    def silent(device: Device) -> Callable[..., None]:
        return lambda *message: device.agent.stop() if message or device.agent._plan else None

    with Server(own, job, Access(broker.url), tmp_path / "server", devices=12, serve_after=0) as server:
        devices = {f"device-{n}": Device(broker.url, own, tmp_path / f"device-{n}", store) for n in range(12)}
        devices["device-3"].agent._answer_plan = silent(devices["device-3"])  # type: ignore[method-assign]
        devices["device-7"].agent._join = silent(devices["device-7"])  # type: ignore[method-assign]
        for device in devices.values():
            device.start()
        result = server.wait(PATIENCE_S)
    assert result is not None
    first = read_history(tmp_path / "server")[0].devices
    assert not {"device-3", "device-7"} & set(first)
    assert 4 <= len(first) <= 7, "of two groups of 5 or 6, that without the device that went"
    for closed, entry in zip(read_history(tmp_path / "server"), read_journal(tmp_path / "server"), strict=True):
        check_sums(entry, [devices[name] for name in closed.devices])
        assert 4 <= len(closed.devices) <= 10


def test_attempts_do_not_go_beyond_the_privacy_budget(
    bundle: Bundle, broker: EmbeddedBroker, store: DataStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One of four devices goes when it was put into a group of the last round that the budget has room for."""
    own = copy_bundle(bundle, tmp_path / "bundle")
    job = replace(make_job(rounds=2, cohort=4, deadline=3.0), mode="secure", quorum=4, privacy="device")
    first = iter([True])

    def leave(device: Device) -> Callable[..., None]:
        join = device.agent._join
        return lambda group: device.agent.stop() if group.round == 2 and next(first, False) else join(group)

    with Server(own, job, Access(broker.url), tmp_path / "server", devices=5, serve_after=0) as server:
        devices = [Device(broker.url, own, tmp_path / f"device-{n}", store) for n in range(5)]
        for device in devices:
            device.agent._join = leave(device)  # type: ignore[method-assign]
            device.start()
        result = server.wait(PATIENCE_S)
    assert result is not None
    spent = Spent(job, read_journal(tmp_path / "server"))
    assert epsilon(spent.rho, job.delta) <= job.privacy_budget
    assert [entry.round for entry in read_journal(tmp_path / "server")] == [1]
    assert "round 2 stays open: the privacy budget has no room for another attempt" in caplog.text
    assert "the job ends after round 1 of 2: its privacy budget, ε = 8 at δ = 1e-05, has no room" in caplog.text


def test_a_server_that_lost_attempts_of_its_round_tries_another_after_them(
    bundle: Bundle, broker: EmbeddedBroker, store: DataStore, tmp_path: Path
) -> None:
    """Its backup is of before there were groups, and one device's masked results never come."""
    own, state, backup = copy_bundle(bundle, tmp_path / "bundle"), tmp_path / "server", tmp_path / "backup"
    job = replace(make_job(rounds=2, cohort=4), mode="secure", quorum=4)
    pin_bundle(own.folder, state)
    devices = [Device(broker.url, own, tmp_path / f"device-{n}", store, "secure") for n in range(4)]
    answer, send, lost = devices[0].agent._answer, devices[0].agent._send_masked, threading.Event()

    def answer_after_a_backup(plan: Plan) -> Message:
        if not backup.exists():
            back_up(state, backup)
        return answer(plan)

    def lose(masked: Masked | Inquiry | None) -> None:
        if lost.is_set() or not isinstance(masked, Masked):
            send(masked)

    devices[0].agent._answer = answer_after_a_backup  # type: ignore[assignment, method-assign]
    devices[0].agent._send_masked = lose  # type: ignore[method-assign]

    with Server(own, job, Access(broker.url), state, devices=4):
        for device in devices:
            device.start()
        wait_until(lambda: all(device.agent._masker._sent.masked.attempt for device in devices))
    lost.set()
    with Server(own, job, Access(broker.url), backup, devices=4, serve_after=0) as server:
        result = server.wait(PATIENCE_S)
    assert result is not None
    assert {device.digest() for device in devices} == {result.digest}
    first, second = read_journal(backup)
    assert first.plan.masking[0].attempt == 2, "the one that was lost counts"
    assert second.plan.masking[0].attempt == 1
    check_sums(first, devices)


class Member:
    """A device's masks, without a network."""

    def __init__(self, bundle: Bundle, folder: Path, least: str = "robust") -> None:
        self.state = DeviceState(folder, bundle, folder.name)
        self.masker = Masker("default", self.state, least)

    @property
    def card(self) -> Partner:
        return self.masker._pairs.card

    @property
    def name(self) -> bytes:
        return self.masker._pairs.own


@pytest.fixture
def members(pinned: Bundle, tmp_path: Path) -> list[Member]:
    return [Member(pinned, tmp_path / f"member-{n}") for n in range(5)]


@pytest.fixture
def plan(pinned: Bundle) -> Plan:
    job = replace(make_job(cohort=12), mode="groups").with_blocks(make_job().blocks)
    return plan_round(job, 1)


def make_result(plan: Plan, size: float = 1.0) -> Result:
    return Result(plan.round, fingerprint(plan), (size,) * plan.scalars, 0.5, 4, 0.25, b"")


def make_group(plan: Plan, members: Sequence[Member]) -> Group:
    return Group(plan.round, fingerprint(plan), tuple(sorted(member.name for member in members)))


def join(member: Member, plan: Plan, group: Group, known: Sequence[Member], size: float = 1.0) -> Masked:
    """Through all steps, as with a server that sends keys when it is asked."""
    assert member.masker.refusal(plan) == ""
    member.masker.hold(plan, make_result(plan, size))
    answer = member.masker.join(group)
    if isinstance(answer, Inquiry):
        asked = [other.card for other in known if other.name in answer.members]
        answer = member.masker.learn(Partners(tuple(asked)))
    assert isinstance(answer, Masked)
    return answer


def test_a_device_masks_one_result_for_a_plan_and_sends_the_same_bytes_after_a_kill(
    members: list[Member], pinned: Bundle, plan: Plan, tmp_path: Path
) -> None:
    group = make_group(plan, members[:4])
    sent = [join(member, plan, group, members, n) for n, member in enumerate(members[:4])]
    summed = unmask([np.frombuffer(each.words, "<u4") for each in sent])
    plain = [pack(plan, make_result(plan, n)) for n in range(4)]
    assert add_up(summed, 4) == add_up(np.sum(plain, axis=0), 4)
    first = members[0]
    first.state.close()
    first.masker = Masker("default", DeviceState(tmp_path / "member-0", pinned, afresh=True), "robust")
    assert first.masker.known(plan) == sent[0]
    first.masker.hold(plan, make_result(plan, 77.0))  # another measurement
    assert first.masker.join(group) == sent[0]
    with raises("group.second", "nothing is sent"):
        first.masker.join(make_group(plan, members))


def test_members_who_are_told_other_groups_send_nothing_that_adds_up(members: list[Member], plan: Plan) -> None:
    honest, other = make_group(plan, members[:4]), make_group(plan, members)
    sent = [join(member, plan, other if n == 2 else honest, members) for n, member in enumerate(members[:4])]
    summed = unmask([np.frombuffer(each.words, "<u4") for each in sent])
    plain = np.sum([pack(plan, make_result(plan))] * 4, axis=0)
    assert not (summed == plain).any()


def test_a_device_refuses_groups_plans_and_attempts_that_would_tell_more(members: list[Member], plan: Plan) -> None:
    device, *others = members
    device.masker.hold(plan, make_result(plan))
    whole = make_group(plan, members[:4])
    for names, kind in (
        (whole.members[:3], "group.members" if device.name not in whole.members[:3] else "group.size"),
        (tuple(reversed(whole.members)), "group.members"),
        ((*whole.members, whole.members[-1]), "group.members"),
        (tuple(sorted(other.name for other in others)), "group.members"),
    ):
        with raises(kind):
            device.masker.join(replace(whole, members=names))
    assert device.masker.join(replace(whole, plan=b"another.")) is None
    join(device, plan, whole, members)
    again = try_again(plan, seed=1)
    assert device.masker.refusal(again) == ""
    upper = 1 << 40
    for wrong in (
        replace(plan, base_seed=plan.base_seed ^ upper),  # another result in the same attempt
        replace(again, masking=(replace(again.masking[0], attempt=65),), base_seed=seed_attempt(upper, plan.round, 65)),
    ):
        assert "does not follow" in device.masker.refusal(wrong)
    for wrong in (
        replace(again, base_seed=plan.base_seed),  # the same directions in another attempt
        replace(plan, round=2),  # and in another round, from whose sum a device could be left out
        replace(again, seed_pool=64),
    ):
        assert "tell of one device" in device.masker.refusal(wrong)
    first = device.masker.last(plan)
    assert first is not None
    assert first.attempt == 1
    assert device.masker.last(again) is None
    last = join(device, again, make_group(again, members[:4]), members)
    assert "does not follow" in device.masker.refusal(plan)
    assert device.masker.last(plan) == last, "what a server that has lost it knew before"
    later = replace(plan, round=9, base_seed=seed_attempt(5, 9, plan.masking[0].attempt))
    join(device, later, make_group(later, members), members)
    assert "another name" in device.masker.refusal(again)


def test_a_device_answers_an_attempt_that_it_has_left_behind_with_what_it_sent_last(
    members: list[Member], store: DataStore, plan: Plan
) -> None:
    later = try_again(plan, seed=1, after=3)
    sent = join(members[0], later, make_group(later, members[:4]), members)
    agent = Agent(Access("mqtt://127.0.0.1"), "default", create_engine("litert"), members[0].state, lambda: store)
    for attempt in (plan, try_again(plan, seed=1), later, replace(later, base_seed=1)):
        assert agent._answer(attempt) == sent
    assert sent.attempt == 4


def test_a_device_that_connects_again_sends_its_keys_again(
    members: list[Member], store: DataStore, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server may have lost them meanwhile; its greeting has not come to a device that was away."""
    device = members[0]
    agent = Agent(Access("mqtt://127.0.0.1"), "default", create_engine("litert"), device.state, lambda: store)
    monkeypatch.setattr(agent._outbox, "send", lambda message: None)
    for _ in range(2):
        assert agent._masker.hold(plan, make_result(plan)).partner == (device.card,)
        assert isinstance(agent._masker.join(make_group(plan, members[:4])), Inquiry)
        assert agent._masker.hold(plan, make_result(plan)).partner == ()
        agent.turn(Connected())


def test_keys_of_pairs_are_on_the_disk_before_they_are_used(
    members: list[Member], monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs, real = members[0].masker._pairs, os.fsync
    synced: dict[int, int] = {}

    def fsync(descriptor: int) -> None:
        synced[os.fstat(descriptor).st_ino] = os.fstat(descriptor).st_size
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    for known in (1, 2):
        pairs.learn([members[known].card])
        assert synced[pairs._file.stat().st_ino] == pairs._file.stat().st_size > 0
        assert pairs._file.parent.stat().st_ino in synced


def test_keys_that_nobody_asked_for_have_an_end(
    members: list[Member], plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that go are agreed on again when a group needs them."""
    monkeypatch.setattr("fedspzo.device_runtime.device.pairs.MOST_PAIRS", 3)
    device, *others = members
    for other in others:
        device.masker.learn(Partners((other.card,)))
        assert device.masker._pairs._file.stat().st_size <= 3 * (PSEUDONYM_BYTES + KEY_BYTES)
    assert len(others) > 3
    join(device, plan, make_group(plan, members[:4]), members)
    assert Masker("default", device.state)._pairs.unknown([member.name for member in members[:4]]) == []


def test_keys_that_their_owner_has_not_signed_for_this_job_are_not_used(
    members: list[Member], pinned: Bundle, plan: Plan
) -> None:
    device, other, *rest = members
    group = make_group(plan, members[:4])
    device.masker.hold(plan, make_result(plan))
    assert isinstance(device.masker.join(group), Inquiry)
    stranger = Masker("other", other.state)._pairs.card
    forged = replace(other.card, agreement=rest[2].card.agreement)
    for card in (stranger, forged, replace(other.card, agreement=bytes(32)), Partner(b"", b"", b"")):
        device.masker.learn(Partners((card,)))
        assert other.name in device.masker._pairs.unknown(group.members)
    assert isinstance(device.masker.learn(Partners(tuple(each.card for each in members))), Masked)
    assert device.masker._pairs.unknown(group.members) == []
    assert Masker("default", device.state)._pairs.unknown(group.members) == [], "kept: agreed on once"


def test_a_device_takes_part_in_no_weaker_mode_than_it_says(pinned: Bundle, store: DataStore, tmp_path: Path) -> None:
    device = Device("mqtt://127.0.0.1", pinned, tmp_path / "device", store, "groups")
    answer = device.agent._answer(plan_round(make_job(), 1))
    assert answer == Decline(1, "it takes part in mode groups or a stricter one, and the job's is robust", False)
    assert device.agent._masker.secret


def test_a_device_says_how_many_examples_it_has_once_results_are_not_masked(
    victim: Victim, store: DataStore, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[Message] = []
    monkeypatch.setattr(victim.agent._outbox, "send", said.append)

    def hear(asked: Plan) -> list[int]:
        """The numbers that it says then."""
        said.clear()
        victim.hear(victim.sign(asked, DEVICE, victim.state.replica.head))
        victim.agent._answer_plan()
        assert isinstance(said[0], Ready if asked.masking else Result)
        return [message.examples for message in said if isinstance(message, Sync)]

    victim.agent.turn(Connected())
    assert [message.examples for message in said if isinstance(message, Sync)] == [0]
    assert hear(plan) == []
    robust = plan_round(make_job(), 1)
    assert hear(robust) == [len(store)]
    assert hear(replace(robust, base_seed=5)) == [], "once"
    assert hear(try_again(plan, seed=1)) == []
    said.clear()
    victim.agent.turn(Connected())
    assert [message.examples for message in said if isinstance(message, Sync)] == [0]


def test_a_device_that_cannot_mask_a_result_does_not_say_why(
    pinned: Bundle, store: DataStore, tmp_path: Path, plan: Plan
) -> None:
    """Nor one that cannot add noise to it."""
    device = Device("mqtt://127.0.0.1", pinned, tmp_path / "device", store)

    def unreadable() -> DataStore:
        raise DataError("data.unreadable", "the line 'I feel unwell' has no label")

    device.agent._measurer._examples = unreadable
    for secret in (plan, plan_round(replace(make_job(cohort=4), privacy="device"), 1)):
        assert device.agent._answer(secret) == Decline(1, "its own log says why", passing=False)


class Account(NoBook):
    """Of a device whose work took ten joules."""

    def total(self) -> tuple[Energy, ...]:
        return (Energy(10.0, 1.0, False),)


def test_what_all_its_work_took_tells_of_single_results_in_the_open_alone(
    victim: Victim, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last report of a device: joules tell of the lengths of its texts, as words and noise hide them."""
    said: list[Message] = []
    monkeypatch.setattr(victim.agent._outbox, "send", said.append)
    victim.agent._book = Account()

    def report(*plans: Plan) -> tuple[Energy, ...]:
        victim.agent._last_round, victim.agent._measurer.open = None, True
        for asked in plans:
            victim.agent._answer(asked)
        victim.agent._finish(0)
        (last,) = (message for message in said if isinstance(message, Report))
        said.clear()
        return last.energy

    robust = plan_round(make_job(), 1)
    noisy = plan_round(replace(make_job(cohort=4), privacy="device"), 1)
    assert report() == report(robust) == Account().total()
    assert report(plan, robust) == report(robust, plan) == report(robust, noisy) == ()


def test_a_bundle_pins_the_weakest_mode_and_otherwise_has_the_identity_of_before(
    pinned: Bundle, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(pinned.folder, tmp_path / "strict"))
    assert "least" not in (folder / MANIFEST).read_text()
    replace(pinned.manifest, least="groups").write(folder)
    strict = Bundle(folder)
    assert strict.identity != pinned.identity
    assert DeviceProgram(strict, Access("mqtt://127.0.0.1"), tmp_path / "state", "x")._least == "groups"
    assert DeviceProgram(strict, Access("mqtt://127.0.0.1"), tmp_path / "state", "x", least="secure")._least == "secure"
    replace(pinned.manifest, least="all").write(folder)
    with raises("bundle.manifest-damaged", "weakest mode"):
        Bundle(folder)
