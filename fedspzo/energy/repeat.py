"""What a step takes by repetitions of the same steps: their mean, with an interval that has their scatter in it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fedspzo.device_runtime.energy.estimate import Estimate
from fedspzo.device_runtime.energy.figures import Figure, student
from fedspzo.device_runtime.energy.meter import Account
from fedspzo.device_runtime.energy.readings import Readings
from fedspzo.energy.measure import SMOOTH, Taken
from fedspzo.energy.price import DEAR, find_fall, find_price


@dataclass(frozen=True)
class Repeated:
    """Joules above idle of a step, or of a phase of it.

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
class Repetitions:
    """What a ``step`` takes, and its ``phases`` by name."""

    step: Repeated
    phases: Mapping[str, Repeated]


@dataclass(frozen=True)
class Reached:
    """What it took to reach a loss, in each repetition alike.

    Attributes:
        loss: the target.
        steps: to it; None where it was not reached.
        joules, half_width: above idle, and half of the 95 % interval; None where it was not reached or is not known.
        fell, fell_half_width: from the mean loss of the first steps to that of the last, by the scatter of both, and by
            how often it was asked whether the target was reached; no interval where there was but one step.
        joules_a_point, joules_a_point_half_width: for a fall by 1; None where they are not known.
        reason: why joules, a point's joules or their intervals are not known, as clauses; else "".
        measured: whether they are, or are an estimate.
    """

    loss: float
    steps: int | None
    joules: float | None
    half_width: float | None
    fell: float
    fell_half_width: float | None
    joules_a_point: float | None
    joules_a_point_half_width: float | None
    reason: str
    measured: bool


def to_target(repeated: Repeated, taken: Taken, target: float, measured: bool = True) -> Reached:
    """What repetitions took that start from the same weights, and so take the same steps."""
    steps = taken.steps[0]
    losses = taken.losses[:steps]
    fall = find_fall(losses, min(SMOOTH, steps), max(steps - SMOOTH, 0) + 1)
    if steps < SMOOTH or not statistics.fmean(losses[-SMOOTH:]) <= target:  # so that NaN has not reached it, too
        return Reached(target, None, None, None, *fall, None, None, "it was not reached", measured)
    if repeated.joules is None:
        return Reached(target, steps, None, None, *fall, None, None, repeated.reason, measured)
    joules = repeated.joules * steps
    width = None if repeated.half_width is None else repeated.half_width * steps
    price = find_price(joules, width, fall)
    reasons = [repeated.reason] * (width is None) + [DEAR] * (price[0] is None)
    return Reached(target, steps, joules, width, *fall, *price, "; ".join(reasons), measured)


def repeat(account: Account, steps: Sequence[int], repetitions: Sequence[tuple[float, float]]) -> Repetitions:
    """What a step takes.

    Args:
        steps: of each repetition.
        repetitions: when each began and ended, with the idle times around it, by the clock of the readings; one that
            was cut short, with less than half of the steps of the longest, does not count.
    """
    whole = [(taken, bounds) for taken, bounds in zip(steps, repetitions, strict=False) if 2 * taken >= max(steps)]
    counted = [taken for taken, _ in whole]
    apart = [
        Estimate(_between(account.readings, *bounds), account.facts, account.pace)
        for _, bounds in whole
        if account.facts.measured
    ]
    phases = {
        name: _combine(figure, sum(steps), counted, [one.phase(name) for one in apart])
        for name, figure in account.phases.items()
    }
    return Repetitions(_combine(account.work, sum(steps), counted, [one.work() for one in apart]), phases)


def _combine(figure: Figure, steps: int, counted: Sequence[int], apart: Sequence[Figure]) -> Repeated:
    """The figure of all ``steps`` and those of single repetitions, by the steps of each, as that of one step."""
    if figure.joules is None or not steps or not figure.covered:
        return Repeated(None, None, (), figure.reason or "no step was taken")
    seen = steps * figure.covered
    joules = figure.joules / seen
    if figure.half_width is None:
        return Repeated(joules, None, (), figure.reason)
    width = figure.half_width / seen
    if len(apart) < 2:
        return Repeated(joules, width, (), "± is of one measurement: --repeat 5 shows what repetitions differ by")
    each = tuple(
        one.joules / one.covered / taken
        for taken, one in zip(counted, apart, strict=True)
        if one.joules is not None and one.covered
    )
    if len(each) < len(apart):
        why = next(one.reason for one in apart if one.joules is None or not one.covered)
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
