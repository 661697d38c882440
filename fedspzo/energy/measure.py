"""Steps of the method on a device's examples, with an account of their energy."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from fedspzo.device_runtime.data.store import DataStore
from fedspzo.device_runtime.energy.sampler import Sampler
from fedspzo.device_runtime.platform.profiling import APPLY, IDLE, OTHER, PhaseTimer
from fedspzo.device_runtime.protocol.entry import Contribution, Entry
from fedspzo.device_runtime.protocol.plan import Block, Plan
from fedspzo.device_runtime.replica.weights import Replica
from fedspzo.device_runtime.step.estimator import measure
from fedspzo.device_runtime.step.runner import Forward


@dataclass(frozen=True)
class Course:
    """What is measured: seconds of idle time, then rounds of one step each, applied to the weights."""

    idle_seconds: float
    steps: int
    blocks: tuple[Block, ...]
    sides: int
    epsilon: float
    examples: int

    def plan(self, round: int) -> Plan:
        """The plan of a round, with directions of its own."""
        blocks, sides = self.blocks, self.sides
        return Plan(round, round, True, "rademacher", 1, self.examples, self.epsilon, blocks, 60.0, False, sides=sides)


def take_course(
    course: Course,
    forward: Forward[Replica],
    store: DataStore,
    timer: PhaseTimer,
    sample: Callable[[], None],
    interval: float,
) -> float:
    """Go through it, sampling at its edges and every ``interval`` seconds; returns sampling's share of the CPU time.

    A first step, which loads the graphs, is not measured.
    """
    measure(forward, store, course.plan(1), "energy")
    timer.take()
    with Sampler(sample, interval) as sampler:
        with timer.phase(IDLE):
            time.sleep(course.idle_seconds)
        sample()
        started = time.process_time()
        for round in range(1, course.steps + 1):
            timer.turn_to(round)
            with timer.phase(OTHER):
                _take_step(forward, store, course.plan(round))
        sample()
        spent = time.process_time() - started
    return sampler.cpu_seconds / spent if spent else 0.0


def _take_step(forward: Forward[Replica], store: DataStore, plan: Plan) -> None:
    measured = measure(forward, store, plan, "energy")
    with forward.recorder.phase(APPLY):
        forward.weights.apply(Entry(plan, (Contribution("", 1.0, measured.scalars),)))
