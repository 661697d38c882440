"""Joules of gauges that are slow, late and coarse: the stated 95 % interval holds the truth, or no figure is given."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from gauges import GAUGES, PHASES, Run, draw_losses, draw_repetitions, draw_run

from fedspzo.device_runtime.energy.estimate import Estimate
from fedspzo.device_runtime.energy.figures import Figure, student
from fedspzo.device_runtime.energy.readings import MOST, History, Readings, learn_pace, learn_step
from fedspzo.device_runtime.energy.source import COUNTER, Facts
from fedspzo.device_runtime.energy.timeline import Tick, Timeline, settle
from fedspzo.device_runtime.errors import EnergyError
from fedspzo.device_runtime.platform.profiling import IDLE, PhaseTimer
from fedspzo.energy.measure import SMOOTH, Course, take_course
from fedspzo.energy.repeat import Reached, Repeated, repeat, to_target
from fedspzo.energy.report import stated_idle
from fedspzo.energy.series import series_table

#: The share of figures whose interval must hold the truth, and the widest half of one where phases last long.
LEAST, WIDEST = 0.92, 0.15


def account_of(run: Run) -> SimpleNamespace:
    """What :class:`fedspzo.device_runtime.energy.meter.Meter` makes of readings."""
    facts = replace(run.facts, resolution=learn_step(run.readings, run.facts))
    pace = learn_pace(run.readings, facts)
    estimate = Estimate(run.readings, facts, pace)
    phases = {phase: estimate.phase(phase) for phase in PHASES}
    return SimpleNamespace(
        readings=run.readings, facts=facts, pace=pace, idle=estimate.idle, work=estimate.work(), phases=phases
    )


def judge(counts: Counter[str], what: str, figure: Figure | Repeated | Reached, truth: float) -> None:
    """Count a figure as told, which holds the truth or not, or as refused."""
    if figure.joules is None or figure.half_width is None:
        assert figure.reason
        counts[f"{what} refused"] += 1
        return
    counts[f"{what} told"] += 1
    counts[f"{what} held"] += abs(figure.joules - truth) <= figure.half_width
    counts[f"{what} wide"] += figure.half_width > WIDEST * figure.joules


def tell(name: str, seed: int, long: bool, steps: bool = False) -> Counter[str]:
    """Of a run: how many figures of the work and of phases were told, held the truth, were refused, were too wide."""
    run = draw_run(GAUGES[name], np.random.default_rng(seed), long, steps=steps)
    account = account_of(run)
    idle = stated_idle(account)  # type: ignore[arg-type]
    counts: Counter[str] = Counter()
    judge(counts, "idle", Repeated(idle.watts, idle.half_width, (), idle.reason), run.truth[IDLE])
    judge(counts, "work", account.work, run.truth["work"])
    for phase, figure in account.phases.items():
        judge(counts, "phase", figure, run.truth[phase])
    series = series_table(account, run.bounds, [0.0] * len(run.bounds))  # type: ignore[arg-type]
    for joules, width, truth in zip(
        series["joules above idle"], series["half of its 95 % interval"], run.each, strict=True
    ):
        judge(counts, "series", Repeated(joules, width, (), "too short"), truth)
    return counts


class Descent:
    """:class:`fedspzo.energy.steps.Steps` whose losses are drawn."""

    flops = 0

    def __init__(self, losses: np.ndarray) -> None:
        self._losses = losses

    def take(self, number: int) -> float:
        return float(self._losses[number - 1])

    def restart(self) -> None:
        pass


def tell_repetitions(name: str, seed: int, long: bool) -> Counter[str]:
    """The same of a step and its phases by repetitions, and of what a loss took.

    With the scatter of repetitions an interval holds what a step is expected to take, without it what those took.
    """
    random = np.random.default_rng(seed)
    drawn, (losses, _, target) = draw_repetitions(GAUGES[name], random, long), draw_losses(random)
    once = take_course(Course(0.0, len(losses), 1), Descent(losses), PhaseTimer(), lambda: None, 1.0, target)
    steps, repeats = once.steps[0], len(drawn.bounds)
    taken = replace(once, steps=(steps,) * repeats, losses=once.losses * repeats)
    told = repeat(account_of(drawn.run), taken.steps, drawn.bounds)  # type: ignore[arg-type]
    reached = to_target(told.step, taken, target)
    counts: Counter[str] = Counter()
    for phase, each in (("work", told.step), *told.phases.items()):
        truth = drawn.expected[phase] if each.each else drawn.run.truth[phase] / repeats
        judge(counts, "work" if phase == "work" else "phase", each, truth / steps)
    if reached.steps:
        judge(counts, "loss", reached, drawn.expected["work"] if told.step.each else drawn.run.truth["work"] / repeats)
    return counts


def tell_price(seed: int) -> Counter[str]:
    """The same of a point of loss, where it is known what a step takes."""
    losses, level, target = draw_losses(np.random.default_rng(seed))
    taken = take_course(Course(0.0, len(losses), 1), Descent(losses), PhaseTimer(), lambda: None, 1.0, target)
    reached = to_target(Repeated(1.0, 0.01, (), ""), taken, target)
    counts: Counter[str] = Counter()
    if reached.steps:
        point = Repeated(reached.joules_a_point, reached.joules_a_point_half_width, (), reached.reason)
        fell = level[:SMOOTH].mean() - level[reached.steps - SMOOTH : reached.steps].mean()
        judge(counts, "point", point, reached.steps / fell if fell else np.inf)
    return counts


def tell_stated(seed: int, wrong: bool) -> Counter[str]:
    """The same of a meter's log at a stated offset, where the edges of the work tell one; and how many contradicted."""
    random = np.random.default_rng(seed)
    run = draw_run(GAUGES["meter's log"], random, seed % 2 == 0, steps=seed % 3 == 0)
    assert run.log
    moments = zip(run.readings.times, *run.readings.seconds.values(), strict=True)
    ticks = [Tick(float(at), {(0, name): s for name, s in zip(run.readings.seconds, spent, strict=True) if s})
             for at, *spent in moments]  # fmt: skip
    off = random.choice([-1, 1]) * max(run.log.period, 1.0) * np.exp(random.uniform(-1, 4)) * wrong
    counts: Counter[str] = Counter()
    try:
        account = settle(Timeline((1,), ticks), run.log, run.offset + off)
    except EnergyError as error:
        counts[error.kind] += 1
        return counts
    if "cannot tell" not in account.facts.remarks[0]:
        judge(counts, "stated", account.work, run.truth["work"])
        for phase, figure in account.phases.items():
            judge(counts, "stated", figure, run.truth[phase])
    return counts


