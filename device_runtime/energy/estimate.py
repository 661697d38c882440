"""Joules above idle of the work and of its phases, each with a 95 % interval or the reason why it has no interval.

A phase is measured where its readings tell of nothing else: in the core of each time that it lasted, away from its
edges by as much as the source may be behind. Its mean power there counts for the rest of that time, and the mean over
all cores for the times that have none. The work as a whole is measured from one idle time to the next, so that no lag
matters, or as the sum of its phases where that is more certain. The idle power comes from idle times before and after.

Half-widths add as squares: what the ends of a counter's cores may be late or rounded by, the scatter of readings of
power, the scatter between the times of a phase where some have no core, the idle power's own, and the source's scale.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from fedspzo.device_runtime.energy.cores import Core, mean, spread, to_their_ends
from fedspzo.device_runtime.energy.figures import NORMAL, Figure, Idle, student
from fedspzo.device_runtime.energy.readings import Pace, Readings
from fedspzo.device_runtime.energy.source import COUNTER, Facts
from fedspzo.device_runtime.platform.profiling import IDLE

#: By how much the idle power is taken to flicker between two changes of a counter where no idle time shows it.
_FLICKER = 0.03
#: The share of a phase's time that its cores' times must make up for the rest to count at their mean.
_SEEN = 0.2
#: The share of the work's time in phases that are known, for the rest to count at their mean.
_NEARLY = 0.99


class Estimate:
    """What readings say, given how their source follows."""

    def __init__(self, readings: Readings, facts: Facts, pace: Pace) -> None:
        """Find the idle power."""
        self._readings, self._facts, self._pace = readings, facts, pace
        self._poll = float(np.median(np.diff(readings.times))) if len(readings.times) > 1 else 0.0
        self._idles = self._cores(readings.alone(IDLE))
        self._phases: dict[str, Figure] = {}
        self.idle = self._find_idle()

    def phase(self, name: str) -> Figure:
        """A phase's."""
        if not self._facts.measured:
            return replace(self._priced((name,)), joules=None, reason="an estimate does not tell phases apart")
        if name not in self._phases:  # of all work, too
            self._phases[name] = self._by_cores(name)
        return self._phases[name]

    def work(self) -> Figure:
        """All but the waiting."""
        works = self._readings.works
        if not self._facts.measured:
            return self._priced(works)
        whole, parts = self._from_idle_to_idle(works), self._by_phases(works)
        told = [figure for figure in (whole, parts) if figure.half_width is not None]
        return min(told, key=lambda figure: figure.half_width or 0.0, default=whole)

    def _cores(self, mask: np.ndarray) -> list[Core]:
        make = self._counted if self._facts.kind == COUNTER else self._averaged
        return [core for first, last in self._readings.spans(mask) if (core := make(first, last))]

    def _counted(self, first: int, last: int) -> Core | None:
        """By a counter's changes that tell of the time between two readings alone."""
        times, values, pace = self._readings.times, self._readings.values, self._pace
        changes = self._readings.changes
        inside = changes[(changes > first) & (changes <= last)]
        if not pace.period:  # it changes with what it counts: any reading will do
            inside = np.arange(first, last + 1)
        inside = inside[(times[inside - 1] - pace.most >= times[first] - 1e-9) | (inside == first)]
        if pace.period < self._poll / 2 and (not len(inside) or inside[0] != first):
            inside = np.concatenate([[first], inside])  # it is up to date whenever it is read
        if len(inside) < 2:
            return None
        begin, end = int(inside[0]), int(inside[-1])
        seconds = float(times[end] - times[begin])
        watts = float(values[end] - values[begin]) / seconds
        error = math.sqrt(2) * self._end(watts) / seconds
        return Core(
            watts,
            error,
            self._flicker(inside),
            seconds,
            float(times[last] - times[first]),
            float(times[end]),
            begin,
            end,
        )

    def _flicker(self, marks: np.ndarray) -> float:
        """W by which the power between a counter's changes scatters, beyond its rounding; 0 where there are too few."""
        length = np.diff(self._readings.times[marks])
        if len(length) < 2:
            return 0.0
        watts = np.diff(self._readings.values[marks]) / length
        rounding = 6 * (self._end(float(watts.mean())) / length.mean()) ** 2
        return math.sqrt(max(float(np.mean(np.diff(watts) ** 2)) / 2 - rounding, 0.0))

    def _averaged(self, first: int, last: int) -> Core | None:
        """By the mean of the readings of power that tell of the time between two readings alone."""
        times, values, pace = self._readings.times, self._readings.values, self._pace
        begin = int(np.searchsorted(times, times[first] + 2 * pace.period + pace.most - 1e-9))
        if begin > last or (begin == first and begin == last):
            return None
        shown = values[max(begin, first + 1) : last + 1]
        if not len(shown):
            return None
        every = max(1, round(pace.period / self._poll)) if self._poll else 1
        distinct = shown[::every]
        scatter = float(np.sqrt(np.mean(np.diff(distinct) ** 2) / 2)) if len(distinct) > 1 else 0.0
        count = max(len(shown) / every, 1.0)
        watts = float(shown.mean())
        error = scatter * student(max(count - 1, 1)) / NORMAL / math.sqrt(count)
        if len(distinct) < 2:
            error = math.hypot(error, 0.1 * abs(watts))  # one reading shows no scatter: a tenth is assumed
        seconds = float(times[last] - times[max(begin - 1, first)])
        whole = float(times[last] - times[first])
        return Core(watts, error, scatter, min(seconds, whole), whole, float(times[last]), begin, last)

    def _end(self, watts: float) -> float:
        """J, one standard deviation of a counter's reading when it changes: rounded, or late by a reading."""
        late = abs(watts) * min(self._pace.period, self._poll)
        return math.hypot(self._facts.resolution, late) / math.sqrt(12)

    def _rounding(self) -> float:
        """W, one standard deviation: all readings of one power are rounded alike."""
        return self._facts.resolution / math.sqrt(12) * (self._facts.kind != COUNTER)

    def _find_idle(self) -> Idle:
        cores = self._idles
        if not self._facts.measured:
            return Idle(0.0, 0.0, 0.0, None, "an estimate has no idle power")
        if not cores:
            return Idle(None, None, 0.0, None, self._unseen("waiting"))
        watts, error = mean(cores)
        error = math.hypot(error, self._rounding())
        seconds = sum(core.seconds for core in cores)
        if self._facts.kind == COUNTER:  # what it saw of waiting is no more than a sample
            scatter = math.sqrt(sum(core.scatter**2 for core in cores) / len(cores)) or _FLICKER * watts
            error = math.hypot(error, scatter * math.sqrt(max(self._pace.period, self._poll) / seconds))
        if len(cores) < 2:
            return Idle(watts, NORMAL * error, seconds, None, "")
        spent = np.cumsum([core.seconds for core in cores])
        half = int(np.clip(np.searchsorted(spent, spent[-1] / 2), 0, len(cores) - 2)) + 1
        (first, _), (second, _) = mean(cores[:half]), mean(cores[half:])
        drift = second - first
        between = abs(drift) / math.sqrt(12)
        if len(cores) > 3:
            between = max(between, spread(cores) / math.sqrt(len(cores)))
        middle = (first + second) / 2 if len(cores) < 4 else watts
        return Idle(middle, NORMAL * math.hypot(error, between), seconds, drift, "")

    def _by_cores(self, phase: str) -> Figure:
        readings = self._readings
        mask, every = readings.alone(phase), readings.seconds[phase]
        spent, known = float(every.sum()), float(every[readings.covered].sum())
        seen = self._cores(mask)
        cores = to_their_ends(seen, mask, every, readings.covered)
        apart = np.where(mask, np.diff(readings.times, prepend=readings.times[:1]), every)
        elapsed = float(apart[readings.covered].sum())
        whole = sum(core.whole for core in cores)
        alone = min(sum(core.whole for core in seen) / elapsed, 1.0) if elapsed else 0.0
        covered = known / spent if spent else 0.0
        if not cores or alone < _SEEN or (len(cores) == 1 and alone < 0.5):
            return Figure(None, None, self._unseen("the phase", alone), spent, covered, alone)
        if self.idle.watts is None or self.idle.half_width is None:
            return Figure(None, None, f"the idle power is not known: {self.idle.reason}", spent, covered, alone)
        middle, _ = mean(cores)
        rest = max(elapsed - whole, 0.0)
        gross = sum(core.watts * core.whole for core in cores) + middle * rest
        error = math.sqrt(sum((core.error * core.whole) ** 2 for core in cores))
        edges = math.sqrt(
            sum(
                max(core.whole - core.seconds, 0.0) * core.scatter**2 * (self._pace.period + self._poll)
                for core in cores
            )
        )
        apart_by = student(len(cores) - 1) * spread(cores) if len(cores) > 1 else abs(middle - self.idle.watts)
        times = rest / max(whole / len(cores), 1e-9)
        unseen = apart_by * rest * math.sqrt(1 / len(cores) + 1 / max(times, 1.0))
        strange = float((readings.total - every)[mask].sum()) * abs(middle)  # too short to be told from the phase
        joules = gross - self.idle.watts * elapsed
        width = math.hypot(
            NORMAL * error,
            NORMAL * edges,
            NORMAL * self._rounding() * elapsed,
            unseen,
            strange,
            self.idle.half_width * elapsed,
            NORMAL * self._facts.gain * joules,
        )
        if not width <= abs(joules):  # so that NaN is refused, too
            return Figure(None, None, _vague(joules, width), spent, covered, alone)
        return Figure(joules, width, "", spent, covered, alone)

    def _by_phases(self, works: Sequence[str]) -> Figure:
        """By the sum of phases, where nearly all of the time is of phases that are known."""
        figures = [self.phase(phase) for phase in works]
        spent = sum(figure.seconds for figure in figures)
        known = [figure for figure in figures if figure.joules is not None and figure.half_width is not None]
        seen = sum(figure.seconds for figure in known)
        covered = sum(figure.seconds * figure.covered for figure in figures) / spent if spent else 0.0
        if not spent or seen < _NEARLY * spent:
            return Figure(None, None, self._unseen("the work"), spent, covered, 0.0)
        joules = sum(figure.joules or 0.0 for figure in known) * spent / seen
        width = sum(figure.half_width or 0.0 for figure in known) * spent / seen
        return Figure(joules, width, "", spent, covered, 1.0)

    def _from_idle_to_idle(self, works: Sequence[str]) -> Figure:
        """By what was used between the last readings that tell of one idle time alone, and the first of the next."""
        readings, pace = self._readings, self._pace
        times = readings.times
        every = sum((readings.seconds[phase] for phase in works), np.zeros(len(times)))
        spent, known = float(every.sum()), float(every[readings.covered].sum())
        covered = known / spent if spent else 0.0
        if self.idle.watts is None or self.idle.half_width is None:
            return Figure(None, None, f"the idle power is not known: {self.idle.reason}", spent, covered, 0.0)
        used, variances = self._running()
        joules, variance, seconds = 0.0, 0.0, 0.0
        for first, last in readings.spans(readings.covered):
            inner = [(core.first, core.last) for core in self._idles if first <= core.first <= last]
            begins, ends = [first, *(end for _, end in inner)], [*(begin for begin, _ in inner), last]
            for begin, end in zip(begins, ends, strict=True):
                work = float(every[begin + 1 : end + 1].sum())
                if not work:
                    continue
                length = float(times[end] - times[begin])
                above = float(used[end] - used[begin]) - self.idle.watts * length
                late = (pace.period + pace.most) * (max(above, 0.0) / work + self.idle.watts)
                loose = ((begin == first) + (end == last)) * (self._facts.gauge or pace.period >= self._poll)
                variance += float(variances[end] - variances[begin])
                variance += 2 * self._end(self.idle.watts) ** 2 * (self._facts.kind == COUNTER) + loose * late**2
                joules += above
                seconds += length
        if not seconds:
            return Figure(None, None, "there was no work with readings", spent, covered, 0.0)
        width = math.hypot(
            NORMAL * math.sqrt(variance),
            NORMAL * self._rounding() * seconds,
            self.idle.half_width * seconds,
            NORMAL * self._facts.gain * joules,
        )
        if not width <= abs(joules):  # so that NaN is refused, too
            return Figure(None, None, _vague(joules, width), spent, covered, 0.0)
        return Figure(joules, width, "", spent, covered, 1.0)

    def _running(self) -> tuple[np.ndarray, np.ndarray]:
        """float64 [n] each: J up to each reading, and the variance of that: a reading of power stands for a period, and
        is off from the mean in it as readings differ from those before."""
        readings = self._readings
        if self._facts.kind == COUNTER:
            return readings.values, np.zeros(len(readings.values))
        values = np.nan_to_num(readings.values)
        apart, moves = np.diff(readings.times), np.diff(values)
        used = np.cumsum((values[1:] + values[:-1]) / 2 * apart)
        each = max(self._pace.period, self._poll)
        variances = np.cumsum(moves**2 * each**2 / 2) if math.isfinite(each) else np.full(len(moves), np.inf)
        return np.concatenate([[0.0], used]), np.concatenate([[0.0], variances])

    def _priced(self, phases: Sequence[str]) -> Figure:
        """An estimate's: all of it is work, and nobody knows how far off it is."""
        seconds = sum(float(self._readings.seconds[phase].sum()) for phase in phases)
        joules = float(self._readings.values[-1] - self._readings.values[0])
        return Figure(joules, None, "an estimate has no interval", seconds, 1.0, 0.0)

    def _unseen(self, what: str, alone: float = 0.0) -> str:
        pace, facts = self._pace, self._facts
        if not math.isfinite(pace.period):
            return f"the source changed too seldom to tell how often it is updated, so {what} is not told apart"
        after = 2 * pace.period + pace.most
        shown = (
            f"its readings tell of the {max(after, self._poll):.3g} s before them"
            if facts.gauge
            else (f"it was read every {self._poll:.3g} s")
        )
        some = f" for more than {alone:.0%} of its time" if alone else " for long enough"
        return f"{shown}, and {what} did not last alone{some}"


def _vague(joules: float, width: float) -> str:
    return f"{joules:.3g} ± {width:.2g} J is more uncertain than it is large"
