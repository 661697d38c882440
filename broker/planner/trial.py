"""Short simulated runs of proposals: which one learns most for its cost, and at what learning rates.

A formula from one step misjudges the rate of many by a factor, and cannot tell how far a block alone will get. So the
first proposals and the whole model perturbed at once run at several multiples of their rates, for a part of a horizon;
the best of them continue to its end, with two seeds. What counts are the operations until a loss that is held to the
end: rates that are too high look good early, and those that are too low look good at the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from fedspzo.broker.planner.profile import Profile
from fedspzo.broker.planner.propose import Proposal, make_job
from fedspzo.broker.rounds.job import Job
from fedspzo.broker.rounds.objective import find_objective
from fedspzo.broker.server.store import ServerStore
from fedspzo.broker.simulation.curve import Budget, Curve, draw_curve
from fedspzo.broker.simulation.driver import simulate
from fedspzo.broker.simulation.fleet import CALM, Fleet
from fedspzo.broker.simulation.workers import LocalWorkers, Work
from fedspzo.broker.simulation.zeroth_order import ZerothOrder
from fedspzo.device_runtime.data.store import subset
from fedspzo.device_runtime.engines.protocol import create_engine
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.replica.state import PREFIX
from fedspzo.device_runtime.replica.weights import Replica
from fedspzo.device_runtime.step.objectives import Known, Outputs, find_measure
from fedspzo.device_runtime.step.prefix_cache import Prefix, PrefixCache
from fedspzo.device_runtime.step.runner import Forward
from fedspzo.device_runtime.step.scores import predict

#: Examples that a run's loss is the mean of.
SAMPLE = 128
#: Points of a whole run's curve.
POINTS = 6
#: A run whose loss is that many times the loss at the start is over.
DIVERGED = 2.0
#: Proposals that are tried in addition to the whole model perturbed at once, and those of them that run to the end.
TRIED, FINALISTS = 4, 2
#: Multiples of the formula's rates to begin with; where the best is an outermost one, that many times another is added.
FACTORS, EXTENSIONS = (0.5, 1.0, 2.0), 1
#: Of runs to the end, whose worse one counts.
SEEDS = (0, 1)
#: Most rates that the best is run at.
MOST_RATES = 5
#: A first look rules out rates at which the loss is this many times the initial loss.
RULED_OUT = 1.07
#: The loss that runs are compared at: so much of the way to the best one.
DEPTH = 0.7
#: Share of the horizon for a first look.
LOOK = 1 / 3
#: Rounds at full cost of what a job does that says nothing, in a whole run: fewer show its first steps alone.
FEWEST_ROUNDS = 8
#: Factor on the best rates of the trial, to be safe with seeds and data that were not tried.
SAFE = 2**-0.25
#: How far a trial's runs go at most, in whole runs.
MOST_RUNS = 23
#: A run has learned something if it holds less than this share of the loss at the start.
LEARNED = 0.98


@dataclass(frozen=True)
class Tried:
    """A run of the trial.

    Attributes:
        proposal: as it ran, at its rates.
        factor: on the formula's rates.
        seed: of the run.
        curve: what came of it.
    """

    proposal: Proposal
    factor: float
    seed: int
    curve: Curve

    @property
    def held(self) -> float:
        """The worse of the last two losses; infinite if the run diverged."""
        worst = max(self.curve.losses[-2:])
        return worst if worst < DIVERGED * self.curve.losses[0] else math.inf

    @property
    def level(self) -> float:
        """The mean of the last two losses: of a loss that falls fast, the worse one says little."""
        return math.fsum(self.curve.losses[-2:]) / 2 if math.isfinite(self.held) else math.inf


@dataclass(frozen=True)
class TrialResult:
    """What a trial settles on.

    Attributes:
        proposal: the best, at safe rates.
        factor: on the formula's rates.
        best, whole: the runs of it (at the rates nearest to those) and of the whole model perturbed at once.
        tried: all runs.
        flops: that the trial took.
        gain: how many times fewer operations the proposal takes to the loss that the whole model holds at the end;
            infinite where it holds none below the start.
        added: what all losses have more than was measured.
    """

    proposal: Proposal
    factor: float
    best: Tried
    whole: Tried
    tried: Sequence[Tried]
    flops: float
    gain: float
    added: float

    @property
    def learned(self) -> bool:
        """Whether the best run held less than the loss at the start."""
        return self.best.held < LEARNED * self.best.curve.losses[0]


class _Runs:
    """Runs of one trial, each in a folder.

    A cost other than the loss may be negative, or next to zero. What is added makes it as large at the start as the
    root mean square of examples' costs, so that what is said of shares of a loss holds for it.

    Attributes:
        spent: operations of all runs so far, with those of their evaluation.
        added: to the costs.
    """

    def __init__(
        self, work: Work, horizon: float, profile: Profile, job: Job, folder: Path, tell: Callable[[float], None]
    ) -> None:
        self._tell = tell
        self._work, self._profile, self._job, self._folder = work, profile, job, folder
        self._budget = Budget(horizon, POINTS, DIVERGED)
        self._places: dict[tuple[Proposal, float, int], Path] = {}
        self._until: dict[tuple[Proposal, float, int], float] = {}
        self.tried: dict[tuple[Proposal, float, int], Tried] = {}
        self.spent = self.added = 0.0
        bundle = Bundle(work.bundle)
        self._devices = (shares := work.shares(bundle)).devices
        self._forward = Forward(create_engine(work.engine, work.threads), Replica(bundle))
        stores = [shares.of(device) for device in self._devices[:SAMPLE]]
        each = math.ceil(SAMPLE / len(stores))
        self._sample = [subset(store, store.sample(0, each)) for store in stores]
        objective = find_objective(job)
        self._measure = find_measure(objective, bundle.manifest.task)
        if objective is not None:
            costs = self._costs()
            self.added = float(np.sqrt(np.mean(costs**2)) - costs.mean())

    @property
    def start(self) -> float:
        """The loss before all runs."""
        return next(iter(self.tried.values())).curve.losses[0]

    def held(self, proposal: Proposal, factor: float, until: float, seed: int = 0) -> float:
        """The loss that a run holds."""
        return self.run(proposal, factor, until, seed).held

    def run(self, proposal: Proposal, factor: float, until: float, seed: int = 0) -> Tried:
        """A run until it has spent a share of the horizon; it is started or continued as necessary."""
        key = proposal, factor, seed
        run = self.tried.get(key)
        if run is None or (run.curve.flops[-1] < until * self._budget.flops and math.isfinite(run.held)):
            place = self._places.setdefault(key, self._folder / str(len(self._places)))
            scaled = proposal.at_rate(factor)
            job = replace(make_job(scaled, self._profile, self._job), seed=self._job.seed + seed)
            budget = replace(self._budget, least=job.cohort * self._profile.forward("flops", job.batch))
            curve = self._draw(job, place, until, budget, run.curve if run else None)
            self.tried[key] = Tried(scaled, factor, job.seed, curve)
            self._until[key] = until
            self._tell(math.fsum(self._until.values()))
        return self.tried[key]

    def cost(self, proposal: Proposal, factor: float, target: float) -> tuple[float, float]:
        """Operations until a loss that is held, and the loss at the end for those that do not; of the worse seed."""
        held = {seed: self.held(proposal, factor, 1.0, seed) for seed in SEEDS}
        return max((self.tried[proposal, factor, seed].curve.until(target), held[seed]) for seed in SEEDS)

    def _draw(self, job: Job, folder: Path, until: float, budget: Budget, curve: Curve | None) -> Curve:
        """Begin a run, or continue one, until it has spent a share of the horizon."""
        store, replica = ServerStore(folder, self._forward.weights.bundle.identity), self._forward.weights
        replica.restore(None)
        prefix = Prefix(self._forward, job.frozen, PrefixCache(self._folder / f"{PREFIX}-{job.frozen}"))
        training = ZerothOrder(job, store, LocalWorkers(self._work))

        def loss() -> float:
            training.advance(replica)
            return float(self._costs(prefix).mean()) + self.added

        rounds = simulate(job, Fleet(self._devices, CALM, job.seed), training)
        found = draw_curve(rounds, loss, budget, until, curve)
        self.spent += found.flops[-1] - (curve.flops[-1] if curve else 0.0)
        return found

    def _costs(self, prefix: Prefix | None = None) -> np.ndarray:
        """What the replica costs on each example of the sample."""
        before = self._forward.flops
        found = [
            self._measure(Outputs(*predict(self._forward, store, prefix)), Known.of(store, np.arange(len(store))))
            for store in self._sample
        ]
        self.spent += self._forward.flops - before
        return np.concatenate(found)


def search(
    work: Work,
    horizon: float,
    profile: Profile,
    job: Job,
    proposals: Sequence[Proposal],
    tell: Callable[[float], None] = lambda runs: None,
) -> TrialResult:
    """Try the first proposals and the whole model perturbed at once, and settle on one at safe rates.

    Args:
        work: the bundle, the engine and the devices' examples.
        horizon: operations of all devices in a whole run.
        job: what the proposals do not say: cohort, seed, and so on; its rounds do not matter.
        proposals: best first, the whole model among them.
        tell: told how far the runs are, in whole runs; :data:`MOST_RUNS` at the end, or less.

    Raises:
        PlanError: a proposal does not fit the bundle.
    """
    whole = next(proposal for proposal in proposals if proposal.whole)
    others = [proposal for proposal in proposals if not proposal.whole][:TRIED] or [whole]
    with TemporaryDirectory(prefix="fedspzo-") as folder:
        runs = _Runs(work, horizon, profile, job, Path(folder), tell)
        looks = {proposal: _look(runs, proposal) for proposal in (whole, *others)}
        order = finalists({proposal: looks[proposal] for proposal in others})
        ends = [(proposal, factor) for proposal in order for factor in _promising(looks[proposal], runs.start)]
        lowest = min(runs.held(proposal, factor, 1.0, seed) for proposal, factor in ends for seed in SEEDS)
        target = runs.start - DEPTH * (runs.start - lowest)
        winner, factor = min(ends, key=lambda end: runs.cost(end[0], end[1], target))
        factor = _settle(runs, winner, factor, target)
        rival = factor if winner.whole else _best_held(looks[whole])
        runs.held(whole, rival, 1.0)
        best, against = runs.tried[winner, factor, 0], runs.tried[whole, rival, 0]
        loss = against.held
        gain = math.inf
        if loss < LEARNED * against.curve.losses[0]:
            gain = against.curve.reached(loss) / best.curve.reached(loss)
        tried = tuple(runs.tried.values())
    return TrialResult(winner.at_rate(SAFE * factor), SAFE * factor, best, against, tried, runs.spent, gain, runs.added)


def finalists(looks: Mapping[Proposal, Mapping[float, Tried]]) -> list[Proposal]:
    """The proposals that are worth a run to the end, by the levels that their first looks came to."""
    return sorted(looks, key=lambda proposal: min(run.level for run in looks[proposal].values()))[:FINALISTS]


def _look(runs: _Runs, proposal: Proposal) -> dict[float, Tried]:
    """Multiple of the rates → what came of a first look."""
    looks = {factor: runs.run(proposal, factor, LOOK) for factor in FACTORS}
    for _ in range(EXTENSIONS):
        best = _best_held(looks)
        if min(looks) < best < max(looks):
            break
        further = best / 2 if best == min(looks) else 2 * best
        looks[further] = runs.run(proposal, further, LOOK)
    return looks


def _promising(looks: Mapping[float, Tried], start: float) -> tuple[float, float]:
    """Two multiples of the rates that are worth a run to the end of the horizon.

    The best of the first look, and the highest that is not ruled out: a loss may rest, or rise a little, before it
    falls, and low rates do best then.
    """
    best = _best_held(looks)
    highest = max((factor for factor, run in looks.items() if run.held < RULED_OUT * start), default=best)
    return best, highest if highest != best else best / 2


def _settle(runs: _Runs, proposal: Proposal, factor: float, target: float) -> float:
    """The multiple of the rates that does best, from one on in steps of √2."""
    costs = {factor: runs.cost(proposal, factor, target)}
    for step in (math.sqrt(2), 1 / math.sqrt(2)):  # up while it helps, or else down
        choice = factor
        while _best(costs) == choice and len(costs) < MOST_RATES:
            choice *= step
            costs[choice] = runs.cost(proposal, choice, target)
        if _best(costs) != factor:
            break
    return _best(costs)


def _best(found: Mapping[float, Any]) -> float:
    return min(found, key=lambda factor: found[factor])


def _best_held(runs: Mapping[float, Tried]) -> float:
    return _best({factor: run.held for factor, run in runs.items()})
