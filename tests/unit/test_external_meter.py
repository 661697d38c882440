"""An external meter's log: its many forms, and where it lies over what the device did."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import pytest
from refusals import raises
from sensors import JavaPhone, Span, World

from fedspzo.device_runtime.energy.external import align_edges
from fedspzo.device_runtime.energy.meter_log import Log, read_log
from fedspzo.device_runtime.energy.timeline import Recording, Tick, Timeline, settle
from fedspzo.device_runtime.errors import EnergyError
from fedspzo.device_runtime.platform.profiling import IDLE, PERTURB, forward_block

BLOCK_1, BLOCK_2 = forward_block(0), forward_block(1)


def write(file: Path, *lines: str) -> Path:
    file.write_text("".join(f"{line}\n" for line in lines))
    return file


@pytest.mark.parametrize(
    ("lines", "absolute", "watts"),
    [
        (["time,V,A", "1.7e9,5,0.5", "1700000001,5,1"], True, [2.5, 5.0]),
        (["Timestamp;Voltage (V);Current (mA)", "0,0;5,0;500", "1,0;5,1;1000"], False, [2.5, 5.1]),
        (["time_ms\tpower[mW]", "1700000000000\t2500", "1700000001000\t5000"], True, [2.5, 5.0]),
        (["elapsed (ms),Power", "0,2.5", "1000,5"], False, [2.5, 5.0]),
        (["#time_ms,bus_voltage_mV,current_mA,energy_Wh", "0,5000,500,9", "1000,5000,1000,9"], False, [2.5, 5.0]),
        (["Time(s),U(V),I(A),Energy(Wh)", "0,5,0.5,9", "1,5,1,9"], False, [2.5, 5.0]),
        (
            ["time,Volts,Amps,Watts", "2023-11-14T22:13:20Z,9,9,2.5", "2023-11-14T22:13:21+00:00,9,9,5"],
            True,
            [2.5, 5.0],
        ),
    ],
)
def test_forms_of_logs(lines: list[str], absolute: bool, watts: list[float], tmp_path: Path) -> None:
    log = read_log(write(tmp_path / "log.csv", *lines))
    assert log.absolute == absolute
    assert log.times == pytest.approx([1.7e9, 1.7e9 + 1] if absolute else [0, 1])
    assert log.watts == pytest.approx(watts)


@pytest.mark.parametrize(
    ("lines", "kind", "named"),
    [
        ([], "energy.log-empty", "is empty"),
        (["", "  "], "energy.log-empty", "is empty"),
        (["0,5,1", "1,5,1"], "energy.log-header", "a time and a power"),
        (["time,V", "0,5", "1,5"], "energy.log-header", "a time and a power"),
        (["time,W", "0,5", "1,five"], "energy.log-cell", "line 3"),
        (["time,W", "noon,5", "1,5"], "energy.log-cell", "line 2"),
        (["time,W", "0,5", "1"], "energy.log-cell", "line 3"),
        (["time,W", "0,5"], "energy.log-rows", "two or more rows"),
        (["time,W", "0,5", "1,nan"], "energy.log-rows", "finite"),
        (["time,W", "1,5", "0,5"], "energy.log-rows", "sorted by time"),
    ],
)
def test_what_is_no_log_gets_a_sentence(lines: list[str], kind: str, named: str, tmp_path: Path) -> None:
    with raises(kind, "log.csv", named):
        read_log(write(tmp_path / "log.csv", *lines))


def test_a_log_of_few_powers_tells_them_apart_by_its_digits() -> None:
    """Not by how far the powers of idleness and of work are from each other."""
    still = Log("log.csv", np.arange(4.0), np.array([1.69, 1.69, 7.45, 1.69]), False)
    assert still.resolution == pytest.approx(0.01)
    assert Log("log.csv", still.times, np.array([2.0, 2.0, 2.05, 2.1]), False).resolution == pytest.approx(0.05)
    assert Log("log.csv", still.times, np.full(4, 2.0), False).resolution == 0.0


def test_a_log_that_is_missing(tmp_path: Path) -> None:
    with raises("energy.log-unreadable", "nowhere.csv"):
        read_log(tmp_path / "nowhere.csv")


def an_hour() -> tuple[World, Timeline, list[tuple[float, float]]]:
    """A world of an hour, its timeline, and the watts at each second of its clock on the wall."""
    world = World(JavaPhone())
    recording = Recording(world.timer)

    seconds: list[tuple[float, float]] = [(0.0, 2.0)]

    def sample() -> None:
        recording.sample()
        seconds.append((world.now, world.watts))

    recording.sample()
    spans = [Span(60, IDLE, 2.0)]
    random = np.random.default_rng(3)
    while sum(span.seconds for span in spans) < 3600:
        for phase, longest, watts in ((PERTURB, 5, 4.5), (BLOCK_1, 8, 6.0), (BLOCK_2, 20, 7.0), (IDLE, 15, 2.0)):
            spans.append(Span(float(random.uniform(1, longest)), phase, watts, len(spans) // 4))
    world.live(spans, sample)
    recording.timeline.steps = (len(spans) // 4,)
    return world, recording.timeline, seconds


@pytest.fixture(scope="module")
def hour() -> tuple[World, Timeline, Log, float]:
    """The world, its timeline, the log of a meter with a clock of its own, and how that is behind the world's."""
    world, timeline, seconds = an_hour()
    shift = timeline.ticks[0].at
    times, watts = np.array(seconds).T
    padded = np.concatenate([np.arange(-120, 0), times, times[-1] + np.arange(1, 200)])
    power = np.concatenate([np.full(120, 2.0), watts, np.full(199, 2.0)])
    return world, timeline, Log("meter.csv", padded + 12345.6, power, False), shift - 12345.6


