"""Repetitions of the same steps: each counts by the steps that it took, and with a target each begins where all do."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
import pytest

from fedspzo.device_runtime.data.store import DataStore
from fedspzo.device_runtime.energy.estimate import Estimate
from fedspzo.device_runtime.energy.readings import Pace, Readings
from fedspzo.device_runtime.energy.source import COUNTER, Facts
from fedspzo.device_runtime.engines.protocol import create_engine
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.platform.profiling import IDLE, OTHER, PhaseTimer
from fedspzo.device_runtime.protocol.plan import Block
from fedspzo.device_runtime.replica.weights import Replica
from fedspzo.device_runtime.step.runner import Forward
from fedspzo.energy.measure import SMOOTH, Course, take_course
from fedspzo.energy.repeat import Repeated, repeat

IDLE_S, STEP_S, IDLE_W, STEP_J = 30.0, 3.0, 2.0, 45.0


def repeated(steps: Sequence[int]) -> Repeated:
    """What is told of repetitions of so many steps of :data:`STEP_J` above idle."""
    lengths = [IDLE_S, *itertools.chain.from_iterable((taken * STEP_S, IDLE_S) for taken in steps)]
    ends = np.cumsum(lengths)
    times = np.arange(0.0, ends[-1] + 1)
    work = np.isin(np.searchsorted(ends, times - 0.5), range(1, len(lengths), 2)) & (times > 0)
    seconds = {OTHER: work.astype(float), IDLE: (~work & (times > 0)).astype(float)}
    readings = Readings(times, np.cumsum(IDLE_W + work * STEP_J / STEP_S), seconds)
    facts, pace = Facts(COUNTER, 2.0**-14, 1e-3, 0.02, "all", gauge=False), Pace(1e-3)
    starts = np.concatenate([[0.0], ends])
    bounds = [(float(starts[2 * at]), float(starts[2 * at + 3])) for at in range(len(steps))]
    account = SimpleNamespace(work=Estimate(readings, facts, pace).work(), readings=readings, facts=facts, pace=pace)
    return repeat(account, steps, bounds)  # type: ignore[arg-type]


@pytest.mark.parametrize("steps", [(20, 20, 20, 20, 5), (20, 12, 20, 15), (5,)])
def test_each_counts_by_its_own_steps(steps: Sequence[int]) -> None:
    told = repeated(steps)
    assert told.joules == pytest.approx(STEP_J, rel=0.02)
    assert told.half_width < 0.1 * STEP_J
    assert told.each == pytest.approx([STEP_J] * (len(steps) - (steps[-1] == 5)), rel=0.02)


def test_with_a_target_each_begins_with_the_same_weights(bundle: Bundle, store: DataStore) -> None:
    forward = Forward(create_engine("litert"), Replica(bundle), PhaseTimer())
    course = Course(
        0.01, SMOOTH + 2, 2, (Block(3, 1, 0.25, 1e-3), Block(5, 4, 1.0, 1e-2)), 2, 1e-3, bundle.manifest.batch
    )
    taken = take_course(course, forward, store, forward.recorder, lambda: None, 1.0, target=1e9)
    assert taken.steps == (SMOOTH, SMOOTH)
    assert taken.losses[:SMOOTH] == taken.losses[SMOOTH:]
    assert len(set(taken.losses)) > 1
    assert len(taken.bounds) == 2 * SMOOTH
