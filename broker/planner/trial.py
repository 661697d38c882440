"""Short simulated runs of proposals: which of them learns most for what it costs, at what learning rates.

A formula from one step misjudges the rate of many by a factor, and cannot tell how far a block alone will get. So the
first proposals and the whole model perturbed at once run at several multiples of their rates, for a part of a horizon;
those that stand best go on to its end, with two seeds. What counts are the operations until a loss that is held to the
end: rates that are too high look good early, and those that are too low look good at the end.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from fedspzo.broker.planner.ground import Curve, Ground
from fedspzo.broker.planner.profile import Profile
from fedspzo.broker.planner.propose import Proposal, make_job
from fedspzo.broker.rounds.job import Job

#: Proposals that are tried besides the whole model perturbed at once, and those of them that run to the end.
TRIED, FINALISTS = 4, 2
#: Multiples of the formula's rates to begin with; where the best is an outermost one, that many times another is added.
FACTORS, EXTENSIONS = (0.5, 1.0, 2.0), 1
#: Of runs to the end, whose worse one counts.
SEEDS = (0, 1)
#: Most rates that the best is run at.
MOST_RATES = 5
#: A first look rules out rates at which the loss is so many times that at the start.
RULED_OUT = 1.07
#: The loss that runs are compared at: so much of the way to the best one.
DEPTH = 0.7
#: Share of the horizon for a first look.
LOOK = 1 / 3
#: Factor on the best rates of the trial, to be safe with seeds and data that were not tried.
SAFE = 2**-0.25
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

    def cost(self, proposal: Proposal, factor: float, target: float) -> tuple[float, float]:
        """Operations until a loss that is held, and the loss at the end for those that do not; of the worse seed."""
        held = {seed: self.held(proposal, factor, 1.0, seed) for seed in SEEDS}
        return max((self.tried[proposal, factor, seed].curve.until(target), held[seed]) for seed in SEEDS)


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
        ends = [(proposal, factor) for proposal in order for factor in _promising(looks[proposal], runs.start)]
        lowest = min(runs.held(proposal, factor, 1.0, seed) for proposal, factor in ends for seed in SEEDS)
        target = runs.start - DEPTH * (runs.start - lowest)
        winner, factor = min(ends, key=lambda end: runs.cost(end[0], end[1], target))
        factor = _settle(runs, winner, factor, target)
        rival = _best(looks[whole])
        runs.held(whole, rival, 1.0)
        best, against = runs.tried[winner, factor, 0], runs.tried[whole, rival, 0]
        loss = against.curve.held
        gain = math.inf
        if loss < LEARNED * against.curve.losses[0]:
            gain = against.curve.reached(loss) / best.curve.reached(loss)
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


def _promising(looks: Mapping[float, float], start: float) -> tuple[float, float]:
    """Two multiples of the rates that are worth a run to the end of the horizon.

    The best of the first look, and the highest that is not ruled out: a loss may rest, or rise a little, before it
    falls, and low rates do best then.
    """
    best = _best(looks)
    highest = max((factor for factor, loss in looks.items() if loss < RULED_OUT * start), default=best)
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
