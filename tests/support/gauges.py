"""A world of which everything is known, as arrays: thousands of runs of gauges that are slow, late and coarse."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fedspzo.device_runtime.energy.external import Replay, align_edges
from fedspzo.device_runtime.energy.meter_log import Log
from fedspzo.device_runtime.energy.readings import Readings
from fedspzo.device_runtime.energy.source import COUNTER, POWER, Facts, Gap
from fedspzo.device_runtime.errors import EnergyError
from fedspzo.device_runtime.platform.profiling import IDLE


@dataclass(frozen=True)
class Gauge:
    """A kind of source, drawn anew in each run.

    Attributes:
        kind: counter or power.
        periods: s, the least and the most time between updates; each run has its own.
        irregular: each update comes after a time of its own, from a half to one and a half periods.
        lags: in periods, the least and the most that it is behind.
        mean: it gives the mean power since its last update, and not that of the moment.
        step: J or W that it tells apart.
        gain: standard deviation of its scale.
        gauge: the runtime must learn its period.
        log: it is an external meter's log, laid over the clock by the edges of the work where these tell.
    """

    kind: str
    periods: tuple[float, float]
    irregular: bool = False
    lags: tuple[float, float] = (0.0, 0.0)
    mean: bool = False
    step: float = 0.0
    gain: float = 0.03
    gauge: bool = True
    log: bool = False


#: Name → gauge: each source of the runtime, and what makers do to gauges.
GAUGES = {
    "rapl": Gauge(COUNTER, (1e-3, 1e-3), step=2.0**-14, gain=0.02, gauge=False),
    "jetson": Gauge(POWER, (7e-3, 7e-3), step=0.15, gain=0.01, gauge=False),
    "pi5": Gauge(POWER, (0.1, 0.1), mean=True, step=0.01, gauge=False),
    "meter's log": Gauge(POWER, (0.1, 20), step=0.01, gain=0.01, gauge=False, log=True),
    "laptop's energy": Gauge(COUNTER, (10, 40), step=36.0),
    "laptop's power": Gauge(POWER, (5, 40), step=1e-3),
    "laptop's late power": Gauge(POWER, (2, 30), lags=(0.0, 2.0), mean=True, step=1e-2),
    "phone's charge": Gauge(COUNTER, (1, 10), step=13.9),
    "phone's late charge": Gauge(COUNTER, (5, 20), lags=(0.0, 2.0), step=13.9),
    "phone's energy": Gauge(COUNTER, (5, 15), irregular=True, step=3.6e-6),
    "phone's current": Gauge(POWER, (5, 30), step=4e-6),
    "phone's current in mA": Gauge(POWER, (1, 10), irregular=True, lags=(0.0, 1.0), step=4e-3),
    "phone's average": Gauge(POWER, (5, 30), irregular=True, lags=(0.0, 1.0), mean=True, step=4e-6),
}
PHASES = ("perturb", "forward block 1", "forward block 2")


@dataclass(frozen=True)
class Run:
    """A run: what the runtime sees, and what is true: joules above idle by phase (all of them under ``work``),
    and the watts of idleness; when each time of a phase began and ended, and its joules; a meter's log, and what added
    to its times gives those of the readings."""

    readings: Readings
    facts: Facts
    truth: dict[str, float]
    period: float
    bounds: Sequence[tuple[float, float]]
    each: Sequence[float]
    log: Log | None = None
    offset: float = 0.0


@dataclass(frozen=True)
class Repetitions:
    """A run of repetitions of the same work: when each began and ended, with the idle times around it, and what one
    takes by expectation, joules above idle by phase and of all of them (``work``)."""

    run: Run
    bounds: Sequence[tuple[float, float]]
    expected: dict[str, float]


def draw_run(gauge: Gauge, random: np.random.Generator, long: bool, poll: float = 1.0, steps: bool = False) -> Run:
    """A run by one gauge: idleness, work in phases, idleness, and perhaps so several times.

    Args:
        long: whatever is done lasts ten periods of the gauge or more; else a tenth of one up to twenty.
        steps: work is the same step over and over, in which a long phase alternates with shorter ones than are told.
    """
    setting = _set_up(gauge, random, poll)
    unit, watts = setting.unit, setting.watts
    names = [IDLE]
    for _ in range(int(random.integers(1, 4))):
        names += [PHASES[i % 3] for i in range(int(random.integers(3, 10)) * (6 if steps else 1))] + [IDLE]
    low, high = (10.0, 30.0) if long or steps else (0.1, 20.0)
    lengths = unit * np.exp(random.uniform(np.log(low), np.log(high), len(names)))
    if steps:
        each = dict(zip(PHASES, (random.uniform(2.0, 8.0), *random.uniform(0.02, 0.9, 2)), strict=True))
        lengths = np.array([unit * each.get(name, long) for name, long in zip(names, lengths / unit, strict=True)])
        lengths *= random.uniform(0.95, 1.05, len(names))
    noisy = 0.05 if random.random() < 0.8 else 0.0  # some worlds are as quiet as textbooks
    levels = np.array([watts[name] for name in names]) * (1 + noisy * random.standard_normal(len(names)))
    levels[[i for i, name in enumerate(names) if name == IDLE]] = watts[IDLE] * (
        1 + noisy / 5 * random.standard_normal(names.count(IDLE))
    )
    return _observe(gauge, setting, names, lengths, levels, noisy, random)


def draw_repetitions(gauge: Gauge, random: np.random.Generator, long: bool, repeats: int = 5) -> Repetitions:
    """Repetitions of the same work by one gauge, with idleness around each. Of no two has the work the same power.

    Args:
        long: each phase lasts ten periods of the gauge or more; else two up to twenty.
    """
    setting = _set_up(gauge, random, 1.0)
    cycles = int(random.integers(1, 4))
    low, high = (11.0, 25.0) if long else (2.0, 20.0)
    usual = {name: setting.unit * random.uniform(low, high) for name in (IDLE, *PHASES)}
    names = [IDLE, *[*PHASES * cycles, IDLE] * repeats]
    lengths = np.array([usual[name] for name in names]) * random.uniform(0.95, 1.05, len(names))
    noisy = 0.05 if random.random() < 0.8 else 0.0
    each = 1 + random.uniform(0.0, 0.1) * random.standard_normal(repeats)  # a warmer processor, another clock rate
    of_repetition = np.concatenate([[1.0], np.repeat(each, 3 * cycles + 1)])
    of_idleness = 1 + noisy / 5 * random.standard_normal(len(names))
    of_work = of_repetition * (1 + noisy * random.standard_normal(len(names)))
    idle = np.array([name == IDLE for name in names])
    levels = np.array([setting.watts[name] for name in names]) * np.where(idle, of_idleness, of_work)
    run = _observe(gauge, setting, names, lengths, levels, noisy, random)
    starts, waits = np.concatenate([[0.0], np.cumsum(lengths)]), np.flatnonzero(idle)
    bounds = [(float(starts[one]), float(starts[other + 1])) for one, other in itertools.pairwise(waits)]
    expected = {name: cycles * usual[name] * (setting.watts[name] - setting.watts[IDLE]) for name in PHASES}
    return Repetitions(run, bounds, expected | {"work": sum(expected.values())})


def draw_losses(random: np.random.Generator) -> tuple[np.ndarray, np.ndarray, float]:
    """The loss of each step with what it scatters by and without, and one that it may reach."""
    steps, start = int(random.integers(8, 160)), random.uniform(0.5, 3.0)
    deep = start * random.uniform(0.1, 1.0)
    level = start - deep * (1 - np.exp(-np.arange(steps) / np.exp(random.uniform(np.log(2), np.log(200)))))
    noise = deep * np.exp(random.uniform(np.log(0.02), 0.0)) * (level / start if random.random() < 0.5 else 1.0)
    return level + noise * random.standard_normal(steps), level, start - deep * random.uniform(0.1, 0.9)


@dataclass(frozen=True)
class _Setting:
    """What a gauge and the powers are in one run: its period, the time between readings, what counts as long, and
    name → W."""

    period: float
    poll: float
    unit: float
    watts: dict[str, float]


def _set_up(gauge: Gauge, random: np.random.Generator, poll: float) -> _Setting:
    period = float(np.exp(random.uniform(*np.log(gauge.periods))))
    poll = max(poll, float(np.ceil(period))) if gauge.log else poll  # its readings are taken that far apart
    watts = {IDLE: random.uniform(1.0, 3.0)}
    moving = period * max(np.ceil(gauge.step / watts[IDLE] / period), 1) if gauge.kind == COUNTER else period
    unit = max(moving * (1.5 if gauge.irregular else 1.0), poll)
    above = 2.5 + np.cumsum(random.uniform(0.5, 1.5, len(PHASES)))
    watts |= {phase: watts[IDLE] + float(more) for phase, more in zip(PHASES, random.permutation(above), strict=True)}
    return _Setting(period, poll, unit, watts)


def _observe(
    gauge: Gauge,
    setting: _Setting,
    names: Sequence[str],
    lengths: np.ndarray,
    levels: np.ndarray,
    noisy: float,
    random: np.random.Generator,
) -> Run:
    """What the gauge shows of so many seconds of each, at such powers, and what is true."""
    period, poll, unit = setting.period, setting.poll, setting.unit
    starts = np.concatenate([[0.0], np.cumsum(lengths)])
    fine = _fine(starts, levels, noisy, unit, random)
    times = np.arange(0.0, starts[-1], poll)
    cuts = [np.clip(times, start, stop) - start for start, stop in itertools.pairwise(starts)]
    seconds = {
        name: np.diff(sum(cut for cut, one in zip(cuts, names, strict=True) if one == name), prepend=0.0)
        for name in dict.fromkeys(names)
    }
    spent = {name: sum(n for n, one in zip(lengths, names, strict=True) if one == name) for name in seconds}
    joules = np.diff(np.interp(starts, *fine))
    used = {name: sum(float(n) for n, one in zip(joules, names, strict=True) if one == name) for name in seconds}
    idle = used[IDLE] / spent[IDLE]
    truth = {name: used[name] - idle * spent[name] for name in seconds if name != IDLE}
    truth["work"] = sum(truth.values())
    truth[IDLE] = idle
    works = [at for at, name in enumerate(names) if name != IDLE]
    bounds = [(float(starts[at]), float(starts[at + 1])) for at in works]
    each = [float(joules[at] - idle * (starts[at + 1] - starts[at])) for at in works]
    if gauge.log:
        log, offset = _log(gauge, period, fine, times, seconds, random)
        busy = 1 - seconds[IDLE][1:] / sum(seconds.values())[1:]
        found = offset
        with contextlib.suppress(EnergyError):  # the person who measures says it
            found = align_edges(log, (times[1:] + times[:-1]) / 2, busy).offset
        source = Replay(log, found, "")
        readings = Readings(times, np.array([_read(source, now) for now in times]), seconds)
        return Run(readings, source.facts, truth, unit, bounds, each, log, offset)
    said = 1.0 if gauge.gauge else period
    return Run(
        Readings(times, _show(gauge, period, fine, times, random), seconds),
        Facts(gauge.kind, gauge.step / 1000 if gauge.gauge else gauge.step, said, gauge.gain, "all", gauge=gauge.gauge),
        truth,
        unit,
        bounds,
        each,
    )


def _log(
    gauge: Gauge,
    period: float,
    fine: tuple[np.ndarray, np.ndarray],
    times: np.ndarray,
    seconds: Mapping[str, np.ndarray],
    random: np.random.Generator,
) -> tuple[Log, float]:
    """A meter's log of the same, by a clock that is up to a minute off, and by how much it is.

    In every other run it begins in the first idle time and ends in the last.
    """
    work = np.flatnonzero(sum(spent for name, spent in seconds.items() if name != IDLE))
    late, early = (times[work[0] - 1] / 2, (times[-1] - times[work[-1]]) / 2) if random.random() < 0.5 else (0.0, 0.0)
    begin = late * random.random() if late else -random.uniform(8, 9) * period
    rows = np.arange(begin, times[-1] + (-early * random.random() if early else 9 * period), period)
    joules = np.interp(rows[:, None] + [-5e-4, 5e-4], *fine)
    before, after = (np.diff(fine[1])[end] / np.diff(fine[0])[end] for end in (0, -1))
    watts = np.where(rows < 0, before, np.where(rows > fine[0][-1], after, np.diff(joules)[:, 0] * 1e3))
    watts = np.round((1 + gauge.gain * random.standard_normal()) * watts / gauge.step) * gauge.step
    off = random.uniform(-60, 60)
    return Log("meter.csv", rows - off, watts, True), off


def _read(source: Replay, now: float) -> float:
    source.now = now
    try:
        return source.read()
    except Gap:
        return math.nan


def _fine(
    starts: np.ndarray, levels: np.ndarray, noisy: float, unit: float, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Moments, and joules used up to each, with power that fluctuates within a phase, too."""
    tick = unit / 7.3
    inner = np.arange(0.0, starts[-1], tick)
    times = np.unique(np.concatenate([starts, inner]))
    at = np.clip(np.searchsorted(starts, (times[:-1] + times[1:]) / 2) - 1, 0, len(levels) - 1)
    watts = levels[at] * (1 + noisy * random.standard_normal(len(at)))
    return times, np.concatenate([[0.0], np.cumsum(watts * np.diff(times))])


