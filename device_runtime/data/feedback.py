"""What people did with what a model showed them: accepted, rejected or corrected it. It never leaves the device.

A line has the task's fields and what was shown, then a reward from -1 to 1 or the correction:
``{"text": …, "shown": "alarm", "reward": 1}`` or ``{"text": …, "shown": "alarm", "corrected": "timer"}``. It may say
with what ``probability`` it was shown (1 where that is not said: the likeliest is always shown), what ``scores`` the
model gave, and after which ``round``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedspzo.device_runtime.data.texts import check_text, missing_field
from fedspzo.device_runtime.errors import DataError
from fedspzo.device_runtime.model.metrics import SINGLE
from fedspzo.device_runtime.model.task import Task

SHOWN, REWARD, CORRECTED, PROBABILITY, SCORES, ROUND = (
    "shown", "reward", "corrected", "probability", "scores", "round"
)  # fmt: skip
_OWN = (SHOWN, REWARD, CORRECTED, PROBABILITY, SCORES, ROUND)
#: What a text is called in lines of any task with one field.
PROMPT = "prompt"
#: Rewards of an answer that was accepted, and of one that was rejected or corrected.
ACCEPTED, REJECTED = 1.0, -1.0
#: Least probability that something can have been shown with.
LEAST = 1e-6


@dataclass(frozen=True)
class Reaction:
    """To one answer that was shown.

    Attributes:
        reward: from -1 to 1.
        probability: with which it was shown, above 0.
    """

    reward: float
    probability: float = 1.0


@dataclass(frozen=True)
class Feedback:
    """Of each example of a store, the reaction.

    Attributes:
        shown: int32 [examples], index of the label that was shown, 0 for generation; -1 for an example with a label,
            to which there was no reaction.
        rewards, probabilities: float32 [examples].
    """

    shown: np.ndarray
    rewards: np.ndarray
    probabilities: np.ndarray

    @classmethod
    def of(cls, reactions: Sequence[Reaction | None], labels: Sequence[int]) -> Feedback | None:
        """None where no example has a reaction."""
        if not any(reactions):
            return None
        pairs = zip(reactions, labels, strict=True)
        return cls(
            np.array([-1 if reaction is None else label for reaction, label in pairs], np.int32),
            np.array([reaction.reward if reaction else 0.0 for reaction in reactions], np.float32),
            np.array([reaction.probability if reaction else 1.0 for reaction in reactions], np.float32),
        )

    def at(self, indices: np.ndarray) -> Feedback:
        """Of some examples."""
        return Feedback(self.shown[indices], self.rewards[indices], self.probabilities[indices])


def is_feedback(record: Mapping[str, Any], task: Task) -> bool:
    """Whether a record tells of something that was shown."""
    return SHOWN not in (*task.fields, task.target) and record.get(SHOWN) not in (None, "")


def takes_feedback(task: Task) -> bool:
    """Whether people can react to a task's answers: to one label, or to the text for a template."""
    return task.chat is None and task.kind == SINGLE


def read_feedback(record: Mapping[str, Any], task: Task) -> tuple[dict[str, Any], Reaction, dict[str, Any] | None]:
    """A record of the task with what was shown for its label or answer, the reaction, and one with the correction.

    Raises:
        DataError: the record says no reaction, or the task has no such answers.
    """
    if not takes_feedback(task):
        raise DataError(
            "data.feedback-of-another-kind",
            f"feedback is on one label, or on the text for a template, and task '{task.name}' has neither; give labels",
        )
    given = record  # an empty cell of a table says nothing, an empty text is one
    record = {
        name: value for name, value in given.items() if value is not None and (value != "" or name in task.fields)
    }
    if task.target in record:
        raise DataError(
            "data.label-and-reaction",
            f"the record has both '{task.target}' and '{SHOWN}'; write '{CORRECTED}' for what is right, or two records",
        )
    fields = {name: value for name, value in record.items() if name in task.fields or name not in _OWN}
    if PROMPT in record and PROMPT not in task.fields and len(task.fields) == 1:
        fields[task.fields[0]] = record[PROMPT]
    if missing := [name for name in task.fields if name not in fields]:
        raise missing_field(missing[0], task.name, given)
    for name in (SHOWN, CORRECTED):
        if name in record and not (isinstance(record[name], str) and record[name].strip()):
            raise DataError("data.not-text", f"the field '{name}' is not a text; put it in quotes")
        if name in record:
            check_text(name, record[name])
    corrected = record.get(CORRECTED)
    if corrected == record[SHOWN]:
        raise DataError("data.correction", f"'{CORRECTED}' is what was '{SHOWN}'; give it a '{REWARD}' in its place")
    reward = _number(record, REWARD, -1.0, 1.0) if REWARD in record else (REJECTED if corrected else None)
    if reward is None:
        raise DataError(
            "data.no-reward",
            f"'{SHOWN}' has neither '{REWARD}' nor '{CORRECTED}'; add what became of it, or leave the line out",
        )
    reaction = Reaction(reward, _number(record, PROBABILITY, 0.0, 1.0) if PROBABILITY in record else 1.0)
    if reaction.probability < LEAST:
        raise DataError(
            "data.out-of-range", f"'{PROBABILITY}' is below {LEAST:g}, and it was shown; give what it was shown with"
        )
    shown = {**fields, task.target: record[SHOWN]}
    return shown, reaction, {**fields, task.target: corrected} if corrected else None


def _number(record: Mapping[str, Any], name: str, least: float, most: float) -> float:
    value = record[name]
    if isinstance(value, str):  # as a table has it
        with suppress(ValueError):
            value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise DataError("data.out-of-range", f"'{name}' is a number from {least:g} to {most:g}, not {value!r}")
    return float(value)
