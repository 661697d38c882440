"""The tensors of a network, in the order that directions are keyed by: the model's, adapters', and the head's."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np

from fedspzo.device_runtime.model.stored import QUANTISED
from fedspzo.device_runtime.model.task import GENERATION, SIMILARITY, Task
from fedspzo.export.checkpoint import Checkpoint
from fedspzo.export.families import Architecture
from fedspzo.export.layout import Tensor, adapter, derived, table, weight
from fedspzo.export.modules.heads import LABEL_ALONG, LABEL_AXIS, LABEL_BIAS, LABELS
from fedspzo.export.modules.stage_module import ADDED
from fedspzo.export.network.adapters import linear_shape
from fedspzo.export.network.target import Target
from fedspzo.export.network.tokens import label_tokens
from fedspzo.export.network.vectors import check_descriptions, embed_descriptions


def network_tensors(
    checkpoint: Checkpoint,
    architecture: Architecture,
    task: Task,
    target: Target,
    axis: Callable[[], np.ndarray] | None = None,
) -> dict[str, Tensor]:
    """All tensors of a network by their names in the bundle, which are the same for all shapes.

    Args:
        architecture: with its adapters, if there are any.
        target: says what is trained, and what weights are stored as.
        axis: gives that of :class:`fedspzo.export.modules.heads.LabelWords`, for label words that are trained.

    Raises:
        ExportError: the checkpoint lacks a tensor, a label word is not one token, or two labels are alike.
    """
    quantised = target.weights in QUANTISED
    # A table that a graph takes whole is kept as the graph takes it: widening all of it would cost more than it saves.
    whole = "int8" if quantised else "float32"
    shared = task.form == GENERATION and architecture.output == architecture.embedding
    rows = whole if shared or quantised else target.weights
    tensors = {architecture.embedding: table(checkpoint, architecture.embedding, rows)}
    for stage in architecture.stages:
        tensors.update((name, _tensor(checkpoint, architecture, target, name)) for name in stage.tensors)
    final = architecture.closing if task.form == SIMILARITY else architecture.final
    if final is not None:
        head = "int8" if quantised else target.weights
        for name in final.tensors:
            tensors[name] = weight(checkpoint, name, target.trains(name), head, architecture.conv1d)
    if task.form == SIMILARITY:
        check_descriptions(task)
        vectors = embed_descriptions(checkpoint, architecture, task).T[None]
        tensors |= _steps(checkpoint, architecture)
        return tensors | {LABELS: derived(LABELS, vectors.shape, lambda: vectors, target.trains(LABELS))}
    if task.form == GENERATION:
        tensors.setdefault(architecture.output, table(checkpoint, architecture.output, whole))
        return tensors
    return tensors | _label_words(checkpoint, architecture, task, target, axis)


def _tensor(checkpoint: Checkpoint, architecture: Architecture, target: Target, name: str) -> Tensor:
    """A tensor of a stage before the head."""
    adapters = target.adapters
    if name in architecture.tables:
        return table(checkpoint, name)
    if adapters is not None and name.endswith(ADDED):
        shape = adapters.shape(name, linear_shape(checkpoint, name, architecture.conv1d))
        return adapter(name, shape, target.trains(name), lambda: adapters.start(name, shape))
    return weight(checkpoint, name, target.trains(name), target.weights, architecture.conv1d)


def _steps(checkpoint: Checkpoint, architecture: Architecture) -> dict[str, Tensor]:
    """What follows the pooling: frozen."""
    sentence = checkpoint.sentence
    if sentence is None:
        return {}

    def step(name: str) -> Tensor:
        array = sentence.tensor(name)
        return derived(name, array.shape, lambda: array)

    return {name: step(name) for name in architecture.pooling.tensors}


def _label_words(
    checkpoint: Checkpoint,
    architecture: Architecture,
    task: Task,
    target: Target,
    axis: Callable[[], np.ndarray] | None,
) -> dict[str, Tensor]:
    ids = label_tokens(checkpoint, task)
    width = checkpoint.shape(architecture.output)[-1]

    def rows() -> np.ndarray:
        return checkpoint.rows(architecture.output, ids)

    def biases() -> np.ndarray:
        if not architecture.output_bias:
            return np.zeros(len(ids), np.float32)
        return checkpoint.tensor(architecture.output_bias)[ids]

    @cache
    def steep() -> np.ndarray:
        return axis() if axis and target.trains(LABELS) else np.zeros(width, np.float32)

    return {
        LABELS: derived(LABELS, (1, width, len(ids)), lambda: rows().T[None], target.trains(LABELS)),
        LABEL_BIAS: derived(LABEL_BIAS, (len(ids),), biases),
        LABEL_AXIS: derived(LABEL_AXIS, (width,), steep),
        LABEL_ALONG: derived(LABEL_ALONG, (len(ids),), lambda: rows() @ steep()),
    }
