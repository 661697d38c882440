"""Readings of a source over time beside what was done meanwhile, and what they show of the source: period and lag.

A gauge is read more often than it is updated. When it is updated is seen where its value changes; by how much it is
behind is seen where the work begins and ends. A reading at time t then tells of the time between t - 2·period - lag and
t - lag: it was updated at most a period ago, and may be the mean of the period before that.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from fedspzo.device_runtime.energy.source import COUNTER, POWER, Facts
from fedspzo.device_runtime.platform.profiling import IDLE, Seconds

#: The share of an interval below which something in it is passed over.
NEGLIGIBLE = 0.01
#: Readings that are kept at most; of more, every second is dropped.
MOST = 16384
#: Ends of phases that tell how quickly a gauge follows, and changes of a gauge that tell its lag.
_ENDS, _CHANGES = 4, 6
#: The longest lag that is tried, in periods.
_LATEST = 4.0


@dataclass(frozen=True)
class Readings:
    """Of one source.

    Attributes:
        times: float64 [n], s, rising.
        values: float64 [n], J of a counter or W; NaN where there is no reading.
        seconds: phase → float64 [n], what was spent in it since the reading before.
    """

    times: np.ndarray
    values: np.ndarray
    seconds: Mapping[str, np.ndarray]

    @cached_property
    def covered(self) -> np.ndarray:
        """bool [n]: the time since the reading before has readings at both ends."""
        known = np.isfinite(self.values)
        return np.concatenate([[False], known[1:] & known[:-1]])

    @cached_property
    def changes(self) -> np.ndarray:
        """int [k], where the value differs from that before."""
        return np.flatnonzero(self.covered & np.concatenate([[False], np.diff(self.values) != 0]))

    @cached_property
    def total(self) -> np.ndarray:
        """float64 [n], seconds of all phases since the reading before."""
        return np.sum(list(self.seconds.values()), axis=0) if self.seconds else np.zeros(len(self.times))

    def alone(self, *phases: str) -> np.ndarray:
        """bool [n]: nothing but these phases was on since the reading before, and there are readings."""
        spent = np.sum([self.seconds.get(phase, np.zeros(len(self.times))) for phase in phases], axis=0)
        return self.covered & (spent > 0) & (spent >= (1 - NEGLIGIBLE) * self.total)

    @cached_property
    def ends(self) -> np.ndarray:
        """float64 [k], when something that was on by itself ended and the next began, to within two readings."""
        phases = list(self.seconds)
        which = np.max([(at + 1) * self.alone(phase) for at, phase in enumerate(phases)], axis=0, initial=0)
        known = np.flatnonzero(which)
        turned = (np.diff(which[known]) != 0) & (np.diff(known) <= 2)
        return self.times[known[:-1][turned]]

    @property
    def works(self) -> tuple[str, ...]:
        """The phases that are no waiting."""
        return tuple(phase for phase in self.seconds if phase != IDLE)

    def spans(self, mask: np.ndarray) -> Iterator[tuple[int, int]]:
        """Runs of intervals: the readings at their start and end."""
        edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(np.int8)))
        for first, stop in edges.reshape(-1, 2):
            yield max(int(first) - 1, 0), int(stop) - 1


@dataclass(frozen=True)
class Pace:
    """How a source follows. Attributes: ``period`` between updates, ``least`` and ``most`` that it is behind, in s."""

    period: float
    least: float = 0.0
    most: float = 0.0


class History:
    """Collects readings, a bounded number of them."""

    def __init__(self) -> None:
        """Start empty."""
        self._times: list[float] = []
        self._values: list[float] = []
        self._seconds: list[dict[str, float]] = []

    def add(self, time: float, value: float, phases: Seconds) -> None:
        """A reading, or NaN, and what was spent since the one before."""
        spent: dict[str, float] = {}
        for (_, phase), seconds in phases.items():
            spent[phase] = spent.get(phase, 0.0) + seconds
        self._times.append(time)
        self._values.append(value)
        self._seconds.append(spent)
        if len(self._times) > MOST:
            self._thin()

    def readings(self) -> Readings:
        """All of them."""
        phases = sorted({phase for spent in self._seconds for phase in spent})
        columns = {phase: np.array([spent.get(phase, 0.0) for spent in self._seconds]) for phase in phases}
        return Readings(np.array(self._times), np.array(self._values), columns)

    def _thin(self) -> None:
        merged = []
        for one, other in zip(self._seconds[::2], self._seconds[1::2], strict=False):
            merged.append({phase: one.get(phase, 0.0) + other.get(phase, 0.0) for phase in one | other})
        odd = len(self._times) % 2
        self._seconds = merged + self._seconds[-1:] * odd
        self._times = self._times[1::2] + self._times[-1:] * odd
        pairs = zip(self._values[::2], self._values[1::2], strict=False)
        self._values = [b if np.isfinite(a) else a for a, b in pairs] + self._values[-1:] * odd


def learn_step(readings: Readings, facts: Facts) -> float:
    """What a source tells apart, J or W: more than its maker says where the moves of a counter are whole steps."""
    moves = np.abs(np.diff(readings.values)[readings.changes - 1])
    if not facts.gauge or facts.kind != COUNTER or not len(moves):
        return facts.resolution
    least = float(moves.min())
    for parts in range(1, 5):
        steps = moves * parts / least
        if np.abs(steps - np.round(steps)).max() < 0.02 + 0.01 * steps.max():
            return max(facts.resolution, least / parts)
    return facts.resolution


def learn_pace(readings: Readings, facts: Facts) -> Pace:
    """How a source follows: as its maker says, or for gauges as its readings show.

    A gauge is updated about as often as its value changes. Where the value stays as it is because the power does, so
    that it changes after the ends of phases alone, it is as late as the latest of these changes, and chance allows for.
    """
    if not facts.gauge:
        return Pace(facts.period)
    times, ends = readings.times[readings.changes], readings.ends
    if len(times) < 3:
        return Pace(np.inf)
    apart = np.diff(times)
    if facts.kind == POWER and len(ends) >= _ENDS and len(times) <= 2 * len(ends) + 2:
        poll = float(np.median(np.diff(readings.times)))
        latest = _latest(times, ends) + poll
        period = max(facts.period, min(2 * float(apart.min()) + poll, latest))
        fitted = _learn_lag(readings, facts, period)
        return Pace(period, 0.0, min(max(latest - period, 0.0), fitted[1] if fitted else np.inf))
    period = max(facts.period, float(np.quantile(apart, 0.85)))
    return Pace(period, *(_learn_lag(readings, facts, period) or (0.0, period)))


def _latest(changes: np.ndarray, ends: np.ndarray) -> float:
    """The longest that a change may come after its cause, given how late those were that came, with 95 % certainty
    were their delays uniform; by the second longest, too, as one cause may not have shown."""
    following = np.searchsorted(changes, ends)
    seen = following < len(changes)
    delays = np.sort(changes[following[seen]] - ends[seen])
    count = len(delays)
    if count < _ENDS - 1:
        return np.inf
    return float(min(delays[-1] * 0.05 ** (-1 / count), delays[-2] * (0.05 / count) ** (-1 / (count - 1))))


def _learn_lag(readings: Readings, facts: Facts, period: float) -> tuple[float, float] | None:
    """The least and the most that the readings may be behind, by how well they follow the work at each lag; None where
    they do not tell."""
    marks = readings.changes
    if len(marks) < _CHANGES:
        return None
    before, after = readings.times[marks[:-1]], readings.times[marks[1:]]
    length = after - before
    values = readings.values[marks]
    power = np.diff(values) / length if facts.kind == COUNTER else values[1:]
    idle = readings.seconds.get(IDLE, np.zeros(len(readings.times)))
    few = len(length) < 4 * len(readings.seconds) or len(readings.seconds) < 2
    columns = [idle] if few else [readings.seconds[phase] for phase in readings.seconds]
    spent = [np.cumsum(column) for column in columns]
    step = period / 3
    lags = np.arange(-period, _LATEST * period + step / 2, step)
    weights = np.sqrt(length)
    ends, begins = after - lags[:, None], before - lags[:, None]
    shares = [(np.interp(ends, readings.times, one) - np.interp(begins, readings.times, one)) / length for one in spent]
    matrices = np.stack([*shares, np.ones_like(ends)] if few else shares, -1) * weights[:, None]
    target = power * weights
    squares = np.einsum("lki,lkj->lij", matrices, matrices) + 1e-9 * float(length.sum()) * np.eye(matrices.shape[-1])
    fitted = np.linalg.solve(squares, np.einsum("lki,k->li", matrices, target)[..., None])[..., 0]
    losses = np.sum((target - np.einsum("lki,li->lk", matrices, fitted)) ** 2, axis=1)
    scale = float((((power - np.average(power, weights=length)) * weights) ** 2).sum())
    if not scale or losses.min() > 0.7 * scale:
        return None
    freedom = max(len(length) - len(spent) - 1, 1)
    likely = lags[losses <= losses.min() * (1 + 6 / freedom) + 1e-4 * scale]
    return float(max(likely[0] - step, 0.0)), float(max(likely[-1] + step, 0.0)) + period / 2
