"""Label words and masks as tokens of a checkpoint's tokenizer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime

from fedspzo.device_runtime.data.encoder import encode_open
from fedspzo.device_runtime.errors import ExportError
from fedspzo.device_runtime.model.task import GENERATION, MASKED, SIMILARITY, Task
from fedspzo.export.checkpoint import Checkpoint
from fedspzo.export.network.chat import check_end, with_chat


def with_special_tokens(checkpoint: Checkpoint, task: Task) -> Task:
    """The task with the tokenizer's mask token, or its end-of-text token, in its place.

    Raises:
        ExportError: the tokenizer has no mask token, or the model no chat template or end token, and the task needs it.
    """
    if task.chat is not None:
        return with_chat(checkpoint, task, datetime.now())
    if task.form == GENERATION:
        end = _end(checkpoint)
        if task.exact:
            check_end(checkpoint, task, end)
        return replace(task, stop=end)
    if task.form != MASKED:
        return task
    if not checkpoint.mask_token:
        raise ExportError(
            "model.no-mask-token",
            f"the tokenizer of {checkpoint.name} has no mask token, which the masked form of task '{task.name}' needs;"
            ' name one in its tokenizer_config.json ("mask_token")',
        )
    return replace(task, mask=checkpoint.mask_token)


def _end(checkpoint: Checkpoint) -> str:
    """The text of the token that ends an answer: the tokenizer's, unless generation_config.json has others alone."""
    try:
        settings = json.loads((checkpoint.folder / "generation_config.json").read_text(encoding="utf-8"))
        ids = settings["eos_token_id"]
        ends = [checkpoint.tokenizer.id_to_token(i) for i in ([ids] if isinstance(ids, int) else ids)]
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return checkpoint.end_token
    own = checkpoint.end_token
    return own if not own or own in ends else next(filter(None, ends), own)


def label_tokens(checkpoint: Checkpoint, task: Task) -> list[int]:
    """Token ids of the label words, each where the template puts it.

    Raises:
        ExportError: a label word is several tokens or none that the tokenizer knows, or two of them are the same one.
    """
    tokenizer = checkpoint.tokenizer
    found: dict[int, str] = {}
    for label in task.labels:
        new, apart = word_tokens(checkpoint, task, label.text)
        if len(new) != 1 or not apart:
            pieces = [str(tokenizer.id_to_token(i)) for i in new]
            raise ExportError(
                "task.word-splits",
                f"the label word '{label.text}' of task '{task.name}' is {len(new)} tokens for {checkpoint.name}"
                f" ({', '.join(pieces)}); choose a word that is one token",
            )
        if str(tokenizer.id_to_token(new[0])) == checkpoint.unknown_token:
            raise ExportError(
                "task.unknown-label-word",
                f"the label word '{label.text}' of task '{task.name}' is not in the vocabulary of {checkpoint.name}:"
                " its tokenizer gives the unknown token for it; choose a word that it knows",
            )
        if new[0] in found:
            raise ExportError(
                "task.words-collide",
                f"the label words '{found[new[0]]}' and '{label.text}' of task '{task.name}' are the same token for"
                f" {checkpoint.name}; choose words that differ",
            )
        found[new[0]] = label.text
    return list(found)


def word_tokens(checkpoint: Checkpoint, task: Task, text: str) -> tuple[list[int], bool]:
    """The tokens of a text where the template puts a label word, and whether those before it stay as they are."""
    before, after = task.around_answer()
    tokenizer = checkpoint.tokenizer
    if task.form == MASKED:
        empty, ids = (list(tokenizer.encode(before + word + after).ids) for word in (task.mask, text))
        return _inserted(empty, ids, tokenizer.token_to_id(task.mask) or 0), True
    empty, ids = (encode_open(tokenizer, before + word + after) for word in (task.mask, text))
    return ids[len(empty) :], ids[: len(empty)] == empty


def _inserted(empty: list[int], ids: list[int], mask: int) -> list[int]:
    """The tokens that stand in the mask's place."""
    at = empty.index(mask)
    return ids[at : len(ids) - (len(empty) - at - 1)]


def encode_within(checkpoint: Checkpoint, task: Task, fields: Mapping[str, str], length: int) -> list[int]:
    """The tokens of a filled-in template, the longest field cut so that they are no more than ``length``."""
    whole = task.form in (MASKED, SIMILARITY)
    while True:
        text = task.render(fields)
        ids = list(checkpoint.tokenizer.encode(text).ids) if whole else encode_open(checkpoint.tokenizer, text)
        longest = max(fields, key=lambda name: len(fields[name]))
        if len(ids) <= length or not fields[longest]:
            return ids[:length]
        keep = min(len(fields[longest]) - 1, len(fields[longest]) * length // len(ids))
        fields = {**fields, longest: fields[longest][:keep]}


def answer_place(checkpoint: Checkpoint, task: Task, ids: Sequence[int]) -> int:
    """The position whose output scores the labels: the mask's, where there is one, or else the last."""
    mask = checkpoint.tokenizer.token_to_id(task.mask) if task.form == MASKED else None
    return ids.index(mask) if mask is not None and mask in ids else len(ids) - 1
