"""Repetitions of the same steps: each counts by the steps that it took, and with a target each begins where all do."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from sensors import RaplTree, Span, World

from fedspzo.broker.rounds import adaptive, promise
from fedspzo.broker.rounds.job import Job, check_job, plan_round
from fedspzo.broker.rounds.methods import SIMULATED, choose_method
from fedspzo.broker.simulation.first_order import ALGORITHMS
from fedspzo.broker.simulation.gradient import Backpropagation
from fedspzo.device_runtime.data.store import DataStore
from fedspzo.device_runtime.energy.estimate import Estimate
from fedspzo.device_runtime.energy.figures import Figure, student
from fedspzo.device_runtime.energy.meter import Meter
from fedspzo.device_runtime.energy.rapl import find_rapl
from fedspzo.device_runtime.energy.readings import Pace, Readings
from fedspzo.device_runtime.energy.source import COUNTER, Facts
from fedspzo.device_runtime.engines.protocol import create_engine
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.platform.profiling import IDLE, OTHER, PERTURB, PhaseTimer
from fedspzo.device_runtime.protocol.entry import Contribution, Entry
from fedspzo.device_runtime.replica.weights import Replica
from fedspzo.device_runtime.step.estimator import measure
from fedspzo.device_runtime.step.runner import Forward
from fedspzo.energy.measure import SMOOTH, Course, Taken, take_course
from fedspzo.energy.plot import plot_account
from fedspzo.energy.repeat import Repeated, Repetitions, repeat, to_target
from fedspzo.energy.report import account_lines, describe_account, target_lines
from fedspzo.energy.series import series_table
from fedspzo.energy.steps import ForwardSteps, GradientSteps

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
    work = Estimate(readings, facts, pace).work()
    account = SimpleNamespace(work=work, phases={}, readings=readings, facts=facts, pace=pace)
    return repeat(account, steps, bounds).step  # type: ignore[arg-type]


@pytest.mark.parametrize("steps", [(20, 20, 20, 20, 5), (20, 12, 20, 15), (5,)])
def test_each_counts_by_its_own_steps(steps: Sequence[int]) -> None:
    told = repeated(steps)
    assert told.joules == pytest.approx(STEP_J, rel=0.02)
    assert told.half_width < 0.1 * STEP_J
    assert told.each == pytest.approx([STEP_J] * (len(steps) - (steps[-1] == 5)), rel=0.02)


def test_phases_have_the_scatter_of_repetitions_too(tmp_path: Path) -> None:
    """Four repetitions of two steps: what a phase takes differs from one to the next by far more than it is read."""
    watts = 6.0, 5.0, 7.0, 6.0
    world = World(RaplTree(tmp_path))
    source = find_rapl(tmp_path, lambda: world.now)
    assert not isinstance(source, str)
    meter = Meter(source, world.timer)
    meter.sample()
    waits = [(world.now, world.now + IDLE_S)]
    world.live([Span(IDLE_S, IDLE, IDLE_W)], meter.sample)
    for power in watts:
        world.live([Span(10.0, PERTURB, power), Span(20.0, OTHER, 9.0)] * 2, meter.sample)
        waits.append((world.now, world.now + IDLE_S))
        world.live([Span(IDLE_S, IDLE, IDLE_W)], meter.sample)
    account = meter.account()
    bounds = [(before[0], after[1]) for before, after in itertools.pairwise(waits)]
    told = repeat(account, (2,) * 4, bounds)
    changing, steady = told.phases[PERTURB], told.phases[OTHER]
    assert changing.each == pytest.approx([10.0 * (power - IDLE_W) for power in watts], rel=0.03)
    assert changing.joules == pytest.approx(40.0, rel=0.02)
    assert changing.half_width == pytest.approx(student(3) * np.std(changing.each, ddof=1) / 2, rel=0.1)
    assert steady.half_width < 0.06 * 140.0 < changing.half_width
    assert told.step.joules == pytest.approx(180.0, rel=0.02)
    rows = {line.split()[0]: line.split() for line in account_lines(account, 8, told)}
    assert rows[PERTURB][1:6] == [
        f"{changing.joules:.4g}",
        f"{changing.half_width:.2g}",
        "22.2%",
        "±",
        rows[PERTURB][5],
    ]
    assert float(rows[PERTURB][5].rstrip("%")) > 5.0
    described = describe_account(account, (2,) * 4, told)["phases"][PERTURB]["per_step"]
    assert described["half_width"] == changing.half_width
    once = repeat(account, (8,), [(bounds[0][0], bounds[-1][1])])
    assert "--repeat 5" in once.phases[PERTURB].reason
    assert "--repeat 5" in "".join(account_lines(account, 8, once))


@pytest.fixture(scope="module")
def job(bundle: Bundle) -> Job:
    return check_job(Job(fanouts=(1, 4), split=(3,), scales=(0.25, 1.0), learning_rates=(1e-3, 1e-2), sides=2), bundle)


def test_with_a_target_each_begins_with_the_same_weights(bundle: Bundle, store: DataStore, job: Job) -> None:
    forward = Forward(create_engine("litert"), Replica(bundle), PhaseTimer())
    steps = ForwardSteps(job, forward, store)
    taken = take_course(Course(0.01, SMOOTH + 2, 2), steps, forward.recorder, lambda: None, 1.0, target=1e9)
    assert taken.steps == (SMOOTH, SMOOTH)
    assert taken.losses[:SMOOTH] == taken.losses[SMOOTH:]
    assert len(set(taken.losses)) > 1
    assert len(taken.bounds) == 2 * SMOOTH


def test_steps_are_those_of_a_simulation_with_one_device(bundle: Bundle, store: DataStore, job: Job) -> None:
    """The rounds of a job whose one device has these examples, one step each, at a constant rate."""
    steps = ForwardSteps(job, Forward(create_engine("litert"), Replica(bundle), PhaseTimer()), store)
    losses = [steps.take(number) for number in (1, 2, 3)]
    forward = Forward(create_engine("litert"), Replica(bundle))
    for number, loss in enumerate(losses, 1):
        plan = plan_round(replace(job, final_rate=1.0), number)
        found = measure(forward, store, plan, "energy")
        assert found.loss == loss
        forward.weights.apply(Entry(plan, (Contribution("", 1.0, found.scalars),)))
    steps.restart()
    assert steps.take(1) == losses[0]


def test_steps_adapt_as_those_of_a_job_do(bundle: Bundle, store: DataStore) -> None:
    """The rates of a job that says nothing follow what it measures; without that they are far off."""
    job = check_job(Job(final_rate=1.0), bundle)
    assert job.adapt
    steps = ForwardSteps(job, Forward(create_engine("litert"), Replica(bundle), PhaseTimer()), store)
    losses = [steps.take(number) for number in (1, 2, 3)]
    forward, pace = Forward(create_engine("litert"), Replica(bundle)), adaptive.Pace(job, ())
    for number, loss in enumerate(losses, 1):
        plan = pace.plan(number)
        found = measure(forward, store, plan, "energy")
        assert found.loss == loss
        entry = promise.bound(Entry(plan, (Contribution("", 1.0, found.scalars),)))
        forward.weights.apply(entry)
        pace.follow(entry)
    steps.restart()
    assert steps.take(1) == losses[0]


def test_backpropagation_takes_steps_too(bundle: Bundle, store: DataStore) -> None:
    job = check_job(Job(**choose_method("fedadam", SIMULATED)[1]), bundle)
    steps = GradientSteps(job, ALGORITHMS["fedadam"], Backpropagation(bundle), store)
    first = [steps.take(number) for number in range(1, 40)]
    assert np.mean(first[-8:]) < np.mean(first[:8])
    assert steps.flops > 0
    steps.restart()
    assert steps.take(1) == first[0]


def test_joules_to_a_loss() -> None:
    told = repeated((20, 20))
    losses = tuple(np.linspace(2.0, 1.0, 20))
    taken = Taken((20, 20), (), 0.0, losses * 2, ())
    reached = to_target(told, taken, 1.2)
    assert reached.steps == 20
    assert reached.joules == pytest.approx(20 * STEP_J, rel=0.02)
    assert reached.half_width == pytest.approx(20 * told.half_width)
    assert reached.joules_a_point == pytest.approx(reached.joules / reached.fell)
    assert f"reached 1.2 in 20 steps, which took {reached.joules:.4g} ±" in "".join(target_lines(reached))
    assert to_target(told, taken, 0.9).joules is None
    assert "did not reach 0.9" in "".join(target_lines(to_target(told, taken, 0.9)))
    assert reached.fell_half_width < reached.fell
    relative = reached.joules_a_point_half_width / reached.joules_a_point
    most = reached.fell_half_width / (reached.fell - reached.fell_half_width)
    assert relative == pytest.approx(np.hypot(told.half_width / told.joules, most))
    assert f"{reached.joules_a_point:.4g} ± {reached.joules_a_point_half_width:.2g} J a point" in "".join(
        target_lines(reached)
    )


def test_an_estimate_of_joules_to_a_loss_is_called_one() -> None:
    taken = Taken((20, 20), (), 0.0, tuple(np.linspace(2.0, 1.0, 20)) * 2, ())
    guess = Repeated(45.0, None, (), "an estimate has no interval")
    said = "".join(target_lines(to_target(guess, taken, 1.2, measured=False)))
    assert "which took by ESTIMATE 900 J (an estimate has no interval)" in said
    assert "by ESTIMATE 1425 J a point" in said
    assert said.count("±") == 1, "of the loss alone"


def test_what_is_not_known_of_a_loss_says_why() -> None:
    taken = Taken((20, 20), (), 0.0, tuple(np.linspace(2.0, 1.0, 20)) * 2, ())
    silent = to_target(Repeated(None, None, (), "the idle power is not known"), taken, 1.2)
    assert "what that took is not known: the idle power is not known" in "".join(target_lines(silent))
    noisy = Taken((20, 20), (), 0.0, (1.0, 1.1) * 20, ())
    flat = to_target(repeated((20, 20)), noisy, 1.2)
    assert flat.joules_a_point is None
    assert "a point of loss has no price" in "".join(target_lines(flat))


@pytest.mark.parametrize("measured", [True, False])
def test_a_series_of_estimates_has_no_intervals(measured: bool, tmp_path: Path) -> None:
    readings = Readings(np.arange(9.0), np.arange(9.0) * 5, {OTHER: np.ones(9)})
    facts = Facts(COUNTER, 1e-3, 1e-3, 0.02, "all", gauge=False, measured=measured)
    account = SimpleNamespace(
        readings=readings, facts=facts, pace=Pace(1e-3), source="rapl", idle=Estimate(readings, facts, Pace(1e-3)).idle,
        phases={}, work=Figure(40.0, 1.0 if measured else None, "", 8.0, 1.0, 1.0),
    )  # fmt: skip
    account.idle = replace(account.idle, watts=0.0, half_width=0.0)
    table = series_table(account, [(0.0, 4.0), (4.0, 8.0)], [1.0, 1.0])  # type: ignore[arg-type]
    assert (table["half of its 95 % interval"] == [None, None]) != measured
    assert ("joules above idle" in table) == measured
    step = Repeated(40.0, 1.0 if measured else None, (), "")
    plot_account(tmp_path / "power.svg", account, Repetitions(step, {}))  # type: ignore[arg-type]
    drawn = (tmp_path / "power.svg").read_text()
    assert ("95 % intervals" in drawn, "ESTIMATE" in drawn) == (measured, not measured)
    assert ("LineCollection" in drawn) == measured