def check_stated(seeds: range, least: float) -> None:
    right = sum((tell_stated(seed, wrong=False) for seed in seeds), Counter())
    wrong = sum((tell_stated(seed, wrong=True) for seed in seeds), Counter())
    assert right["energy.offset-contradicted"] == 0
    assert wrong["energy.offset-contradicted"] > len(seeds) / 4
    for counts in (right, wrong):
        assert counts["stated held"] >= least * counts["stated told"]


def check_repetitions(name: str, seeds: range, least: float) -> None:
    long = sum((tell_repetitions(name, seed, True) for seed in seeds[::2]), Counter())
    counts = sum((tell_repetitions(name, seed, False) for seed in seeds[1::2]), long.copy())
    assert not long["work refused"] + long["phase refused"], "what lasts ten periods is told"
    for what in ("work", "phase", "loss"):
        assert counts[f"{what} held"] >= least * counts[f"{what} told"], what


def check(name: str, seeds: range, least: float) -> None:
    long = sum((tell(name, seed, True) for seed in seeds[::2]), Counter())
    short = sum((tell(name, seed, False) for seed in seeds[1::2]), Counter())
    assert not long["work refused"] + long["phase refused"], "what lasts ten periods is told"
    assert not long["work wide"] + long["phase wide"]
    for what in ("idle", "work", "phase", "series"):
        assert long[f"{what} held"] >= least * long[f"{what} told"]
        assert short[f"{what} held"] >= least * short[f"{what} told"]


@pytest.mark.parametrize("name", GAUGES)
def test_intervals_hold_the_truth(name: str) -> None:
    check(name, range(40), 0.8)


def check_steps(name: str, seeds: range, least: float) -> None:
    counts = sum((tell(name, seed, False, steps=True) for seed in seeds), Counter())
    for what in ("idle", "work", "phase", "series"):
        assert counts[f"{what} held"] >= least * counts[f"{what} told"]


@pytest.mark.parametrize("name", GAUGES)
def test_intervals_hold_the_truth_of_steps_with_phases_too_short_to_be_told(name: str) -> None:
    check_steps(name, range(40), 0.9)


@pytest.mark.parametrize("name", GAUGES)
def test_intervals_of_repetitions_hold_what_is_expected(name: str) -> None:
    check_repetitions(name, range(16), 0.8)


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


def check_price(seeds: range, least: float) -> None:
    counts = sum((tell_price(seed) for seed in seeds), Counter())
    assert counts["point held"] >= least * counts["point told"]
    assert counts["point told"] > len(seeds) / 10


def test_intervals_of_a_point_of_loss_hold_the_truth() -> None:
    check_price(range(150), LEAST)


def test_a_wrong_offset_gives_no_wrong_joules() -> None:
    check_stated(range(16), 0.85)


@pytest.mark.slow
@pytest.mark.parametrize("name", GAUGES)
def test_intervals_hold_the_truth_in_a_thousand_runs(name: str) -> None:
    check(name, range(1000), LEAST)


@pytest.mark.matrix
@pytest.mark.parametrize("name", GAUGES)
def test_intervals_hold_the_truth_of_steps_in_a_thousand_runs(name: str) -> None:
    check_steps(name, range(1000), LEAST)


@pytest.mark.matrix
@pytest.mark.parametrize("name", GAUGES)
def test_intervals_of_repetitions_hold_what_is_expected_in_a_thousand_runs(name: str) -> None:
    check_repetitions(name, range(1000), LEAST)


@pytest.mark.matrix
def test_intervals_of_a_point_of_loss_hold_the_truth_in_a_thousand_runs() -> None:
    check_price(range(1000), LEAST)


@pytest.mark.matrix
def test_a_wrong_offset_gives_no_wrong_joules_in_a_thousand_runs() -> None:
    check_stated(range(1000), LEAST)


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
        account = SimpleNamespace(readings=readings, facts=facts, pace=learn_pace(readings, facts), idle=estimate.idle)
        assert series_table(account, [(0.0, 50.0)], [1.0])["joules with idle"] == [None]  # type: ignore[arg-type]
