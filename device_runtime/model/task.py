"""What a model is asked to do: a template with the fields of an example, and how the answer is read."""

from __future__ import annotations

import math
import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from fedspzo.device_runtime.errors import DataError
from fedspzo.device_runtime.model.metrics import DEFAULTS, METRICS, MULTI, REGRESSION, SINGLE, TEXT

#: How the answer is read off: the label words' logits at the mask, or after the prompt; the similarity to the labels'
#: descriptions; or the tokens that continue the prompt.
MASKED, CAUSAL, SIMILARITY, GENERATION = "masked", "causal", "similarity", "generation"
FORMS = (MASKED, CAUSAL, SIMILARITY, GENERATION)
#: What the labels say: that one of them is right, or any number of them, or what number lies where among them.
KINDS = (SINGLE, MULTI, REGRESSION)
#: The last label of a multi task: the others that score above it are those that hold, as the threshold class of ATLOP
#: (arXiv 2010.11304).
NONE = "none"
#: The field of a masked template that stands for the tokenizer's mask token.
MASK = "mask"
#: The field of an answer's template that stands for the token that ends it.
END = "end"

_FILTERS: dict[str, Callable[[str], str]] = {
    "": lambda text: text,
    "trim": lambda text: text.strip().rstrip(".?!,;:"),
    "lower": lambda text: text[:1].lower() + text[1:],
    "upper": lambda text: text[:1].upper() + text[1:],
}


class _Formatter(string.Formatter):
    def format_field(self, value: Any, format_spec: str) -> str:
        return _FILTERS[format_spec](value)


@dataclass(frozen=True)
class Label:
    """One answer: its name in data files, and the word or the description that says it to the model."""

    name: str
    text: str


@dataclass(frozen=True)
class Chat:
    """How a model writes dialogues: its own chat template, as the export found it.

    Attributes:
        template: in Jinja's language; "" before the export.
        tokens: names that the template may use, each with the text of the special token that it stands for.
        date: what the template takes for now, in ISO 8601's form; "" where it does not ask.
        lead: what the template writes between the mark of the assistant's turn and its text, such as an empty thought.
        mark: how prompts end, from their last special token on.
    """

    template: str = ""
    tokens: tuple[tuple[str, str], ...] = ()
    date: str = ""
    lead: str = ""
    mark: str = ""


