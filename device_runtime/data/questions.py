"""What is asked of a model: a template's fields or a dialogue's turns, and the text that they become."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, overload

from fedspzo.device_runtime.data.chat import SYSTEM, USER, ChatTemplate, Turn
from fedspzo.device_runtime.model.task import Task


class Question(Protocol):
    """A question: texts by name, and the text that a template makes of them."""

    @property
    def texts(self) -> Mapping[Any, str]:
        """What may be cut."""

    def holding(self, texts: Mapping[Any, str]) -> Question:
        """The same with other texts, of the same names."""

    def neutral(self) -> Question:
        """The same with texts that make no control token, not even together with the template."""

    def tails(self) -> Sequence[Question]:
        """The question itself, and shorter ones, each without more of its start."""

    def prompt(self) -> str:
        """The text that the model continues, or reads."""

    def answer(self, text: str) -> str:
        """What follows the prompt when this is the answer, its end included."""


class Fields:
    """The fields of a task's template."""

    def __init__(self, task: Task, fields: Mapping[str, str]) -> None:
        self._task = task
        self.texts: Mapping[Any, str] = {name: fields[name] for name in task.fields}

    def holding(self, texts: Mapping[Any, str]) -> Fields:
        return Fields(self._task, texts)

    def neutral(self) -> Fields:
        return Fields(self._task, dict.fromkeys(self.texts, "a"))

    def tails(self) -> list[Fields]:
        return [self]

    def prompt(self) -> str:
        return self._task.render(self.texts)

    def answer(self, text: str) -> str:
        return self._task.render_answer(text)


class Dialogue:
    """The turns of a dialogue, by their numbers."""

    def __init__(self, task: Task, template: ChatTemplate, turns: Sequence[Turn]) -> None:
        self._task, self._template, self._turns = task, template, turns
        self.texts: Mapping[Any, str] = {number: turn.text for number, turn in enumerate(turns)}

    def holding(self, texts: Mapping[Any, str]) -> Dialogue:
        return self._of([Turn(turn.role, texts[number]) for number, turn in enumerate(self._turns)])

    def neutral(self) -> Dialogue:
        """Empty turns stay empty: a template may leave them out."""
        return self._of([Turn(role, "a" if text.strip() else text) for role, text in self._turns])

    def tails(self) -> Sequence[Dialogue]:
        """Without the oldest turns, up to a turn of the user: what a system says at the start stays."""
        first = 1 if self._turns[0].role in (SYSTEM, "developer") else 0
        starts = [place for place in range(first + 1, len(self._turns)) if self._turns[place].role == USER]
        return _Made([first, *starts], lambda place: self._of([*self._turns[:first], *self._turns[place:]]))

    def prompt(self) -> str:
        return self._template.prompt(self._turns)

    def answer(self, text: str) -> str:
        """Up to the token that ends a turn, which is added when the template writes no such token."""
        answer, _, _ = self._template.answer(self._turns, text).partition(self._task.stop)
        return answer + self._task.stop

    def _of(self, turns: Sequence[Turn]) -> Dialogue:
        return Dialogue(self._task, self._template, turns)


class _Made(Sequence[Dialogue]):
    """Dialogues that are made when they are asked for: all tails of a long one together would fill the memory."""

    def __init__(self, places: Sequence[int], make: Callable[[int], Dialogue]) -> None:
        self._places, self._make = places, make

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> Dialogue: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Dialogue]: ...

    def __getitem__(self, index: int | slice) -> Dialogue | Sequence[Dialogue]:
        if isinstance(index, slice):
            return _Made(self._places[index], self._make)
        return self._make(self._places[index])
