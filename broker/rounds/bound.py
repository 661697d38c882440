"""The bound on what a device's scalars count, which follows from what past rounds came to: a function of the journal.

The size of a vector of scalars is its root mean square. With directions that all share, the journal has the cohort's
mean, which is smaller than a device's own vector, at most by the root of the cohort where devices pull in unlike
directions. The bound is some times that, from the median over recent rounds: a device that sent much in a few of them
has not moved it. As the loss falls, most batches have next to no gradient, and one example that is answered wrongly has
as much as at the start: so the first rounds count, too.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import replace
from statistics import median

from fedspzo.broker.rounds.job import Job
from fedspzo.broker.rounds.objective import largest_scalar
from fedspzo.broker.rounds.robust import NORMALISED
from fedspzo.device_runtime.protocol.entry import Contribution, Entry
from fedspzo.device_runtime.protocol.plan import Plan

#: Rounds that the median is taken over, and the fewest that it needs.
MEMORY, FEWEST = 16, 4
#: The bound is this many times the size of a device's vector to be expected.
LEEWAY = 4.0


class Bound:
    """Remembers the sizes of recent rounds."""

    def __init__(self, job: Job) -> None:
        """Of a job whose journal is empty."""
        self._cohort = job.cohort
        self._entries: deque[Entry] = deque(maxlen=MEMORY)
        self._first: dict[tuple[object, ...], list[float]] = {}

    def follow(self, entry: Entry) -> None:
        """A round was closed."""
        self._entries.append(entry)
        first = self._first.setdefault(_kind(entry.plan), [])
        if len(first) < MEMORY:
            first.append(_size(entry))

    def apply(self, plan: Plan) -> Plan:
        """The plan of the next round with its bound, and where results are masked with a clip that is no larger.

        Of sums, the bound holds for a group's mean: it is smaller, as the cohort's is.
        """
        bound = self.of(plan)
        if not bound or not plan.masking:
            return replace(plan, bound=bound)
        (masking,) = plan.masking
        clip = min(masking.clip, bound * math.sqrt(plan.scalars))
        summed = self._cohort if masking.mode == "secure" else masking.least
        return replace(plan, bound=bound / math.sqrt(summed), masking=(replace(masking, clip=clip),))

    def of(self, plan: Plan) -> float:
        """The bound of the next round; 0, for none, while too little is known of rounds like it."""
        alike = [entry for entry in self._entries if _kind(entry.plan) == _kind(plan)]
        if _has_no_size(plan):
            return 0.0
        largest = largest_scalar(plan)
        if largest < math.inf:  # most differences are 0, and what is usual says nothing of one that is not
            return largest
        if len(alike) < FEWEST:
            return 0.0
        expected = max(median(_size(entry) for entry in alike), median(self._first[_kind(plan)]))
        return LEEWAY * expected * (math.sqrt(self._cohort) if plan.shared else 1.0)


def _kind(plan: Plan) -> tuple[object, ...]:
    """What plans have in common whose scalars can be compared."""
    blocks = tuple(block.stop for block in plan.blocks)
    return _has_no_size(plan), plan.mode, plan.shared, plan.sides, plan.steps, blocks


def _has_no_size(plan: Plan) -> bool:
    """Whether the journal's scalars are signs, or have been divided by their deviation."""
    return plan.aggregate == "votes" or plan.aggregate.endswith(NORMALISED)


def _size(entry: Entry) -> float:
    """Root mean square of the scalars, the median over devices where the journal has each one's."""
    return median(map(_root_mean_square, entry.contributions))


def _root_mean_square(contribution: Contribution) -> float:
    return math.sqrt(math.fsum(scalar**2 for scalar in contribution.scalars) / len(contribution.scalars))