@dataclass(frozen=True)
class Task:
    """A task, aligned with what the model already knows: no new head is learnt.

    Attributes:
        name: what the task is called.
        form: one of :data:`FORMS`.
        template: text with ``{field}`` in place of the example's fields, or ``{field:filter}``, where the filter is
            ``trim`` (without closing punctuation), ``lower`` or ``upper`` (the first letter).
        labels: the answers, in the order of the model's logits; none for generation.
        target: the field of an example that holds its label (a name or an index), or its answer or answers.
        mask: the tokenizer's mask token, for the masked form.
        answer: template of what is generated, such as ``" {answers}\\n"``; what follows the field ends an answer, and
            ``{end}`` stands for :attr:`stop`.
        answer_tokens: most tokens that an answer may have, its end included.
        stop: the tokenizer's end-of-text token, or the one that ends a turn, which ends an answer too.
        kind: one of :data:`KINDS`. A ``multi`` task's last label is :data:`NONE`; a ``regression`` task's labels have
            numbers for names, and its answer is their mean, weighted by the softmax of the logits.
        metrics: names of what an evaluation measures, see :data:`fedspzo.device_runtime.model.metrics.METRICS`; the
            first decides which round is the best. Empty for the usual ones.
        chat: for dialogues, whose turns take the template's place; the template then names the fields of records with
            one question and one answer.
    """

    name: str
    form: str
    template: str
    labels: tuple[Label, ...] = ()
    target: str = "label"
    mask: str = ""
    answer: str = ""
    answer_tokens: int = 0
    stop: str = ""
    kind: str = SINGLE
    metrics: tuple[str, ...] = ()
    chat: Chat | None = None

    def __post_init__(self) -> None:
        """Raises DataError when the task contradicts itself."""
        if self.form not in FORMS:
            raise DataError(
                "task.unknown-form",
                f"task '{self.name}' has the unknown form '{self.form}'; choose from {', '.join(FORMS)}",
            )
        if not self.fields:
            raise DataError("task.no-field", f"the template of task '{self.name}' has no field; write one as {{text}}")
        masks = [name for _, name, _ in self._pieces(self.template)].count(MASK)
        if masks != (self.form == MASKED):
            raise DataError(
                "task.mask-count",
                f"the template of task '{self.name}' has the wrong number of {{mask}}; write one in the masked form,"
                " and none in others",
            )
        if self.form == GENERATION:
            names = [name for _, name, _ in self._pieces(self.answer) if name is not None]
            answers = [name for name in names if name != END or name == self.target]
            if answers != [self.target] or not (self.exact or self.answer_end):
                raise DataError(
                    "task.answer-template",
                    f"task '{self.name}' has no valid answer template; write the answer's field and the text that ends"
                    f' it, such as " {{{self.target}}}\\n"',
                )
            if self.answer_tokens < 1:
                raise DataError(
                    "task.answer-tokens",
                    f"task '{self.name}' has no room for an answer; set answer_tokens to at least 1",
                )
        elif len(self.labels) < 2 or len({label.name for label in self.labels}) < len(self.labels):
            raise DataError(
                "task.labels",
                f"task '{self.name}' needs two or more labels, each with its own name; add or rename labels",
            )
        self._check_kind()
        for name in self.metrics:
            if name not in METRICS[self.answers]:
                raise DataError(
                    "task.unknown-metric",
                    f"task '{self.name}' has the metric '{name}', which its answers do not have; choose from"
                    f" {', '.join(METRICS[self.answers])}",
                )

    def _check_kind(self) -> None:
        if self.kind not in KINDS or (self.form == GENERATION and self.kind != SINGLE):
            raise DataError(
                "task.unknown-kind",
                f"task '{self.name}' has the kind '{self.kind}', which the form '{self.form}' does not have; choose"
                f" {SINGLE if self.form == GENERATION else 'from ' + ', '.join(KINDS)}",
            )
        if self.kind == MULTI and (self.labels[-1].name != NONE or len(self.labels) < 2):
            raise DataError(
                "task.no-none",
                f"task '{self.name}' has the kind '{MULTI}' and lacks the label that stands for no label; add the label"
                f" '{NONE}', with a text that says so",
            )
        if self.kind == REGRESSION:
            try:
                numbers = [float(label.name) for label in self.labels]
            except ValueError:
                numbers = []
            if len(set(numbers)) < len(self.labels) or not all(map(math.isfinite, numbers)):
                raise DataError(
                    "task.labels-not-numbers",
                    f"task '{self.name}' has the kind '{REGRESSION}', and the names of its labels are not different"
                    ' numbers; name each by the number that its text stands for, such as 0 = " terrible"',
                )

    @cached_property
    def fields(self) -> tuple[str, ...]:
        """Names of the template's fields, in their order, without the mask."""
        names = [name for _, name, _ in self._pieces(self.template) if name not in (None, MASK)]
        return tuple(dict.fromkeys(map(str, names)))

    @cached_property
    def answer_end(self) -> str:
        """The text that ends a generated answer."""
        pieces = self._pieces(self.answer)
        after = [name for _, name, _ in pieces].index(self.target) + 1
        return "".join(text + (self.stop if name == END else "") for text, name, _ in pieces[after:])

    @cached_property
    def exact(self) -> bool:
        """Whether an answer is taken as it is, with the spaces around it: the end token follows, not some text."""
        return any(name == END != self.target for _, name, _ in self._pieces(self.answer))

    @property
    def answers(self) -> str:
        """The kind of answer that metrics know."""
        return TEXT if self.form == GENERATION else self.kind

    @property
    def scores(self) -> tuple[str, ...]:
        """Names of what an evaluation measures."""
        return self.metrics or DEFAULTS[self.answers]

    @cached_property
    def values(self) -> tuple[float, ...]:
        """A regression task's numbers, one for each label."""
        return tuple(float(label.name) for label in self.labels)

    def render(self, fields: Mapping[str, str]) -> str:
        """The template with its fields filled in, and the mask token at the mask."""
        return _Formatter().vformat(self.template, (), {**fields, MASK: self.mask})

    def render_answer(self, answer: str) -> str:
        """What the model should generate for an answer, its end included."""
        return _Formatter().vformat(self.answer, (), {END: self.stop, self.target: answer})

    def around_answer(self) -> tuple[str, str]:
        """The template's own text directly before and after the place of a label word."""
        pieces = self._pieces(self.template)
        if self.form == MASKED:
            at = next(i for i, piece in enumerate(pieces) if piece[1] == MASK)
            return pieces[at][0], pieces[at + 1][0] if at + 1 < len(pieces) else ""
        return pieces[-1][0] if pieces[-1][1] is None else "", ""

    def _pieces(self, template: str) -> list[tuple[str, str | None, str]]:
        """(literal text, the field after it or None, its filter) for each piece of a template."""
        try:
            parsed = list(string.Formatter().parse(template))
        except ValueError as error:
            raise DataError(
                "task.template-syntax",
                f"the template of task '{self.name}' is not valid ({error}); write fields as {{text}}",
            ) from None
        for _, name, form, conversion in parsed:
            if name is not None and (not name.isidentifier() or conversion or form not in _FILTERS):
                raise DataError(
                    "task.field-syntax",
                    f"task '{self.name}' has the invalid field '{name}'; write fields as {{text}}, or {{text:FILTER}}"
                    f" with one of the filters {', '.join(filter(None, _FILTERS))}",
                )
        return [(literal, name, form or "") for literal, name, form, _ in parsed]
