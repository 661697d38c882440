"""What a step takes by repetitions of the same steps: their mean, with an interval that has their scatter in it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedspzo.device_runtime.energy.estimate import Estimate
from fedspzo.device_runtime.energy.figures import student
from fedspzo.device_runtime.energy.meter import Account
from fedspzo.device_runtime.energy.readings import Readings
from fedspzo.energy.measure import SMOOTH, Taken


@dataclass(frozen=True)
class Repeated:
    """Joules of a step above idle.

    Attributes:
        joules, half_width: the mean, and half of its 95 % interval; None where it is not known.
        each: by repetition; empty where they are not told apart.
        reason: why there are no joules or no interval, or why the interval has no scatter of repetitions in it.
    """

    joules: float | None
    half_width: float | None
    each: tuple[float, ...]
    reason: str


@dataclass(frozen=True)
class Reached:
    """What it took to reach a loss, in each repetition alike.

    Attributes:
        loss: the target.
        steps: to it; None where it was not reached.
        joules, half_width: above idle, and half of the 95 % interval; None where it was not reached or is not known.
        fell, fell_half_width: from the mean loss of the first steps to that of the last, by the scatter of both.
        joules_a_point, joules_a_point_half_width: for a fall by 1; None where they are not known.
        reason: why joules, a point's joules or their intervals are not known, as a clause; else "".
        measured: whether they are, or are an estimate.
    """

    loss: float
    steps: int | None
    joules: float | None
    half_width: float | None
    fell: float
    fell_half_width: float
    joules_a_point: float | None
    joules_a_point_half_width: float | None
    reason: str
    measured: bool


def to_target(repeated: Repeated, taken: Taken, target: float, measured: bool = True) -> Reached:
    """What repetitions took that start from the same weights, and so take the same steps."""
    steps = taken.steps[0]
    ends = taken.losses[:SMOOTH], taken.losses[:steps][-SMOOTH:]
    first, last = map(statistics.fmean, ends)
    fell, scatter = first - last, math.sqrt(sum(statistics.pvariance(some) / max(len(some) - 1, 1) for some in ends))
    scatter *= student(2 * SMOOTH - 2)
    if steps < SMOOTH or last > target:
        return Reached(target, None, None, None, fell, scatter, None, None, "it was not reached", measured)
    joules = None if repeated.joules is None else repeated.joules * steps
    width = None if repeated.half_width is None else repeated.half_width * steps
    reason = repeated.reason if joules is None or width is None else ""
    if joules is None or fell <= scatter:
        reason = reason or "a point of loss has no price, as it fell by no more than it scatters"
        return Reached(target, steps, joules, width, fell, scatter, None, None, reason, measured)
    point = joules / fell
    point_width = None if width is None else math.hypot(width / fell, point * scatter / fell)
    return Reached(target, steps, joules, width, fell, scatter, point, point_width, reason, measured)


def repeat(account: Account, steps: Sequence[int], repetitions: Sequence[tuple[float, float]]) -> Repeated:
    """What a step takes.

    Args:
        steps: of each repetition.
        repetitions: when each began and ended, with the idle times around it, by the clock of the readings; one that
            was cut short, with less than half of the steps of the longest, does not count.
    """
    work = account.work
    if work.joules is None or not sum(steps):
        return Repeated(None, None, (), work.reason or "no step was taken")
    seen = sum(steps) * work.covered
    joules = work.joules / seen
    if work.half_width is None:
        return Repeated(joules, None, (), work.reason)
    width = work.half_width / seen
    whole = [(taken, bounds) for taken, bounds in zip(steps, repetitions, strict=False) if 2 * taken >= max(steps)]
    if len(whole) < 2:
        return Repeated(joules, width, (), "± is of one measurement: --repeat 5 shows what repetitions differ by")
    figures = [Estimate(_between(account.readings, *bounds), account.facts, account.pace).work() for _, bounds in whole]
    each = tuple(
        figure.joules / figure.covered / taken
        for (taken, _), figure in zip(whole, figures, strict=True)
        if figure.joules is not None and figure.covered
    )
    if len(each) < len(figures):
        why = next(figure.reason for figure in figures if figure.joules is None or not figure.covered)
        return Repeated(joules, width, (), f"± has no scatter of repetitions, which the source does not resolve: {why}")
    scatter = student(len(each) - 1) * statistics.stdev(each) / math.sqrt(len(each))
    return Repeated(statistics.fmean(each), math.hypot(scatter, width), each, "")


def _between(readings: Readings, begin: float, end: float) -> Readings:
    """Those of a repetition; what was done before the first of them is not of it."""
    first, stop = np.searchsorted(readings.times, [begin - 1e-6, end + 1e-6])
    seconds = {name: spent[first:stop].copy() for name, spent in readings.seconds.items()}
    for spent in seconds.values():
        spent[:1] = 0.0
    return Readings(readings.times[first:stop], readings.values[first:stop], seconds)
