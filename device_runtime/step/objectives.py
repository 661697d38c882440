"""Objectives: what a device measures of each example from a graph's outputs. Nothing here needs a derivative.

An objective is a function of what one branch gave and of what is known of the examples, and gives a cost for each
example; the estimator takes the mean and its differences along directions. A batch meets all branches of a step, so
that + and − are compared on the same examples.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.metadata import entry_points
from typing import Protocol

import numpy as np

from fedspzo.device_runtime.data.feedback import Feedback
from fedspzo.device_runtime.data.store import DataStore, labelled
from fedspzo.device_runtime.errors import PlanError
from fedspzo.device_runtime.model.metrics import SINGLE
from fedspzo.device_runtime.model.task import GENERATION, Task
from fedspzo.device_runtime.protocol.objective import (
    BUILT_IN,
    ERROR,
    EXPECTED_ERROR,
    LOSS,
    METRIC,
    MOST,
    OWN,
    REWARD,
    Objective,
)

log = logging.getLogger(__name__)

#: Entry points under which people's own objectives are found, where they are installed on the device.
GROUP = "fedspzo.objectives"


@dataclass(frozen=True)
class Outputs:
    """What the network gave for the examples of a batch.

    Attributes:
        losses: float64 [examples]; for generation the mean of -log p over the answer's tokens.
        logits: float32 [examples, labels]; for generation [examples, 0].
    """

    losses: np.ndarray
    logits: np.ndarray


@dataclass(frozen=True)
class Known:
    """What is known of the examples of a batch.

    Attributes:
        labels: int32 [examples].
        feedback: the reactions; None where all examples have labels.
        starts: int32 [examples], where answers start; see :class:`fedspzo.device_runtime.data.store.DataStore`.
        references: for generation, the right answers of each example.
    """

    labels: np.ndarray
    feedback: Feedback | None
    starts: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    references: tuple[tuple[str, ...], ...] = ()

    @classmethod
    def of(cls, store: DataStore, indices: np.ndarray) -> Known:
        """Of some examples of a store."""
        feedback = None if store.feedback is None else store.feedback.at(indices)
        references = tuple(store.references[index] for index in indices) if store.references else ()
        return cls(store.labels[indices], feedback, store.starts[indices], references)


#: Of examples that are only asked.
NOTHING = Known(np.zeros(0, np.int32), None)


class Measure(Protocol):
    """An objective."""

    def __call__(self, outputs: Outputs, known: Known, /) -> np.ndarray:
        """The cost of each example, float64 [examples]: the lower, the better."""


def find_measure(objective: Objective | None, task: Task) -> Measure:
    """The function that an objective names; None for the loss.

    Raises:
        PlanError: this device does not know it, or it is not for tasks of that kind.
    """
    if objective is None:
        return lambda outputs, known: outputs.losses
    check_task(objective.name, task)
    if objective.name == REWARD:
        return lambda outputs, known: _costs(outputs, known, objective)
    if objective.name in (ERROR, EXPECTED_ERROR):
        return _count_errors if objective.name == ERROR else _expect_errors
    if objective.name.startswith(OWN):
        return _checked(objective.name, _find_own(objective.name.removeprefix(OWN)))
    raise PlanError(
        "plan.unknown-objective",
        f"this device does not know the objective '{objective.name}', but {', '.join(BUILT_IN)}; update its program",
    )


def check_task(name: str, task: Task) -> None:
    """Raise PlanError where an objective is not for tasks of that kind."""
    if name in (ERROR, EXPECTED_ERROR) and (task.form == GENERATION or task.kind != SINGLE):
        raise PlanError(
            "plan.objective-of-labels", f"{name} is for tasks with one right label; take {LOSS} or {REWARD}"
        )
    if name == REWARD and task.form != GENERATION and task.kind != SINGLE:
        raise PlanError(
            "plan.objective-of-labels", f"{name} is for tasks with one label or text, and '{task.name}' has others"
        )
    if name.startswith(METRIC) and task.form != GENERATION:
        raise PlanError(
            "plan.metric-of-labels", f"{name} is for tasks that generate text, and '{task.name}' has labels"
        )


def check_examples(objective: Objective | None, store: DataStore) -> None:
    """Raise PlanError where an objective asks for labels that some examples do not have."""
    if store.feedback is not None and _needs_labels(objective):
        raise PlanError(
            "plan.feedback-has-no-labels",
            f"objective = {objective.name if objective else LOSS} needs labels, and these examples are reactions to"
            f" what was shown; give some with labels or corrections, or choose a job with objective = {REWARD}",
        )


def choose_examples(objective: Objective | None, store: DataStore) -> DataStore:
    """Those that an objective can measure: without reactions where it needs labels.

    Raises:
        PlanError: it needs labels, and nothing has one.
    """
    chosen = labelled(store) if _needs_labels(objective) else store
    if not len(chosen):
        check_examples(objective, store)
    return chosen


def _needs_labels(objective: Objective | None) -> bool:
    return objective is None or objective.name in (LOSS, ERROR, EXPECTED_ERROR) or objective.name.startswith(METRIC)


def shown_shares(outputs: Outputs, shown: np.ndarray) -> np.ndarray:
    """The probability π(shown) of a label of each example, float64 [examples].

    For generation it is the geometric mean over the answer's tokens, whatever was shown.
    """
    if not outputs.logits.shape[1]:
        return np.exp(-outputs.losses)
    logits = outputs.logits.astype(np.float64)
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(shares[np.arange(len(shown)), shown] / shares.sum(axis=1))


def importance(outputs: Outputs, feedback: Feedback, cap: float) -> np.ndarray:
    """min(π(shown) / p(shown), cap) of each example, float64; 0 where nothing was shown."""
    shares = shown_shares(outputs, np.maximum(feedback.shown, 0))
    return np.where(feedback.shown < 0, 0.0, np.minimum(shares / feedback.probabilities, cap))


def _costs(outputs: Outputs, known: Known, objective: Objective) -> np.ndarray:
    """Minus the reward that the model's own answers would have, by clipped importance; a label's reward is 1."""
    labelled = -objective.label_weight * shown_shares(outputs, known.labels)
    if known.feedback is None:
        return labelled
    rewarded = -known.feedback.rewards * importance(outputs, known.feedback, objective.cap)
    return np.where(known.feedback.shown < 0, labelled, rewarded)


def _count_errors(outputs: Outputs, known: Known) -> np.ndarray:
    """1 for each example whose likeliest label is wrong."""
    return (outputs.logits.argmax(axis=1) != known.labels).astype(np.float64)


def _expect_errors(outputs: Outputs, known: Known) -> np.ndarray:
    """1 - π(label), the chance of an error where labels are drawn from the softmax."""
    return 1.0 - shown_shares(outputs, known.labels)


@lru_cache(maxsize=8)
def _find_own(name: str) -> Callable[[Outputs, Known], np.ndarray]:
    """A person's own function, which they have installed: no code ever comes with a plan."""
    for point in entry_points(group=GROUP, name=name):
        try:
            found: Callable[[Outputs, Known], np.ndarray] = point.load()
        except Exception as error:
            raise failed(OWN + name, error) from error
        return found
    raise PlanError(
        "plan.no-own-objective",
        f"no package here has an entry point '{name}' in the group {GROUP}; install the one that has it",
    )


def failed(name: str, error: Exception) -> PlanError:
    """What is said of a person's own function that failed: not its own words, which may have an example's text."""
    log.warning("%s failed", name, exc_info=error)
    return PlanError("plan.own-failed", f"{name} failed ({type(error).__name__}); the device's log says where")


def _checked(name: str, own: Callable[[Outputs, Known], np.ndarray]) -> Measure:
    def measure(outputs: Outputs, known: Known, /) -> np.ndarray:
        try:
            costs = np.asarray(own(outputs, known), np.float64)
        except Exception as error:
            raise failed(name, error) from error
        if costs.shape != outputs.losses.shape or not (np.abs(costs) <= MOST).all():
            raise PlanError(
                "plan.own-objective", f"{name} gives something else than a cost of up to {MOST:g} for each example"
            )
        return costs

    return measure
