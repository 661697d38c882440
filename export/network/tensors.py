"""The tensors of a network, in the order that directions are keyed by: the model's, adapters', and the head's."""

from __future__ import annotations

import numpy as np
import torch
from transformers import AutoModel

from fedspzo.device_runtime.errors import ExportError
from fedspzo.device_runtime.model.stored import QUANTISED
from fedspzo.device_runtime.model.task import GENERATION, SIMILARITY, Task
from fedspzo.export.checkpoint import Checkpoint
from fedspzo.export.families import Architecture
from fedspzo.export.layout import Tensor, adapter, derived, table, weight
from fedspzo.export.modules.heads import LABEL_BIAS, LABELS
from fedspzo.export.modules.operators import mean_pool
from fedspzo.export.modules.stage_module import ADDED
from fedspzo.export.network.adapters import linear_shape
from fedspzo.export.network.target import Target
from fedspzo.export.network.tokens import label_tokens
from fedspzo.export.quiet import quiet


def network_tensors(
    checkpoint: Checkpoint, architecture: Architecture, task: Task, target: Target
) -> dict[str, Tensor]:
    """All tensors of a network by their names in the bundle, which are the same for all shapes.

    Args:
        architecture: with its adapters, if there are any.
        target: says what is trained, and what weights are stored as.

    Raises:
        ExportError: the checkpoint lacks a tensor, or a label word is not one token.
    """
    quantised = target.weights in QUANTISED
    # A table that a graph takes whole is kept as the graph takes it: widening all of it would cost more than it saves.
    whole = "int8" if quantised else "float32"
    shared = task.form == GENERATION and architecture.output == architecture.embedding
    rows = whole if shared or quantised else target.weights
    tensors = {architecture.embedding: table(checkpoint, architecture.embedding, rows)}
    for stage in architecture.stages:
        tensors.update((name, _tensor(checkpoint, architecture, target, name)) for name in stage.tensors)
    if task.form == SIMILARITY:
        return tensors | {LABELS: _descriptions(checkpoint, task, architecture.limit)}
    if architecture.final is not None:
        head = "int8" if quantised else target.weights
        for name in architecture.final.tensors:
            tensors[name] = weight(checkpoint, name, target.trains(name), head, architecture.conv1d)
    if task.form == GENERATION:
        tensors.setdefault(architecture.output, table(checkpoint, architecture.output, whole))
        return tensors
    return tensors | _label_words(checkpoint, architecture, task)


def _tensor(checkpoint: Checkpoint, architecture: Architecture, target: Target, name: str) -> Tensor:
    """A tensor of a stage before the head."""
    adapters = target.adapters
    if name in architecture.tables:
        return table(checkpoint, name)
    if adapters is not None and name.endswith(ADDED):
        shape = adapters.shape(name, linear_shape(checkpoint, name, architecture.conv1d))
        return adapter(name, shape, target.trains(name), lambda: adapters.start(name, shape))
    return weight(checkpoint, name, target.trains(name), target.weights, architecture.conv1d)


def _label_words(checkpoint: Checkpoint, architecture: Architecture, task: Task) -> dict[str, Tensor]:
    ids = label_tokens(checkpoint, task)
    width = checkpoint.shape(architecture.output)[-1]

    def biases() -> np.ndarray:
        if not architecture.output_bias:
            return np.zeros(len(ids), np.float32)
        return checkpoint.tensor(architecture.output_bias)[ids]

    return {
        LABELS: derived(LABELS, (1, width, len(ids)), lambda: checkpoint.rows(architecture.output, ids).T[None]),
        LABEL_BIAS: derived(LABEL_BIAS, (len(ids),), biases),
    }


def _descriptions(checkpoint: Checkpoint, task: Task, limit: int) -> Tensor:
    shape = (1, checkpoint.config.hidden_size, len(task.labels))
    return derived(LABELS, shape, lambda: embed_descriptions(checkpoint, task, limit).T[None])


def embed_descriptions(checkpoint: Checkpoint, task: Task, limit: int) -> np.ndarray:
    """Unit vectors float32 [L, H]: the labels' descriptions as the original model embeds them."""
    with quiet():
        model = AutoModel.from_pretrained(checkpoint.folder, dtype=torch.float32).eval()
    tokenizer = checkpoint.tokenizer
    encoded = [tokenizer.encode(label.text).ids for label in task.labels]
    longest = max(task.labels, key=lambda label: len(tokenizer.encode(label.text).ids))
    if max(map(len, encoded)) > limit:
        raise ExportError(
            "task.description-too-long",
            f"the description '{longest.text[:40]}…' of task '{task.name}' exceeds the {limit} tokens that"
            f" {checkpoint.name} takes; shorten it",
        )
    mask = torch.tensor([[1.0] * len(ids) + [0.0] * (max(map(len, encoded)) - len(ids)) for ids in encoded])
    padded = torch.tensor([ids + [checkpoint.padding] * (mask.shape[1] - len(ids)) for ids in encoded])
    with torch.inference_mode():
        hidden = model(input_ids=padded, attention_mask=mask.long()).last_hidden_state
        return np.asarray(mean_pool(hidden, mask).numpy())