def _show(
    gauge: Gauge, period: float, fine: tuple[np.ndarray, np.ndarray], times: np.ndarray, random: np.random.Generator
) -> np.ndarray:
    """What the gauge shows at some moments."""
    lag = period * random.uniform(*gauge.lags)
    scale = 1 + gauge.gain * random.standard_normal()
    end = times[-1] + 2 * period
    if period < 0.5:
        updates = times - random.uniform(0, period, len(times))
        before = updates - period
    else:
        count = int(2.5 * end / period) + 4
        apart = period * (random.uniform(0.5, 1.5, count) if gauge.irregular else np.ones(count))
        updates = -period * random.uniform(2, 3) + np.cumsum(apart)
        before = np.concatenate([[updates[0] - period], updates[:-1]])
    extended = np.concatenate([[-1e4], fine[0], [1e6]])
    first, last = np.diff(fine[1])[0] / np.diff(fine[0])[0], np.diff(fine[1])[-1] / np.diff(fine[0])[-1]
    joules = np.concatenate([[-1e4 * first], fine[1], [fine[1][-1] + last * (1e6 - fine[0][-1])]])

    def used(at: np.ndarray) -> np.ndarray:
        return np.interp(at, extended, joules)

    if gauge.kind == COUNTER:
        shown = scale * used(updates - lag) + random.uniform(0, 1) * gauge.step
        shown = np.floor(shown / gauge.step) * gauge.step
    else:
        width = (updates - before) if gauge.mean else np.full(len(updates), 1e-3)
        shown = scale * (used(updates - lag) - used(updates - lag - width)) / width
        shown = np.round(shown / gauge.step) * gauge.step
    if period < 0.5:
        return shown
    return shown[np.searchsorted(updates, times, side="right") - 1]
