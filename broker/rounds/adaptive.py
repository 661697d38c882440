"""Blocks that follow what devices measure (``--adapt``): a pure function of the journal, recorded in its plans.

v is the mean square of a block's derivatives, a moving mean, and v₀ that of the block's first rounds.

* Rates: v falls as the loss does, and the curvature with it (for a model whose probabilities are right both are the
  Gauss–Newton trace, up to a factor); where training is about to diverge v rises. A block's rate is multiplied by
  (v₀/v)^½, as steps divided by a standard deviation are (FZOO, arXiv 2506.09034).
* Steps: rates are those for derivatives of a root mean square of 4, and are divided by what v₀ says instead, so that
  the first steps are as long as was meant. A step that still promises too much is shortened
  (:mod:`fedspzo.broker.rounds.promise`).
* Counts: the variance of a block's estimate is v over its number of directions. Numbers follow (v/v₀)^½, as Neyman's
  allocation of a sample to strata does, at the same cost of a round, and rates follow the numbers. Two-sided, a scalar
  is that of all blocks, and nothing moves.
* Scales: a perturbation's size is multiplied by (v₀/v)^½, so that differences of the loss stay as far above rounding as
  they were.

Whoever has the journal's entries has the same plans: the live server after a kill, a simulation, an audit. Devices do
what a plan says and need nothing new.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from fedspzo.broker.rounds.bound import Bound
from fedspzo.broker.rounds.job import Job, plan_round
from fedspzo.broker.rounds.promise import mean_squares
from fedspzo.broker.rounds.recommend import DERIVATIVE
from fedspzo.device_runtime.protocol.entry import Entry
from fedspzo.device_runtime.protocol.plan import Block, Plan

#: Rounds that a block's first mean is taken over, and about as many that the moving mean remembers.
FIRST, MEMORY = 8, 8
#: Rates are at most multiplied and divided by so much; growth counts as no less than the latter.
MOST, LEAST = math.sqrt(2), 1 / 16
#: Numbers of directions and sizes of perturbations are at most multiplied, or divided, by so much.
FURTHEST = 4.0
#: Rates are at most divided, or multiplied, by so much for derivatives that are larger, or smaller, than was meant.
MISJUDGED = 64.0


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
    def growth(self) -> float:
        """(v/v₀)^½; 1 while there is nothing to compare."""
        return math.sqrt(self.recent / self.first) if self.first > 0 else 1.0

    @property
    def factor(self) -> float:
        """What the block's learning rate is multiplied by."""
        return min(MOST, max(LEAST, 1 / max(self.growth, 1 / MOST)))


def follow(moments: Sequence[Moment], entries: Iterable[Entry]) -> tuple[Moment, ...]:
    """What is remembered of each block after some more entries; at the journal's start it is ``()``."""
    known = tuple(moments)
    for entry in entries:
        squares = mean_squares(entry)
        known = known if len(known) == len(squares) else (Moment(),) * len(squares)  # a job may change its cut
        known = tuple(old if square is None else old.after(square) for old, square in zip(known, squares, strict=True))
    return known


def adapt_blocks(job: Job, moments: Sequence[Moment]) -> tuple[Block, ...]:
    """The job's blocks with what it adapts, after what is remembered of each; learning rates are of the first round."""
    if len(moments) != len(job.blocks):
        return job.blocks
    found = _reallot(job.blocks, moments) if "counts" in job.adapt else list(job.blocks)
    for number, moment in enumerate(moments):
        block = found[number]
        if "steps" in job.adapt and moment.first > 0:
            measured = math.sqrt(moment.first) / DERIVATIVE
            block = replace(block, learning_rate=block.learning_rate / min(MISJUDGED, max(1 / MISJUDGED, measured)))
        if "rates" in job.adapt:
            block = replace(block, learning_rate=moment.factor * block.learning_rate)
        if "scales" in job.adapt:
            block = replace(block, scale=block.scale / min(FURTHEST, max(1 / FURTHEST, moment.growth)))
        found[number] = block
    return tuple(found)


def _reallot(blocks: Sequence[Block], moments: Sequence[Moment]) -> list[Block]:
    """Numbers of directions in proportion to (v/v₀)^½, for as many passes through stages as before."""
    starts = (0, *(block.stop for block in blocks[:-1]))
    costs = [blocks[-1].stop - start for start in starts]  # stages of a pass, from the block's start to the end
    wanted = [block.fanout * max(moment.growth, LEAST) for block, moment in zip(blocks, moments, strict=True)]
    spent = math.fsum(cost * block.fanout for cost, block in zip(costs, blocks, strict=True))
    share = spent / math.fsum(cost * count for cost, count in zip(costs, wanted, strict=True))
    found = []
    for block, count in zip(blocks, wanted, strict=True):
        fanout = min(int(FURTHEST * block.fanout), max(min(block.fanout, 1), round(share * count)))
        rate = block.learning_rate * (fanout / block.fanout if block.fanout else 1.0)
        found.append(replace(block, fanout=fanout, learning_rate=rate))
    return found


class Plans(Protocol):
    """A method: makes the plan of each round from the job and its journal, so that whoever has both makes the same."""

    def plan(self, round: int) -> Plan:
        """The plan of the next round."""

    def follow(self, entry: Entry) -> None:
        """A round was closed."""


class MakePlans(Protocol):
    """Makes the :class:`Plans` of a job, at the start and wherever it is continued."""

    def __call__(self, job: Job, entries: Iterable[Entry], /) -> Plans:
        """The plans after the entries of the journal so far."""


class Pace:
    """The job's own :class:`Plans`, with what it adapts and the bound on what a device's scalars count."""

    def __init__(self, job: Job, entries: Iterable[Entry]) -> None:
        """``entries`` are those of the journal so far."""
        self._job = job
        self._moments: tuple[Moment, ...] = ()
        self._bound = Bound(job)
        for entry in entries:
            self.follow(entry)

    def plan(self, round: int) -> Plan:
        """The plan of the next round."""
        plan = plan_round(self._job, round, adapt_blocks(self._job, self._moments))
        # A bound on single results would depend on more than their sum, in which noise suffices.
        return plan if plan.noise and not plan.masking else self._bound.apply(plan)

    def follow(self, entry: Entry) -> None:
        """A round was closed."""
        self._bound.follow(entry)
        if self._job.adapt:
            self._moments = follow(self._moments, [entry])
