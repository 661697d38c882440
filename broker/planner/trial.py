"""Short simulated runs of proposals: which of them learns most for what it costs, at what learning rates.

A formula from one step misjudges the rate of many by a factor, and cannot tell how far a block alone will get. So the
first proposals and the whole model perturbed at once run at several multiples of their rates, for a part of a horizon;
those that stand best go on to its end; the best is run with another seed. What counts is the loss that a run holds at
the end, the worst of its last points: rates that are too high look good early.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from broker.planner.profile import Profile
from broker.planner.propose import Proposal, make_job
from broker.rounds import ClosedRound, Job
from broker.simulation.partition import Shares, subset
from broker.simulation.profile import CALM, Fleet
from broker.simulation.run import simulate
from broker.simulation.workers import LocalWorkers, Work
from broker.store import ServerStore
from device_runtime.bundle import Bundle
from device_runtime.engines import create_engine
from device_runtime.evaluation import predict
from device_runtime.forward import Forward
from device_runtime.plan import Entry
from device_runtime.replica import Replica

#: Proposals that are tried besides the whole model perturbed at once, and those of them that run to the end.
TRIED, FINALISTS = 3, 2
#: Multiples of the formula's rates to begin with; where the best is an outermost one, that many times another is added.
FACTORS, EXTENSIONS = (0.5, 1.0, 2.0), 1
#: Most rates that the best is run at with two seeds.
MOST_RATES = 5
#: A first look rules out rates at which the loss is so many times that at the start.
RULED_OUT = 1.15
#: Share of the horizon for a first look.
LOOK = 1 / 3
#: Factor on the best rates of the trial, to be safe with seeds and data that were not tried.
SAFE = 2**-0.25
#: A run has learned something if it holds less than this share of the loss at the start.
LEARNED = 0.98
#: Examples that a run's loss is the mean of.
SAMPLE = 128
#: Points of a curve.
POINTS = 6
#: A run whose loss is that many times the loss at the start is over.
DIVERGED = 2.0


@dataclass(frozen=True)
class Curve:
    """A run so far.

    Attributes:
        flops: operations of all devices, at each point.
        losses: on the sample.
        rounds: closed.
    """

    flops: tuple[float, ...]
    losses: tuple[float, ...]
    rounds: int

    @property
    def held(self) -> float:
        """The worse of the last two losses; infinite if the run diverged."""
        worst = max(self.losses[-2:])
        return worst if worst < DIVERGED * self.losses[0] else math.inf

    def reached(self, loss: float) -> float:
        """Operations until the loss was first at a value, by lines between the points; infinite if it never was."""
        for k in range(1, len(self.losses)):
            above, below = self.losses[k - 1], self.losses[k]
            if below <= loss < above:
                share = (above - loss) / (above - below)
                return self.flops[k - 1] + share * (self.flops[k] - self.flops[k - 1])
        return math.inf


class _Spent(Exception):
    """The run has spent what it may."""


@dataclass
class Ground:
    """What runs are run on.

    Attributes:
        bundle, engine, threads: see :class:`broker.simulation.workers.Work`.
        shares: the devices' examples.
        horizon: operations of all devices in a whole run.
        points: of a whole run's curve.
        spent: operations of all runs so far, with those of their evaluation.
    """

    bundle: Bundle
    engine: str
    threads: int
    shares: Shares
    horizon: float
    points: int = POINTS
    spent: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        self._forward = Forward(create_engine(self.engine, self.threads), Replica(self.bundle))
        stores = [self.shares.of(device) for device in self.shares.devices[:SAMPLE]]
        each = math.ceil(SAMPLE / len(stores))
        self._sample = [subset(store, store.sample(0, each)) for store in stores]

    def run(self, job: Job, folder: Path, until: float, curve: Curve | None = None) -> Curve:
        """Begin a run, or go on with one, until it has spent a share of the horizon."""
        fleet = Fleet(self.shares.devices, CALM, job.seed)
        store = ServerStore(folder, self.bundle.identity)
        workers = LocalWorkers(Work(self.bundle.folder, self.engine, self.threads, None, lambda bundle: self.shares))
        replica = self._forward.weights
        replica.restore(None)
        waiting = list(store.journal.entries(0))
        workers.follow(waiting)
        flops, losses = ([0.0], [self._loss()]) if curve is None else (list(curve.flops), list(curve.losses))
        used = flops[-1]

        def observe(closed: ClosedRound, entry: Entry, more: int) -> None:
            nonlocal used
            used += more
            waiting.append(entry)
            if used >= self.horizon * len(flops) / self.points or used >= self.horizon * until:
                replica.apply_all(waiting)
                waiting.clear()
                self.spent += used - flops[-1]
                flops.append(used)
                losses.append(self._loss())
                if used >= self.horizon * until or not losses[-1] < DIVERGED * losses[0]:
                    raise _Spent

        with suppress(_Spent):
            simulate(job, "default", fleet, workers, store, observe)
        return Curve(tuple(flops), tuple(losses), store.journal.last_round)

    def _loss(self) -> float:
        before = self._forward.flops
        losses = np.concatenate([predict(self._forward, store)[0] for store in self._sample])
        self.spent += self._forward.flops - before
        return float(losses.mean())


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


@dataclass(frozen=True)
class Outcome:
    """What a trial settles on.

    Attributes:
        proposal: the best, at safe rates.
        factor: on the formula's rates.
        best, whole: the runs of it (at the rates nearest to those) and of the whole model perturbed at once.
        tried: all runs.
        flops: that the trial took.
        gain: how many times fewer operations the proposal takes to the loss that the whole model holds at the end;
            infinite where it holds none below the start.
    """

    proposal: Proposal
    factor: float
    best: Tried
    whole: Tried
    tried: Sequence[Tried]
    flops: float
    gain: float

    @property
    def learned(self) -> bool:
        """Whether the best run held less than the loss at the start."""
        return self.best.curve.held < LEARNED * self.best.curve.losses[0]


class _Runs:
    """Runs of one trial, each in a folder."""

    def __init__(self, ground: Ground, profile: Profile, job: Job, folder: Path) -> None:
        self._ground, self._profile, self._job, self._folder = ground, profile, job, folder
        self._places: dict[tuple[Proposal, float, int], Path] = {}
        self.tried: dict[tuple[Proposal, float, int], Tried] = {}

    @property
    def start(self) -> float:
        """The loss before all runs."""
        return next(iter(self.tried.values())).curve.losses[0]

    def held(self, proposal: Proposal, factor: float, until: float, seed: int = 0) -> float:
        """The loss that a run holds; it is begun or gone on with as is necessary."""
        key = proposal, factor, seed
        run = self.tried.get(key)
        if run is None or (run.curve.flops[-1] < until * self._ground.horizon and math.isfinite(run.curve.held)):
            place = self._places.setdefault(key, self._folder / str(len(self._places)))
            scaled = proposal.at_rate(factor)
            job = replace(make_job(scaled, self._profile, self._job), seed=self._job.seed + seed)
            curve = self._ground.run(job, place, until, run.curve if run else None)
            self.tried[key] = Tried(scaled, factor, job.seed, curve)
        return self.tried[key].curve.held


def search(ground: Ground, profile: Profile, job: Job, proposals: Sequence[Proposal]) -> Outcome:
    """Try the first proposals and the whole model perturbed at once, and settle on one at safe rates.

    Args:
        job: what the proposals do not say: cohort, seed, and so on; its rounds do not matter.
        proposals: best first, the whole model among them.

    Raises:
        PlanError: a proposal does not fit the bundle.
    """
    whole = next(proposal for proposal in proposals if proposal.whole)
    others = [proposal for proposal in proposals if not proposal.whole][:TRIED]
    with TemporaryDirectory(prefix="fedspzo-") as folder:
        runs = _Runs(ground, profile, job, Path(folder))
        looks = {proposal: _look(runs, proposal) for proposal in (whole, *others)}
        order = sorted(others, key=lambda proposal: min(looks[proposal].values()))[:FINALISTS]
        ends = {proposal: _finish(runs, proposal, looks[proposal]) for proposal in (whole, *order)}
        winner = min(ends, key=lambda proposal: ends[proposal][0])
        factor = _settle(runs, winner, ends[winner][1])
        best, against = runs.tried[winner, factor, 0], runs.tried[whole, ends[whole][1], 0]
        loss = against.curve.held
        gain = math.inf
        if loss < LEARNED * against.curve.losses[0]:
            gain = against.curve.reached(loss) / best.curve.reached(loss) if winner is not whole else 1.0
        tried = tuple(runs.tried.values())
    return Outcome(winner.at_rate(SAFE * factor), SAFE * factor, best, against, tried, ground.spent, gain)


def _look(runs: _Runs, proposal: Proposal) -> dict[float, float]:
    """Multiple of the rates → the loss that is held after a first look."""
    losses = {factor: runs.held(proposal, factor, LOOK) for factor in FACTORS}
    for _ in range(EXTENSIONS):
        best = _best(losses)
        if min(losses) < best < max(losses):
            break
        further = best / 2 if best == min(losses) else 2 * best
        losses[further] = runs.held(proposal, further, LOOK)
    return losses


def _finish(runs: _Runs, proposal: Proposal, looks: Mapping[float, float]) -> tuple[float, float]:
    """The loss that is held at the end of the horizon, and at which multiple of the rates.

    The best of the first look runs on, and the highest that is not ruled out: a loss may rest, or rise a little, before
    it falls, and low rates do best then.
    """
    best, start = _best(looks), runs.start
    highest = max((factor for factor, loss in looks.items() if loss < RULED_OUT * start), default=best)
    losses = {factor: runs.held(proposal, factor, 1.0) for factor in (best, highest if highest != best else best / 2)}
    return losses[_best(losses)], _best(losses)


def _settle(runs: _Runs, proposal: Proposal, factor: float) -> float:
    """The multiple of the rates that does best with the worse of two seeds, from one on in steps of √2."""

    def worst(choice: float) -> float:
        return max(runs.held(proposal, choice, 1.0, seed) for seed in (0, 1))

    losses = {factor: worst(factor)}
    for step in (math.sqrt(2), 1 / math.sqrt(2)):  # up while it helps, or else down
        choice = factor
        while _best(losses) == choice and len(losses) < MOST_RATES:
            choice *= step
            losses[choice] = worst(choice)
        if _best(losses) != factor:
            break
    return _best(losses)


def _best(losses: Mapping[float, float]) -> float:
    return min(losses, key=lambda factor: losses[factor])
