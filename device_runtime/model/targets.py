"""Targets of examples, as data files have them: a label, a set of labels, or a number."""

from __future__ import annotations

import json
import math
import re
from contextlib import suppress
from typing import SupportsFloat

from fedspzo.device_runtime.errors import DataError
from fedspzo.device_runtime.model.metrics import MULTI, REGRESSION
from fedspzo.device_runtime.model.task import Task

_WHOLE = re.compile(r"[+-]?\d+\.0*")


def label_index(task: Task, value: object) -> int:
    """Index of a label, given by its name or, where no label's name is a number, by its index.

    Raises:
        DataError: the task has no such label.
    """
    names = [label.name for label in task.labels]
    whole = value
    if isinstance(value, str) and value not in names and _WHOLE.fullmatch(value.strip()):
        value = float(value)  # CSV and JSON write as text what Parquet has as a number
    if isinstance(value, float) and value.is_integer():
        whole = int(value)
    name = str(whole).lower() if isinstance(whole, bool) else str(whole)
    if name in names:
        return names.index(name)
    index = str(int(whole)) if isinstance(whole, bool) else name
    if not any(map(str.isdigit, names)) and index in map(str, range(len(names))):
        return int(index)
    known = ", ".join(label.name for label in task.labels)
    raise DataError(
        "data.unknown-label", f"label {str(value)[:40]!r} is not one of task '{task.name}'; use one of: {known}"
    )


def read_target(task: Task, value: object) -> tuple[int, tuple[float, ...]]:
    """What an example's target says: (a label's index, what the graphs are fed of it).

    The index is that of the label, of a set's first label (:data:`NONE`'s of the empty set), or of the number
    nearest. Fed are one number for each label: nothing for a single label; 1 for the labels of a set, else 0; the
    label's number less the target.

    Raises:
        DataError: it is not what the task needs.
    """
    if task.kind == MULTI:
        chosen = {label_index(task, name) for name in _set(task, value)} - {len(task.labels) - 1}
        return min(chosen, default=len(task.labels) - 1), tuple(float(i in chosen) for i in range(len(task.labels)))
    if task.kind == REGRESSION:
        number = _number(task, value)
        distances = tuple(anchor - number for anchor in task.values)
        return min(range(len(distances)), key=lambda i: abs(distances[i])), distances
    return label_index(task, value), ()


def write_target(task: Task, label: int, targets: tuple[float, ...]) -> object:
    """The target of an example in a data file, from which :func:`read_target` makes these."""
    if task.kind == MULTI:
        return [own.name for own, holds in zip(task.labels, targets, strict=True) if holds]
    if task.kind == REGRESSION:
        return round(task.values[0] - targets[0], 9)
    return task.labels[label].name


def _set(task: Task, value: object) -> list[object]:
    """The labels of a list, or of a text: a JSON list, one label, or several between commas."""
    if isinstance(value, str):
        text = value.strip()
        if text.startswith("["):
            with suppress(ValueError, RecursionError):
                value = json.loads(text)
        elif text in {label.name for label in task.labels}:
            return [text]
    names = [name.strip() for name in value.split(",") if name.strip()] if isinstance(value, str) else value
    if not isinstance(names, list) or len(set(map(str, names))) < len(names):
        raise DataError(
            "data.not-a-set",
            f"{str(value)[:40]!r} is not a list of labels, each once, which task '{task.name}' needs; write a list"
            " of the names of those that hold",
        )
    return names


def _number(task: Task, value: object) -> float:
    number = math.nan
    if isinstance(value, str | SupportsFloat) and not isinstance(value, bool):
        with suppress(ValueError, TypeError, OverflowError):
            number = float(value)
    lowest, highest = min(task.values), max(task.values)
    if not lowest <= number <= highest:
        raise DataError(
            "data.not-a-number",
            f"{str(value)[:40]!r} is not a number from {lowest:g} to {highest:g}, which task '{task.name}' needs;"
            " correct it, or give the task labels of further numbers",
        )
    return number