@pytest.mark.parametrize("edges", [False, True])
def test_an_hour_of_a_meter(hour: tuple[World, Timeline, Log, float], edges: bool) -> None:
    world, timeline, log, offset = hour
    account = settle(timeline, log, None if edges else offset)
    assert account.joules == pytest.approx(world.joules, rel=0.01)
    assert account.seconds == pytest.approx(world.now, rel=0.001)
    known = world.joules - 2.0 * world.now
    assert abs(account.work.joules - known) < 3 * account.work.uncertainty
    assert account.work.joules == pytest.approx(known, rel=0.02)
    assert ("follow the work best" if edges else "as stated") in account.facts.remarks[0]


def test_a_timeline_comes_back(hour: tuple[World, Timeline, Log, float], tmp_path: Path) -> None:
    timeline = hour[1]
    timeline.write(tmp_path / "timeline.json")
    assert Timeline.read(tmp_path / "timeline.json") == timeline
    with raises("energy.not-a-timeline", "other.json", "--timeline"):
        Timeline.read(write(tmp_path / "other.json", "{}"))


@pytest.mark.parametrize("ticks", ["[]", "[[1, []]]", "[[NaN, []], [2, []]]", "[[1, []], [Infinity, []]]",
    "[[2, []], [2, []]]", "[[1, []], [1.5, []], [1.2, []]]", '[[1, []], [2, [[0, "perturb", NaN]]]]'])  # fmt: skip
def test_a_timeline_whose_times_do_not_rise(ticks: str, tmp_path: Path) -> None:
    with raises("energy.not-a-timeline", "timeline.json", "--timeline"):
        Timeline.read(write(tmp_path / "timeline.json", f'{{"steps": [1], "ticks": {ticks}}}'))


