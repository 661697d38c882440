"""When to stop a job whose objective improves while the model gets worse: a function of what the server keeps.

A reward may be had in ways that nobody meant, and reactions say nothing of labels that were never shown. Held-out
examples with labels are the judge. The same evaluations and rounds give the same answer after a restart, and the job
ends with a round, as it does when patience is at its end: so replicas stay equal.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from fedspzo.device_runtime.step.scores import Evaluation


def find_breach(evaluations: Mapping[int, Evaluation], costs: Mapping[int, float], bound: float) -> int | None:
    """The first round whose evaluation breaks the guard; None where all keep it.

    Args:
        evaluations: round → how the model did on held-out examples after it.
        costs: round → mean cost that its devices measured, the lower the better.
        bound: share of the best loss by which a later one may be larger; 0 for no guard.
    """
    if not bound:
        return None
    rounds = sorted(evaluations)
    best = math.inf
    at, start = 0, math.nan
    for before, round in zip([0, *rounds], rounds, strict=False):
        loss, recent = evaluations[round].loss, _mean(costs, before, round)
        if loss <= best:
            following = next((later for later in rounds if later > round), round)
            best, at = loss, round
            start = _mean(costs, before, round) if round else _mean(costs, round, following)
        elif not loss <= best + bound * abs(best) and round > at and not recent >= start:
            return round
    return None


def _mean(costs: Mapping[int, float], after: int, up_to: int) -> float:
    """Of the rounds of an interval; not a number where there are none."""
    found = [costs[round] for round in range(after + 1, up_to + 1) if round in costs]
    return math.fsum(found) / len(found) if found else math.nan
