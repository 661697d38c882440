"""Joules of gauges that are slow, late and coarse: the stated 95 % interval holds the truth, or no figure is given."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from gauges import GAUGES, PHASES, draw_run

from fedspzo.device_runtime.energy.estimate import Estimate
from fedspzo.device_runtime.energy.figures import student
from fedspzo.device_runtime.energy.readings import MOST, History, Readings, learn_pace, learn_step
from fedspzo.device_runtime.energy.source import COUNTER, Facts
from fedspzo.device_runtime.platform.profiling import IDLE

#: The share of figures whose interval must hold the truth, and the widest half of one where phases last long.
LEAST, WIDEST = 0.92, 0.15


def tell(name: str, seed: int, long: bool, steps: bool = False) -> Counter[str]:
    """Of a run: how many figures of the work and of phases were told, held the truth, were refused, were too wide."""
    run = draw_run(GAUGES[name], np.random.default_rng(seed), long, steps=steps)
    facts = replace(run.facts, resolution=learn_step(run.readings, run.facts))
    estimate = Estimate(run.readings, facts, learn_pace(run.readings, facts))
    figures = {phase: estimate.phase(phase) for phase in PHASES} | {"work": estimate.work()}
    counts: Counter[str] = Counter()
    for phase, figure in figures.items():
        what = "work" if phase == "work" else "phase"
        if figure.joules is None or figure.half_width is None:
            assert figure.reason
            counts[f"{what} refused"] += 1
            continue
        counts[f"{what} told"] += 1
        counts[f"{what} held"] += abs(figure.joules - run.truth[phase]) <= figure.half_width
        counts[f"{what} wide"] += figure.half_width > WIDEST * figure.joules
    return counts


def check(name: str, seeds: range, least: float) -> None:
    long = sum((tell(name, seed, True) for seed in seeds[::2]), Counter())
    short = sum((tell(name, seed, False) for seed in seeds[1::2]), Counter())
    assert not long["work refused"] + long["phase refused"], "what lasts ten periods is told"
    assert not long["work wide"] + long["phase wide"]
    for what in ("work", "phase"):
        assert long[f"{what} held"] >= least * long[f"{what} told"]
        assert short[f"{what} held"] >= least * short[f"{what} told"]


@pytest.mark.parametrize("name", GAUGES)
def test_intervals_hold_the_truth(name: str) -> None:
    check(name, range(40), 0.8)


@pytest.mark.parametrize("name", GAUGES)
def test_intervals_hold_the_truth_of_steps_with_phases_too_short_to_be_told(name: str) -> None:
    counts = sum((tell(name, seed, False, steps=True) for seed in range(40)), Counter())
    for what in ("work", "phase"):
        assert counts[f"{what} held"] >= 0.9 * counts[f"{what} told"]


def test_what_comes_between_two_times_of_a_phase_counts_once() -> None:
    """A counter read once a second, and 0.1 s of something else after each 3.4 s of a phase."""
    lengths = [30.0, *[3.4, 0.1] * 40, 30.0]
    names = [IDLE, *["perturb", "apply"] * 40, IDLE]
    watts = {IDLE: 2.0, "perturb": 17.0, "apply": 4.0}
    starts = np.concatenate([[0.0], np.cumsum(lengths)])
    joules = np.concatenate([[0.0], np.cumsum([n * watts[name] for n, name in zip(lengths, names, strict=True)])])
    times = np.arange(0.0, starts[-1])
    seconds = {name: np.zeros(len(times)) for name in watts}
    for start, stop, name in zip(starts[:-1], starts[1:], names, strict=True):
        seconds[name] += np.diff(np.clip(times, start, stop), prepend=0.0 if start == 0 else start)
    readings = Readings(times, np.interp(times, starts, joules), seconds)
    facts = Facts(COUNTER, 2.0**-14, 1e-3, 0.02, "all", gauge=False)
    estimate = Estimate(readings, facts, learn_pace(readings, facts))
    figure = estimate.phase("perturb")
    assert figure.joules == pytest.approx(40 * 3.4 * 15.0, rel=0.01)
    assert figure.half_width < 0.1 * figure.joules
    assert figure.alone < 1.0
    assert estimate.phase("apply").joules is None


@pytest.mark.slow
@pytest.mark.parametrize("name", GAUGES)
def test_intervals_hold_the_truth_in_a_thousand_runs(name: str) -> None:
    check(name, range(1000), LEAST)


def test_student_is_wider_with_few() -> None:
    assert student(1) == 12.706
    assert [student(n) for n in range(1, 60)] == sorted((student(n) for n in range(1, 60)), reverse=True)
    assert student(100) == pytest.approx(1.984, abs=0.001)


def test_a_long_history_is_thinned() -> None:
    history = History()
    for second in range(3 * MOST):
        history.add(float(second), 2.0 * second, {(1, "perturb"): 1.0})
    readings = history.readings()
    assert len(readings.times) <= MOST
    assert readings.times[-1] == 3 * MOST - 1
    assert readings.seconds["perturb"].sum() == pytest.approx(3 * MOST)
    assert readings.values == pytest.approx(2 * readings.times)


def test_a_gauge_that_never_changes_tells_nothing() -> None:
    times = np.arange(100.0)
    seconds = {"idle": (times < 50).astype(float), "perturb": (times >= 50).astype(float)}
    run = draw_run(GAUGES["phone's charge"], np.random.default_rng(0), False)
    for kind in ("counter", "power"):
        facts = replace(run.facts, kind=kind)
        readings = Readings(times, np.full(100, 5.0), seconds)
        estimate = Estimate(readings, facts, learn_pace(readings, facts))
        assert estimate.work().joules is None
        assert "changed too seldom" in estimate.work().reason
