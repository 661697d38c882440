"""One sender delays no other: lanes, budgets, and who is cut off."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from patience import PATIENCE_S

from fedspzo.broker.rounds.job import Job, plan_round
from fedspzo.broker.rounds.masked_round import begin_round
from fedspzo.broker.rounds.open_round import OpenRound
from fedspzo.broker.server import budgets as module
from fedspzo.broker.server.budgets import ASKING, FULL, GOING_BACK, REGAINED, Budgets, price
from fedspzo.broker.server.devices import Member
from fedspzo.broker.server.inbox import Heard
from fedspzo.broker.server.lanes import LANE_BYTES, LANE_MESSAGES, SHARE, Lanes
from fedspzo.broker.server.progress import Progress
from fedspzo.device_runtime.errors import BrokerError
from fedspzo.device_runtime.link.events import Connected, Received
from fedspzo.device_runtime.protocol.codec import encode, fingerprint
from fedspzo.device_runtime.protocol.masked import Inquiry, Masked, Partner, Ready
from fedspzo.device_runtime.protocol.messages import Decline, EntryBatch, Message, Presence, Report, Result, Sync
from fedspzo.device_runtime.protocol.plan import Block
from fedspzo.device_runtime.protocol.signing import SIGNATURE_BYTES
from fedspzo.device_runtime.protocol.topics import Topics

TOPICS = Topics("default")


def said(name: str, size: int = 10) -> Received:
    return Received(TOPICS.up(name), bytes(size))


def names(events: list[object]) -> list[str]:
    return [event.topic.rpartition("/")[2] for event in events if isinstance(event, Received)]


def test_a_flooder_waits_in_its_own_lane() -> None:
    lanes = Lanes()
    for _ in range(1000):
        lanes.receive(said("evil"))
    for name in ("a", "b"):
        lanes.receive(said(name))
    lanes.put(Connected())
    first = lanes.take(0.0, 256)
    assert first[0] == Connected()
    assert names(first) == ["evil", "a", "b"] + ["evil"] * (SHARE - 1)
    assert lanes.lost() == {"evil": 1000 - LANE_MESSAGES}
    assert lanes.lost() == {}
    rest = 0
    while events := lanes.take(0.0, 256):
        rest += len(events)
    assert rest == LANE_MESSAGES - SHARE
    assert lanes.empty()


def test_a_lane_holds_few_bytes_and_a_muted_sender_none() -> None:
    lanes = Lanes()
    for _ in range(20):
        lanes.receive(said("evil", 60_000))
    assert len(lanes.take(0.0, 256)) == SHARE == LANE_BYTES // 60_200
    lanes.receive(said("evil"))
    lanes.mute("evil", 1000.0)
    lanes.receive(said("evil"))
    lanes.receive(said("a"))
    assert names(lanes.take(0.0, 256)) == ["a"]
    lanes.mute("evil", 0.0)
    lanes.receive(said("evil"))
    assert names(lanes.take(0.0, 256)) == ["evil"]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 30_000)), max_size=200), st.integers(1, 20))
def test_lanes_lose_nothing_that_fits_and_keep_each_senders_order(sent: list[tuple[str, int]], most: int) -> None:
    lanes, taken = Lanes(), []
    lost: Counter[str] = Counter()
    for name, size in sent:
        lanes.receive(said(name, size))
    lost.update(lanes.lost())
    while events := lanes.take(0.0, most):
        assert len(events) <= most
        taken += events
    for name in "abcd":
        sizes = [size for other, size in sent if other == name]
        got = [len(event.payload) for event in taken if names([event]) == [name]]
        assert len(got) + lost[name] == len(sizes)
        ordered = iter(sizes)
        assert all(size in ordered for size in got), "in their order"


def progress() -> Progress:
    plan = plan_round(Job(batch=4).with_blocks((Block(5, 4, 1.0, 1e-2),)), 1)
    return Progress(Counter(), round=OpenRound(plan, ("a",), {}, 0.0))


def sync(round: int) -> Sync:
    return Sync(bytes(32), 1, bytes(32), round, bytes(16), 5, 1.0, True, True)


def test_what_brings_something_is_free() -> None:
    now, member = progress(), Member("a", bytes(32), round=5, brought_to=240)
    assert now.round is not None
    good = Result(1, fingerprint(now.round.plan), (1.0,) * 4, 1.0, 4, 0.1, b"")

    def cost(message: object, wanted: bool = False) -> float:
        return price(Heard("a", message, 1024), member, now, 900, wanted)  # type: ignore[arg-type]

    assert cost(sync(240)) == cost(sync(500)) == 0.0, "it has applied what it was sent"
    assert cost(sync(5)) == cost(sync(6)) == ASKING, "it asks again"
    assert cost(sync(4)) == GOING_BACK
    assert price(Heard("x", sync(5), 10), None, now, 900, False) == ASKING
    assert cost(good) == cost(Decline(1, "no", False)) == cost(Report(1, b"", 1, 1, 1, 1)) == 0.0
    assert cost(EntryBatch(()), wanted=True) == 0.0
    now.round.results["a"], now.round.declined["a"], now.reports["a"] = good, Decline(1, "", False), Report(*[0] * 6)  # type: ignore[arg-type]
    for message in (good, Decline(1, "no", False), Report(1, b"", 1, 1, 1, 1), EntryBatch(())):
        assert cost(message) == 2.0, "one for nothing, and one for its KiB"
    assert cost(Presence(True, 1)) == cost(None) == 1.0
    late = [cost(Result(round, bytes(8), (1.0,) * 4, 1.0, 4, 0.1, b"")) for round in (7, 7, 6, 8, 902)]
    assert late == [0.0, 2.0, 2.0, 0.0, 2.0], "a late result once a round, of a round that was"
    ready, masked = Ready(9, bytes(8), b"", ()), Masked(9, 0, bytes(16))
    assert [cost(message) for message in (ready, ready, masked, masked, ready)] == [0.0, 2.0, 0.0, 2.0, 2.0]
    assert cost(Inquiry(())) == 2.0


@pytest.mark.parametrize("signed", [True, False])
def test_who_spends_too_much_is_not_heard_and_then_cut_off(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, signed: bool
) -> None:
    muted: list[tuple[str, float]] = []
    lanes = Lanes()
    monkeypatch.setattr(lanes, "mute", lambda name, seconds: muted.append((name, seconds)))
    cut, done = [], threading.Event()

    def cut_off(names: Sequence[str]) -> Sequence[str]:
        cut.extend(names)
        done.set()
        return names

    own = Budgets(lanes, cut_off)
    found = [own.spend("evil", second / 100, 1.0, signed) for second in range(8000)]
    assert [each for each in found if each[0]] == [(1, False), (2, True), (3, True)]
    assert muted == [("evil", 10.0), ("evil", 20.0), ("evil", 40.0)] * signed, "nobody by another's messages"
    assert done.wait(PATIENCE_S)
    assert cut[0] == "evil"
    assert all(own.spend("honest", second, REGAINED, True)[0] == 0 for second in range(1000))
    assert caplog.text.count("device 'evil' sends far more than it needs to") == 3


def test_who_cannot_be_cut_off_is_told_of_once(caplog: pytest.LogCaptureFixture) -> None:
    own = Budgets(Lanes())
    for time in (0.0, 100.0, 200.0):
        assert own.spend("evil", time, FULL + 1, True)[0]
    assert caplog.text.count("fedspzo enroll evil --broker DIR --remove") == 1
    assert caplog.text.count("limit each address at the firewall") == 1


def test_a_login_that_cannot_be_taken_away_is_told_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def cut_off(names: Sequence[str]) -> Sequence[str]:
        raise BrokerError("broker.not-a-state-folder", "it is not the state folder of a broker; look")

    started: list[threading.Thread] = []
    start = threading.Thread.start
    monkeypatch.setattr(threading.Thread, "start", lambda thread: (started.append(thread), start(thread))[1])
    own = Budgets(Lanes(), cut_off)
    for time in (0.0, 100.0):
        own.spend("evil", time, FULL + 1, True)
    started[0].join()
    assert "the login of device 'evil' could not be taken away: it is not the state folder" in caplog.text


def test_budgets_of_many_senders_take_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST", 10)
    own = Budgets(Lanes())
    for number in range(100):
        own.spend(f"x{number}", 0.0, 1.0, True)
    assert list(own._budgets) == [f"x{number}" for number in range(90, 100)]


def test_what_does_not_fit_a_lane_is_charged() -> None:
    lanes = Lanes()
    own = Budgets(lanes)
    for _ in range(LANE_MESSAGES + int(FULL) + 1):
        lanes.receive(said("evil"))
    assert own.spend_lost(0.0) == [("evil", 1, False)]
    assert not lanes.mutes("evil")


@cache
def _size(message: Message) -> int:
    return len(encode(message)) + SIGNATURE_BYTES


class Honest:
    """A device whose messages are priced and charged as the server does it.

    Attributes:
        floods: how often it was taken for a flooder.
    """

    def __init__(self, mode: str) -> None:
        job = Job(batch=4, cohort=12, quorum=4, mode=mode).with_blocks((Block(5, 4, 1.0, 1e-2),))
        self.plan, self.floods, self.now = plan_round(job, 1), 0, 0.0
        self._progress = Progress(Counter(), round=begin_round(self.plan, ("a",), 0.0))
        self._member, self._budgets = Member("a", bytes(32)), Budgets(Lanes())
        card = Partner(bytes(32), bytes(32), bytes(64))
        self.here, self.gone, self.sync = Presence(True, 1), Presence(False, 1), sync(0)
        self.ready = Ready(1, fingerprint(self.plan), b"", (card,))
        self.masked = Masked(1, 1, bytes(4 * (self.plan.scalars + 3)))
        self.inquiry = Inquiry(tuple(bytes([number]) * 16 for number in range(127)))

    def says(self, *messages: Message) -> None:
        for message in messages:
            heard = Heard("a", message, _size(message))
            if cost := price(heard, self._member, self._progress, 0, False):
                self.floods += self._budgets.spend("a", self.now, cost, own=True)[0]


@pytest.mark.parametrize("mode", ["groups", "secure"])
@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        pytest.param(1.0, ("gone", "here", "sync", "ready"), id="killed when it is ready, and started, each second"),
        pytest.param(1.0, ("gone", "here", "sync", "masked"), id="killed when it has answered, and started"),
        pytest.param(1.2, ("gone", "here", "sync", "sync", "masked"), id="connects again, and sends again"),
        pytest.param(1.2, ("sync", "ready", "masked"), id="the server connects again"),
        pytest.param(1.0, ("ready", "masked"), id="a round is tried again and again"),
        pytest.param(1.0, ("inquiry", "ready", "masked"), id="its group is always of strangers"),
    ],
)
def test_an_honest_device_is_never_taken_for_a_flooder(mode: str, seconds: float, said: tuple[str, ...]) -> None:
    """For an hour, at more than its rate in chaos, which is fifteen messages in ten seconds."""
    device = Honest(mode)
    while device.now < 3600:
        device.says(*(getattr(device, each) for each in said))
        device.now += seconds
    assert device.floods == 0
    device.says(*[device.sync] * 100)
    assert device.floods, "it has the budget of anybody"
