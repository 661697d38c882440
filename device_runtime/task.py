"""What a model is asked to do: a template over the fields of an example, and labels with their descriptions."""

from __future__ import annotations

import string
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from device_runtime.errors import DataError


@dataclass(frozen=True)
class Label:
    """One answer: its name in data files, and the words that say it to the model."""

    name: str
    description: str


@dataclass(frozen=True)
class Task:
    """A classification task, aligned with what the model already knows.

    Attributes:
        name: what the task is called.
        template: text with ``{field}`` in place of the example's fields.
        labels: the answers, in the order of the model's logits.
    """

    name: str
    template: str
    labels: tuple[Label, ...]

    def __post_init__(self) -> None:
        """Raises DataError when the task contradicts itself."""
        if not self.fields:
            raise DataError(f"task '{self.name}': the template has no field; write one as {{text}}")
        if len(self.labels) < 2 or len({label.name for label in self.labels}) < len(self.labels):
            raise DataError(f"task '{self.name}' needs at least two labels with different names")

    @cached_property
    def fields(self) -> tuple[str, ...]:
        """Names of the template's fields, in their order."""
        try:
            parsed = [piece[1:] for piece in string.Formatter().parse(self.template) if piece[1] is not None]
        except ValueError as error:
            raise DataError(f"task '{self.name}': the template is not valid: {error}") from None
        if not all(name and name.isidentifier() and not form and not conversion for name, form, conversion in parsed):
            raise DataError(f"task '{self.name}': fields are plain names, as in {{text}}")
        return tuple(dict.fromkeys(str(name) for name, _, _ in parsed))

    def render(self, fields: Mapping[str, str]) -> str:
        """The template with its fields filled in."""
        return self.template.format_map(fields)

    def label_index(self, name: str) -> int:
        """Index of a label. Raises DataError when the task has no such label."""
        for index, label in enumerate(self.labels):
            if label.name == name:
                return index
        known = ", ".join(label.name for label in self.labels)
        raise DataError(f"label '{name}' is not one of task '{self.name}': {known}")
