"""Which round's model is the best on held-out examples, and when to stop waiting for a better one."""

from __future__ import annotations

import math
from collections.abc import Mapping

from fedspzo.device_runtime.model.metrics import goodness
from fedspzo.device_runtime.step.scores import Evaluation


def rank(evaluation: Evaluation) -> tuple[float, float]:
    """What evaluations are compared by, the greater the better: the task's first metric, then the lower loss.

    Where there is no score the loss decides. What is not a number is worse than any number.
    """
    first = next((goodness(name, value) for name, value in evaluation.scores.items()), 0.0)
    return _or_worst(first), _or_worst(-evaluation.loss)


def _or_worst(value: float) -> float:
    return -math.inf if math.isnan(value) else value


def best_round(evaluations: Mapping[int, Evaluation]) -> int | None:
    """The round of the best evaluation, the earliest of equals; None where there is no evaluation."""
    return max(sorted(evaluations), key=lambda round: rank(evaluations[round]), default=None)


def stalled(evaluations: Mapping[int, Evaluation], patience: int) -> bool:
    """Whether ``patience`` evaluations in a row were no better than the best before them.

    That stays so whatever comes after: a job that has stopped is not continued by its last evaluation.
    """
    best, waited = None, 0
    for round in sorted(evaluations):
        found = rank(evaluations[round])
        if best is None or found > best:
            best, waited = found, 0
        elif (waited := waited + 1) >= patience:
            return True
    return False
