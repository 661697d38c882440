"""A model's chat template as a bundle takes it: fixed in time, and rendering what transformers renders."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from fedspzo.device_runtime.data.chat import ASSISTANT, SYSTEM, USER, ChatTemplate, Turn
from fedspzo.device_runtime.errors import DataError, ExportError
from fedspzo.device_runtime.model.task import Chat, Task
from fedspzo.export.checkpoint import Checkpoint

#: A question and an answer that no template has in it.
_QUESTION, _ANSWER = "Qx7 question", "Zx9 answer"
_DIALOGUES = (
    [Turn(USER, _QUESTION)],
    [Turn(USER, " spaced \n"), Turn(ASSISTANT, "\nlines\n"), Turn(USER, _QUESTION)],
    [Turn(SYSTEM, "Be brief."), Turn(USER, "one"), Turn(ASSISTANT, "two"), Turn(USER, _QUESTION)],
)


def with_chat(checkpoint: Checkpoint, task: Task, now: datetime) -> Task:
    """The task with the model's chat template, and with the token that ends the assistant's turns.

    Args:
        now: what the template takes for today, from now on.

    Raises:
        ExportError: the model has no chat template, it writes a prompt otherwise once the answer is there, or it does
            not render here what transformers renders.
    """
    texts = checkpoint.texts
    if not texts.chat:
        raise ExportError(
            "model.no-chat-template",
            f"{checkpoint.name} has no chat template, which task '{task.name}' needs; choose a model that was made for"
            " dialogues, or the task 'completion'",
        )
    date = now.isoformat(timespec="seconds") if "strftime_now" in texts.chat else ""
    chat = Chat(texts.chat, texts.words, date)
    template = ChatTemplate(chat)
    for turns in _DIALOGUES:
        for asks in (True, False):
            _compare(checkpoint, template, [*turns, *([] if asks else [Turn(ASSISTANT, _ANSWER)])], asks)
    asked = template.prompt(_DIALOGUES[0])
    whole = template.whole([*_DIALOGUES[0], Turn(ASSISTANT, _ANSWER)])
    place = whole.find(_ANSWER)
    if not whole.startswith(asked) or place < len(asked):
        raise ExportError(
            "model.chat-template-unsuited",
            f"the chat template of {checkpoint.name} writes a question otherwise when its answer is there; choose the"
            " task 'completion', or another model",
        )
    after = _special(checkpoint, whole[place + len(_ANSWER) :])
    stop = after[0].group() if after else checkpoint.end_token
    check_end(checkpoint, task, stop)
    lead = whole[len(asked) : place]
    lead = lead if lead.strip() else ""  # a space alone belongs to the answer's first word
    before = _special(checkpoint, asked + lead)
    mark = (asked + lead)[before[-1].start() :] if before else ""
    return replace(task, stop=stop, chat=replace(chat, lead=lead, mark=mark))


def check_end(checkpoint: Checkpoint, task: Task, stop: str) -> None:
    """Raise ExportError when there is no token to end an answer with."""
    if not stop or checkpoint.tokenizer.token_to_id(stop) is None:
        raise ExportError(
            "model.no-end-token",
            f"the tokenizer of {checkpoint.name} has no end-of-text token, which task '{task.name}' needs; name one in"
            ' its tokenizer_config.json ("eos_token")',
        )


def _special(checkpoint: Checkpoint, text: str) -> list[re.Match[str]]:
    """The special tokens in a text that a template has written."""
    added = checkpoint.tokenizer.get_added_tokens_decoder().values()
    special = sorted((token.content for token in added if token.special), key=len, reverse=True)
    return list(re.finditer("|".join(map(re.escape, special)) or "(?!)", text))


def _compare(checkpoint: Checkpoint, template: ChatTemplate, turns: Sequence[Turn], asks: bool) -> None:
    wanted = checkpoint.texts.render([{"role": role, "content": text} for role, text in turns], asks)
    try:
        found: str | None = template.prompt(turns) if asks else template.whole(turns)
    except DataError:
        found = None
    if found != wanted:
        raise ExportError(
            "model.chat-template-differs",
            f"the chat template of {checkpoint.name} makes {found!r:.80} here, and {wanted!r:.80} in transformers;"
            " choose the task 'completion', or another model",
        )
