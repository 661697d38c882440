"""The similarity form: what its model's folder says of texts' vectors, and the vectors of the labels' descriptions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from transformers import AutoModel

from fedspzo.device_runtime.errors import ExportError
from fedspzo.device_runtime.model.task import CAUSAL, SIMILARITY, Task
from fedspzo.export.checkpoint import Checkpoint
from fedspzo.export.families import Architecture
from fedspzo.export.modules.pooling import pool
from fedspzo.export.modules.stage_module import Weights
from fedspzo.export.quiet import in_transformers


def forms(checkpoint: Checkpoint, architecture: Architecture) -> tuple[str, ...]:
    """The forms of tasks, the best first. A decoder makes vectors of texts where its folder says how."""
    if checkpoint.is_sentence_model and CAUSAL in architecture.forms:
        return (SIMILARITY, *architecture.forms)
    return architecture.forms


def with_prompt(checkpoint: Checkpoint, task: Task) -> Task:
    """A task of the similarity form with the folder's prompt in front of its template.

    The checkpoint's tokenizer lowers texts from now on if the folder says so.

    Raises:
        ExportError: a module of the folder, or a setting of one, is not supported.
    """
    sentence = checkpoint.sentence
    if sentence is None:
        return task
    if sentence.lower_case:
        checkpoint.texts.lower()
    before = sentence.prompt.replace("{", "{{").replace("}", "}}")
    return replace(task, template=before + task.template)


def with_pooling(checkpoint: Checkpoint, architecture: Architecture) -> Architecture:
    """An architecture with the folder's pooling and its limit on tokens. Raises ExportError as above."""
    sentence = checkpoint.sentence
    if sentence is None:
        return architecture
    skipped = 0
    if sentence.prompt and not sentence.includes_prompt:
        ids = checkpoint.tokenizer.encode(sentence.prompt).ids
        skipped = len(ids) - sum(token in checkpoint.texts.roles for token in ids[-1:])
    limit = sentence.limit or checkpoint.texts.limit or architecture.limit
    pooling = replace(sentence.pooling, skipped=skipped)
    return replace(architecture, limit=min(architecture.limit, limit), pooling=pooling)


def check_descriptions(task: Task) -> None:
    """Raise ExportError where a label has no description, or two have the same."""
    found: dict[str, str] = {}
    for label in task.labels:
        text = label.text.strip()
        if not text:
            raise ExportError(
                "task.no-description",
                f"the label '{label.name}' of task '{task.name}' has an empty description; say in words what it means",
            )
        if text in found:
            raise ExportError(
                "task.descriptions-collide",
                f"the labels '{found[text]}' and '{label.name}' of task '{task.name}' have the same description, and no"
                " model could tell them apart; describe them otherwise",
            )
        found[text] = label.name


def embed_descriptions(checkpoint: Checkpoint, architecture: Architecture, task: Task) -> np.ndarray:
    """Unit vectors float32 [L, W]: the labels' descriptions as the original model embeds them.

    Raises:
        ExportError: a description is longer than the model takes, or the folder's modules do not fit together.
    """
    prompt = checkpoint.sentence.prompt if checkpoint.sentence else ""
    encoded = [checkpoint.tokenizer.encode(prompt + label.text).ids for label in task.labels]
    longest = max(range(len(encoded)), key=lambda index: len(encoded[index]))
    if len(encoded[longest]) > architecture.limit:
        raise ExportError(
            "task.description-too-long",
            f"the description '{task.labels[longest].text[:40]}…' of task '{task.name}' has {len(encoded[longest])}"
            f" tokens, and {checkpoint.name} takes {architecture.limit}; shorten it",
        )
    return embed(checkpoint, architecture, encoded)


def embed(checkpoint: Checkpoint, architecture: Architecture, encoded: Sequence[Sequence[int]]) -> np.ndarray:
    """Unit vectors float32 [texts, W] of tokenised texts that the model takes.

    Raises:
        ExportError: the folder's modules do not fit together, or transformers does not load the model.
    """
    with in_transformers(checkpoint.name):
        model = AutoModel.from_pretrained(checkpoint.folder, dtype=torch.float32).eval()
    mask = torch.tensor([[1.0] * len(ids) + [0.0] * (max(map(len, encoded)) - len(ids)) for ids in encoded])
    padded = torch.tensor([[*ids, *[checkpoint.padding] * (mask.shape[1] - len(ids))] for ids in encoded])
    sentence, names = checkpoint.sentence, architecture.pooling.tensors
    weights = Weights({name: torch.from_numpy(sentence.tensor(name)) for name in names} if sentence else {})
    with torch.inference_mode():
        with in_transformers(checkpoint.name):
            hidden = model(input_ids=padded, attention_mask=mask.long()).last_hidden_state
        try:
            return np.asarray(pool(architecture.pooling, weights, hidden, mask).numpy())
        except (RuntimeError, LookupError) as error:
            reason = str(error).strip().splitlines()[-1]
            raise ExportError(
                "model.sentence-module",
                f"the modules of {checkpoint.source} do not fit together ({reason}); get the model again",
            ) from None
