"""Learning rates that follow what devices measure (``--adapt``): a pure function of the journal, recorded in its plans.

The mean square v of a block's derivatives falls as the loss does, and the curvature with it (for a model whose
probabilities are right both are the Gauss–Newton trace, but for a factor); where training is about to diverge v rises.
A block's rates are therefore multiplied by (v₀/v)^½, as steps divided by a standard deviation are (FZOO, arXiv
2506.09034), with v a moving mean and v₀ that of the block's first rounds. Whoever has the journal's entries has the
same plans: the live server after a kill, a simulation, an audit. Devices do what a plan says and need nothing new.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from broker.rounds import Job, plan_round
from device_runtime.plan import Entry, Plan

#: Rounds that a block's first mean is taken over, and about as many that the moving mean remembers.
FIRST, MEMORY = 8, 8
#: Rates are at most multiplied and divided by so much.
MOST, LEAST = 2.0, 1 / 16


@dataclass(frozen=True)
class Moment:
    """What is remembered of a block.

    Attributes:
        rounds: that perturbed it.
        first: mean square of its derivatives in the first of them.
        recent: moving mean of it.
    """

    rounds: int = 0
    first: float = 0.0
    recent: float = 0.0

    def after(self, square: float) -> Moment:
        """One round later."""
        if self.rounds < FIRST:
            mean = (self.rounds * self.first + square) / (self.rounds + 1)
            return Moment(self.rounds + 1, mean, mean)
        return Moment(self.rounds + 1, self.first, self.recent + (square - self.recent) / MEMORY)

    @property
    def factor(self) -> float:
        """What the block's learning rate is multiplied by."""
        if not self.first > 0:
            return 1.0
        return min(MOST, max(LEAST, math.sqrt(self.first / max(self.recent, self.first / MOST**2))))


def follow(moments: Sequence[Moment], entries: Iterable[Entry]) -> tuple[Moment, ...]:
    """What is remembered of each block after some more entries; at the journal's start it is ``()``."""
    known = tuple(moments)
    for entry in entries:
        squares = mean_squares(entry)
        known = known if len(known) == len(squares) else (Moment(),) * len(squares)  # a job may go on with another cut
        known = tuple(old if square is None else old.after(square) for old, square in zip(known, squares, strict=True))
    return known


def mean_squares(entry: Entry) -> list[float | None]:
    """Mean square of each block's scalars; None for a block that was frozen.

    Two-sided, a scalar is the derivative along directions of all blocks together, and serves each of them.
    """
    plan = entry.plan
    squares: list[list[float]] = [[] for _ in plan.blocks]
    for contribution in entry.contributions:
        for start in range(0, plan.scalars, plan.measured):
            for block, found in zip(plan.blocks, squares, strict=True):
                count = block.fanout if plan.sides == 1 else plan.measured * (block.fanout > 0)
                scalars = contribution.scalars[start : start + count]
                found += [contribution.weight * (scalar / block.scale) ** 2 for scalar in scalars]
                start += count if plan.sides == 1 else 0
    sources = len(entry.contributions)
    return [sources * math.fsum(found) / len(found) if found else None for found in squares]


class Pace:
    """Plans of a job's rounds, one after the other, from its journal."""

    def __init__(self, job: Job, entries: Iterable[Entry]) -> None:
        """``entries`` are those of the journal so far; they are read only where the job adapts."""
        self._job = job
        self._moments = follow((), entries) if job.adapt else ()

    def plan(self, round: int) -> Plan:
        """The plan of the next round."""
        return plan_round(self._job, round, [moment.factor for moment in self._moments])

    def follow(self, entry: Entry) -> None:
        """A round was closed."""
        if self._job.adapt:
            self._moments = follow(self._moments, [entry])
