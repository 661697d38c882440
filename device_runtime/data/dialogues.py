"""Dialogues in records: ``messages``, or ``prompt`` and ``completion``, as instruction data has them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from fedspzo.device_runtime.data.chat import ASSISTANT, ROLES, USER, Turn
from fedspzo.device_runtime.data.texts import check_text, found
from fedspzo.device_runtime.errors import DataError
from fedspzo.device_runtime.model.task import Task

MESSAGES = "messages"


def answered_turns(record: Mapping[str, object], task: Task) -> Iterator[tuple[tuple[Turn, ...], str]]:
    """(the turns before, the answer) for each turn of the assistant that is learnt.

    Those are all in ``messages`` but one that starts the dialogue, or those in the completion. Prompt and completion
    are each a text or a list of messages.

    Raises:
        DataError: the record has no dialogue, or its last turn is not the assistant's.
    """
    prompt, completion = task.fields[0], task.target
    if record.get(MESSAGES) is not None:
        before, turns = [], _turns(MESSAGES, record[MESSAGES], USER)
    elif record.get(prompt) is None:
        raise DataError(
            "data.missing-field",
            f"the field '{MESSAGES}' is missing, or '{prompt}' and '{completion}', which task '{task.name}' needs;"
            f" {found(record)}",
        )
    elif record.get(completion) is None:
        raise DataError(
            "data.missing-answer",
            f"the field '{completion}' has no answer, which task '{task.name}' needs; {found(record)}",
        )
    else:
        before = _turns(prompt, record[prompt], USER)
        turns = _turns(completion, record[completion], ASSISTANT)
    role, text = turns[-1]
    if role != ASSISTANT or not text.strip():
        raise DataError(
            "data.no-answer-turn",
            f"the last turn of the dialogue is {'of the ' + role if text.strip() else 'empty'}; end it with what the"
            f" {ASSISTANT} should say, or leave it out",
        )
    dialogue = (*before, *turns)
    for place in range(max(1, len(before)), len(dialogue)):
        if dialogue[place].role == ASSISTANT and dialogue[place].text.strip():
            yield dialogue[:place], dialogue[place].text


def _turns(field: str, value: object, role: str) -> list[Turn]:
    """The turns of a list of messages, or the only one of a text."""
    if isinstance(value, str):
        check_text(field, value)
        return [Turn(role, value)]
    if not isinstance(value, list) or not value or not all(isinstance(message, dict) for message in value):
        raise DataError(
            "data.not-a-dialogue",
            f"the field '{field}' is not a dialogue; write a list such as"
            ' [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]',
        )
    return [_turn(field, number, message) for number, message in enumerate(value, start=1)]


def _turn(field: str, number: int, message: Mapping[str, object]) -> Turn:
    role, text = message.get("role"), message.get("content")
    if role not in ROLES:
        raise DataError(
            "data.unknown-role",
            f"message {number} of '{field}' has the role {str(role)[:40]!r}; use one of {', '.join(ROLES)}",
        )
    if not isinstance(text, str) or message.get("tool_calls"):
        raise DataError(
            "data.not-text",
            f"message {number} of '{field}' is not a text alone; write its text as \"content\", without calls of tools",
        )
    check_text(field, text)
    return Turn(str(role), text)
