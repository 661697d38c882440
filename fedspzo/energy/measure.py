"""Takes the steps whose energy is measured, in repetitions, with idle times between."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fedspzo.device_runtime.energy.sampler import Sampler
from fedspzo.device_runtime.platform.profiling import IDLE, OTHER, PhaseTimer
from fedspzo.energy.steps import Steps

#: Steps whose mean loss is held against a target.
SMOOTH = 8


@dataclass(frozen=True)
class Course:
    """What is measured: idle time, steps, and idle time, several times.

    Attributes:
        idle_seconds: of each idle time: before the steps, between repetitions, and after the last.
        steps, repeats: steps of a repetition, and how many of these.
    """

    idle_seconds: float
    steps: int
    repeats: int


@dataclass(frozen=True)
class Taken:
    """A course that is over.

    Attributes:
        steps: of each repetition.
        repetitions: from the start of the idle time before each to the end of that after it, by the timer's clock.
        share: of the CPU time that went into sampling.
        losses: of each step.
        bounds: when each step began and ended.
    """

    steps: tuple[int, ...]
    repetitions: tuple[tuple[float, float], ...]
    share: float
    losses: tuple[float, ...]
    bounds: tuple[tuple[float, float], ...]


def take_course(
    course: Course,
    steps: Steps,
    timer: PhaseTimer,
    sample: Callable[[], None],
    interval: float,
    target: float | None = None,
) -> Taken:
    """Go through it, sampling at its edges and every ``interval`` seconds.

    With a ``target`` of the loss each repetition starts from the bundle's weights and goes no further than to it.
    A first step, which loads the graphs, is not measured.
    """
    steps.take(1)
    steps.restart()
    timer.take()
    started = time.process_time()
    losses: list[float] = []
    bounds: list[tuple[float, float]] = []
    taken: list[int] = []
    idles = []
    start = None if target is None else steps.restart
    with Sampler(sample, interval) as sampler:
        idles.append(_idle(course, timer, sample, start))
        for _ in range(course.repeats):
            began: list[float] = []
            done = len(losses)
            while len(began) < course.steps and not _reached(losses[done:], target):
                began.append(timer.clock())
                timer.turn_to(len(losses) + 1)
                number = len(began) if start else len(losses) + 1
                with timer.phase(OTHER):
                    losses.append(steps.take(number))
            bounds += itertools.pairwise([*began, timer.clock()])
            taken.append(len(began))
            sample()
            idles.append(_idle(course, timer, sample, start))
        spent = time.process_time() - started
    repetitions = tuple((before[0], after[1]) for before, after in itertools.pairwise(idles))
    share = sampler.cpu_seconds / spent if spent else 0.0
    return Taken(tuple(taken), repetitions, share, tuple(losses), tuple(bounds))


def _reached(losses: Sequence[float], target: float | None) -> bool:
    return target is not None and len(losses) >= SMOOTH and statistics.fmean(losses[-SMOOTH:]) <= target


def _idle(
    course: Course, timer: PhaseTimer, sample: Callable[[], None], start: Callable[[], None] | None
) -> tuple[float, float]:
    """When it began and ended; going back to the ``start`` takes far less than what it is a part of."""
    began = timer.clock()
    with timer.phase(IDLE):
        if start:
            start()
        time.sleep(course.idle_seconds)
    sample()
    return began, timer.clock()
