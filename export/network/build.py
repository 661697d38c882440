"""A model and a task as a network: stages in order, the graph of each, and where its tensors come from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from transformers import AutoModel

from fedspzo.device_runtime.errors import ExportError
from fedspzo.device_runtime.model.manifest import StageSpec, TensorSpec
from fedspzo.device_runtime.model.stored import GROUP, QUANTISED
from fedspzo.device_runtime.model.task import GENERATION, SIMILARITY, Task
from fedspzo.export.checkpoint import Checkpoint
from fedspzo.export.families import Architecture
from fedspzo.export.modules.heads import LABEL_BIAS, LABELS, TABLE, AnswerLoss, LabelWords, NextToken, Similarity
from fedspzo.export.modules.operators import mean_pool
from fedspzo.export.modules.stage_module import ADDED, StageModule
from fedspzo.export.network.adapters import Adapters, linear_shape
from fedspzo.export.network.target import Target
from fedspzo.export.network.tokens import label_tokens
from fedspzo.export.quiet import quiet


@dataclass(frozen=True)
class Tensor:
    """A weight tensor of a bundle and the way to load it (float32, in the bundle's shape)."""

    spec: TensorSpec
    load: Callable[[], np.ndarray]


@dataclass(frozen=True)
class Network:
    """A model for one shape of batches, before lowering.

    Attributes:
        groups, batch, length: the shape: branches together, examples of each, tokens.
        feeds: feed name → shape.
        embedding, output: names of the token table and, for generation, of the table that scores tokens.
        tensors: all tensors, in the order that directions are keyed by; the same for all shapes.
        graphs: graph name → its module. Stages with constants have graphs of their own, though the modules be the same.
        stages: the stages in order.
        decoder: for generation, the stage that scores the next token.
    """

    groups: int
    batch: int
    length: int
    feeds: Mapping[str, tuple[int, ...]]
    embedding: str
    output: str
    tensors: Mapping[str, Tensor]
    graphs: Mapping[str, StageModule]
    stages: tuple[StageSpec, ...]
    decoder: StageSpec | None

    def shape(self, index: int) -> tuple[int, ...]:
        """A tensor's shape as graphs take it: one adapter for each branch."""
        name, tensor = list(self.tensors.items())[index]
        return (self.groups, *tensor.spec.shape[1:]) if name.endswith(ADDED) else tensor.spec.shape

    @property
    def all_stages(self) -> tuple[StageSpec, ...]:
        """The stages, and the decoder when there is one."""
        return (*self.stages, self.decoder) if self.decoder else self.stages


def build_network(
    checkpoint: Checkpoint,
    architecture: Architecture,
    task: Task,
    target: Target,
    groups: int,
    batch: int,
    length: int,
) -> Network:
    """Put an architecture and the head for a task together.

    Args:
        architecture: with its adapters, if there are any.
        target: says what is trained.
        groups, batch, length: the shape.

    Raises:
        ExportError: the checkpoint lacks a tensor, or a label word is not one token.
    """
    # A table that a graph takes whole is kept as the graph takes it: widening all of it would cost more than it saves.
    whole = "int8" if target.weights in QUANTISED else "float32"
    shared = task.form == GENERATION and architecture.output == architecture.embedding
    rows = whole if shared or target.weights in QUANTISED else target.weights
    tensors = {architecture.embedding: _table(checkpoint, architecture.embedding, rows)}
    for part in architecture.stages:
        for source in part.tensors:
            if source in architecture.tables:
                tensors[source] = _table(checkpoint, source)
            elif target.adapters is not None and source.endswith(ADDED):
                shape = target.adapters.shape(source, linear_shape(checkpoint, source, architecture.conv1d))
                tensors[source] = _added(target.adapters, source, shape, target.trains(source))
            else:
                tensors[source] = _weight(checkpoint, source, target, architecture.conv1d)
    if task.form != SIMILARITY and architecture.final is not None:
        for source in architecture.final.tensors:
            tensors[source] = _weight(checkpoint, source, target, architecture.conv1d, head=True)
    output = ""
    if task.form == SIMILARITY:
        tensors[LABELS] = _descriptions(checkpoint, task, architecture.limit)
    elif task.form == GENERATION:
        output = architecture.output
        tensors.setdefault(output, _table(checkpoint, output, whole))
    else:
        tensors.update(_label_words(checkpoint, architecture, task))
    indices = {name: index for index, name in enumerate(tensors)}

    graphs: dict[str, StageModule] = {}
    ending: dict[tuple[int, tuple[object, ...]], StageModule] = {}

    def stage(name: str, graph: str, module: StageModule, prefix: str) -> StageSpec:
        places = {tensor: prefix + tensor if prefix + tensor in indices else tensor for tensor in module.tensors}
        places |= {TABLE: output} if TABLE in places else {}
        constants = tuple(t for t, source in places.items() if tensors[source].spec.dtype in QUANTISED)
        if constants:
            kinds = tuple((t, tensors[places[t]].spec.shape, tensors[places[t]].spec.dtype) for t in constants)
            module = ending.setdefault((id(module), kinds), module.ending(constants))
            graph = name.replace(" ", "-")
        graphs[graph] = module
        found = [indices[places[tensor]] for tensor in module.tensors]
        inputs = len(found) - len(constants)
        return StageSpec(name, graph, tuple(found[:inputs]), tuple(found[inputs:]))

    head, decoder = _heads(architecture, task)
    final_prefix = architecture.final.prefix if architecture.final else ""
    stages = (
        *(stage(s.name, s.graph, s.module, s.prefix) for s in architecture.stages),
        stage("head", "head", head, final_prefix),
    )
    decoding = stage("decoder", "decoder", decoder, final_prefix) if decoder else None
    count = groups * batch
    hidden = (count, length, tensors[architecture.embedding].spec.shape[-1])
    width = tensors[output].spec.shape[-1] if output else hidden[-1]
    answers = task.answer_tokens or 1
    sizes = {
        "mask": (count, length),
        "targets": (count, len(task.labels)),
        "select": (count, answers, length),
        "answer_rows": (count, answers, width),
        "answer_mask": (count, answers),
        "last": (count, 1, length),
    }
    used = {feed for module in graphs.values() for feed in module.feeds}
    return Network(
        groups=groups,
        batch=batch,
        length=length,
        feeds={"rows": hidden, **{name: size for name, size in sizes.items() if name in used}},
        embedding=architecture.embedding,
        output=output,
        tensors=tensors,
        graphs=graphs,
        stages=stages,
        decoder=decoding,
    )


def _heads(architecture: Architecture, task: Task) -> tuple[StageModule, StageModule | None]:
    if task.form == SIMILARITY or architecture.final is None:
        return Similarity(), None
    if task.form == GENERATION:
        return AnswerLoss(architecture.final.module), NextToken(architecture.final.module)
    return LabelWords(architecture.final.module), None


def _weight(checkpoint: Checkpoint, source: str, target: Target, conv1d: bool, head: bool = False) -> Tensor:
    """A weight as graphs take it: a matrix as [1, in, out], or quantised as [out, in] (the head's to 8 bits)."""
    shape, trainable = checkpoint.shape(source), target.trains(source)
    if len(shape) != 2:
        return Tensor(TensorSpec(source, shape, trainable, source, False), lambda: checkpoint.tensor(source))
    dtype = target.weights
    if dtype in QUANTISED and not any(features % GROUP for features in shape):
        spec = TensorSpec(source, shape[::-1] if conv1d else shape, False, source, conv1d, "int8" if head else dtype)
        return Tensor(spec, lambda: checkpoint.tensor(source).T if conv1d else checkpoint.tensor(source))
    if dtype in QUANTISED:  # codes must fill whole groups, and engines' alignment
        dtype = "float32"
    if conv1d:
        spec = TensorSpec(source, (1, *shape), trainable, source, False, dtype)
        return Tensor(spec, lambda: checkpoint.tensor(source)[None])
    spec = TensorSpec(source, (1, shape[1], shape[0]), trainable, source, True, dtype)
    return Tensor(spec, lambda: checkpoint.tensor(source).T[None])


def _added(adapters: Adapters, source: str, shape: tuple[int, int, int], trainable: bool) -> Tensor:
    """A part of an adapter: no tensor of the checkpoint, but named as if it were."""
    return Tensor(TensorSpec(source, shape, trainable, "", True), lambda: adapters.start(source, shape))


def _table(checkpoint: Checkpoint, source: str, dtype: str = "float32") -> Tensor:
    """A table that is looked up: [1, rows, width], frozen."""
    spec = TensorSpec(source, (1, *checkpoint.shape(source)), False, source, False, dtype)
    return Tensor(spec, lambda: checkpoint.tensor(source)[None])


def _derived(name: str, shape: tuple[int, ...], load: Callable[[], np.ndarray]) -> Tensor:
    """A frozen tensor made from the checkpoint."""
    return Tensor(TensorSpec(name, shape, False, "", False), load)


def _label_words(checkpoint: Checkpoint, architecture: Architecture, task: Task) -> dict[str, Tensor]:
    ids = label_tokens(checkpoint, task)
    width = checkpoint.shape(architecture.output)[-1]

    def biases() -> np.ndarray:
        if not architecture.output_bias:
            return np.zeros(len(ids), np.float32)
        return checkpoint.tensor(architecture.output_bias)[ids]

    return {
        LABELS: _derived(LABELS, (1, width, len(ids)), lambda: checkpoint.rows(architecture.output, ids).T[None]),
        LABEL_BIAS: _derived(LABEL_BIAS, (len(ids),), biases),
    }


def _descriptions(checkpoint: Checkpoint, task: Task, limit: int) -> Tensor:
    shape = (1, checkpoint.config.hidden_size, len(task.labels))
    return _derived(LABELS, shape, lambda: embed_descriptions(checkpoint, task, limit).T[None])


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