def test_logs_that_do_not_fit(hour: tuple[World, Timeline, Log, float]) -> None:
    _, timeline, log, offset = hour
    with raises("energy.log-start-unknown", "--offset"):
        settle(timeline, log, 0.0)
    with raises("energy.log-elsewhere", "meter.csv plus 5 s is from 1970-01-01 03:23:50 UTC", "--offset"):
        settle(timeline, log, 5.0)
    noise = Log("noise.csv", log.times, np.random.default_rng(0).uniform(2, 7, len(log.watts)), False)
    with raises("energy.log-does-not-fit", "noise.csv", "--offset"):
        settle(timeline, noise, None)
    regular = np.where(np.arange(len(log.times)) // 10 % 2, 7.0, 2.0)
    with raises("energy.log-does-not-fit", "regular.csv", "--offset"):
        settle(timeline, Log("regular.csv", log.times, regular, False), None)
    short = Log("short.csv", log.times[:50], log.watts[:50], False)
    with raises("energy.log-too-short", "--offset"):
        settle(timeline, short, None)
    with raises("energy.log-too-short", "--offset"):
        align_edges(log, [timeline.ticks[0].at], [1.0])
    holed = np.ones(len(log.times), bool)
    holed[1000:1600] = False
    account = settle(timeline, Log("holed.csv", log.times[holed], log.watts[holed], False), offset)
    assert account.missed == pytest.approx(600, abs=5)
    assert account.reasons == ("the meter's log has a hole",)


def test_moments_without_a_zone_are_local(tmp_path: Path) -> None:
    log = read_log(write(tmp_path / "log.csv", "time,W", "2026-01-01 12:00:00,1", "2026-01-01 12:00:01,1"))
    assert log.times[0] == datetime(2026, 1, 1, 12).astimezone(timezone.utc).timestamp()


def test_a_stated_offset_that_the_edges_contradict(hour: tuple[World, Timeline, Log, float]) -> None:
    _, timeline, log, offset = hour
    with pytest.raises(EnergyError, match="--offset edges") as refused:
        settle(timeline, log, offset + 20.0)
    assert refused.value.kind == "energy.offset-contradicted"
    stated, found = (float(part.split()[0]) for part in str(refused.value).split(" plus ")[1:])
    assert stated == pytest.approx(offset + 20.0, abs=0.01)
    assert found == pytest.approx(offset, abs=1.0)
    absolute = Log(log.name, log.times + offset + 7.0, log.watts, True)
    found = settle(timeline, absolute, None)
    assert "its clock is 7" in found.facts.remarks[0]
    flat = Log("flat.csv", absolute.times, np.full(len(log.watts), 4.0), True)
    assert "the edges of the work cannot tell" in settle(timeline, flat, 0.0).facts.remarks[0]
    with raises("energy.log-does-not-fit", "flat.csv", "--offset SECONDS, 0 where the clocks are the same"):
        settle(timeline, flat, None)


@pytest.mark.parametrize("off", [0.0, 12.0, -3600.0, 7 * 3600.0])
@pytest.mark.parametrize("spare", [-4.0, -1.0, 30.0, 7200.0])
def test_a_log_by_any_clock_that_is_longer_or_a_little_shorter(spare: float, off: float) -> None:
    """Evenly repeating work: 5 times 10 s of idle time and 60 s of work at 6 W."""
    timeline = repetitions(5, 10.0, 60.0)
    account = settle(timeline, log_of(timeline, spare, off), None)
    assert account.work.joules == pytest.approx(5 * 60 * 4.0, abs=account.work.half_width)
    assert account.work.half_width < 100
    said = account.facts.remarks[0]
    assert float(said.split()[4]) == pytest.approx(-off, abs=1.0)
    assert ("DISAGREE" in said) == (abs(off) > 600)


def test_a_log_of_work_that_repeats_too_evenly() -> None:
    """A log that begins or ends in the work may be of any of 20 repetitions; what is refused needs an offset."""
    timeline = repetitions(20, 10.0, 21.0)
    log = log_of(timeline, -1.0, 0.0)
    with raises("energy.log-ambiguous", "several offsets", "--offset SECONDS, 0 where"):
        settle(timeline, log, None)
    account = settle(timeline, log, 0.0)
    assert account.work.joules == pytest.approx(20 * 21 * 4.0, abs=account.work.half_width)
    half = timeline.ticks[-1].at - timeline.ticks[0].at
    with raises("energy.log-too-short", "80%", "--offset SECONDS"):
        settle(timeline, log_of(timeline, -half / 4, 0.0), None)


def test_a_log_of_days_in_which_the_same_was_done_twice() -> None:
    """The clock decides, where it is about right; where it is far off from both, nothing does."""
    timeline = repetitions(5, 10.0, 60.0)
    log = log_of(timeline, 7200.0, 0.0)
    watts = np.maximum(log.watts, np.roll(log.watts, 3000))
    near = settle(timeline, Log(log.name, log.times, watts, True), None)
    assert "DISAGREE" not in near.facts.remarks[0]
    for times, absolute in ((log.times + 10_000, True), (log.times, False)):
        with raises("energy.log-ambiguous", "--offset"):
            settle(timeline, Log(log.name, times, watts, absolute), None)


START = 1_796_000_000.0


def repetitions(times: int, idle: float, work: float) -> Timeline:
    """So many seconds of each by turns, idle ones at either end."""
    moments = np.arange(0.0, times * (idle + work) + idle + 0.05, 0.1)
    waits = np.maximum(moments - 0.05, 0.0) % (idle + work) < idle
    ticks = [Tick(START + at, {(0, IDLE if wait else PERTURB): 0.1}) for at, wait in zip(moments, waits, strict=True)]
    return Timeline((1,) * times, ticks)


def log_of(timeline: Timeline, spare: float, off: float) -> Log:
    """Of 2 W idle and 6 W at work, a row a second, by a clock that is ``off``; ``spare`` s more at either end."""
    times = np.arange(START - spare, timeline.ticks[-1].at + spare, 1.0)
    moments = [tick.at for tick in timeline.ticks]
    work = np.array([(0, PERTURB) in tick.phases for tick in timeline.ticks] + [False])
    watts = np.where(work[np.searchsorted(moments, times)], 6.0, 2.0)
    noise = np.random.default_rng(0).normal(0, 0.02, len(times))
    return Log("meter.csv", times + off, watts + noise, True)
