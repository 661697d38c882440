"""Model families: how a Hugging Face architecture is cut into stages. One module each; register it in ``_MODULES``."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from device_runtime.bundle import StageSpec, TensorSpec
from device_runtime.errors import ExportError
from device_runtime.task import Task
from export.checkpoint import Checkpoint


@dataclass(frozen=True)
class Graph:
    """A stage as a PyTorch module whose weights are inputs.

    Attributes:
        module: takes the feeds, then the stage's tensors; returns a tuple.
        feeds: names of the leading inputs.
    """

    module: torch.nn.Module
    feeds: tuple[str, ...]


@dataclass(frozen=True)
class Tensor:
    """A weight tensor of a bundle and the way to load it (float32, in the bundle's shape)."""

    spec: TensorSpec
    load: Callable[[], np.ndarray]


@dataclass(frozen=True)
class Network:
    """A model as stages, before lowering.

    Attributes:
        feeds: feed name → shape.
        embedding: name of the token embedding table, whose rows the runtime gathers.
        tensors: all tensors with the way to load each, in the order that directions are keyed by.
        graphs: graph name → graph.
        stages: the stages in order.
    """

    feeds: Mapping[str, tuple[int, ...]]
    embedding: str
    tensors: Mapping[str, Tensor]
    graphs: Mapping[str, Graph]
    stages: tuple[StageSpec, ...]


def trainable(checkpoint: Checkpoint, name: str, source: str) -> Tensor:
    """A tensor that rounds change; a matrix is stored as its transpose [1, in, out], as :func:`linear` takes it.

    Raises:
        ExportError: the checkpoint lacks the tensor.
    """
    shape = checkpoint.shape(source)
    if len(shape) == 2:
        return Tensor(
            TensorSpec(name, (1, shape[1], shape[0]), True, source, transposed=True),
            lambda: checkpoint.tensor(source).T[None],
        )
    return Tensor(TensorSpec(name, shape, True, source, transposed=False), lambda: checkpoint.tensor(source))


def frozen(checkpoint: Checkpoint, name: str, source: str) -> Tensor:
    """A tensor of the checkpoint, as it is, that rounds leave alone. Raises ExportError when it is missing."""
    spec = TensorSpec(name, checkpoint.shape(source), False, source, transposed=False)
    return Tensor(spec, lambda: checkpoint.tensor(source))


def derived(name: str, shape: tuple[int, ...], load: Callable[[], np.ndarray]) -> Tensor:
    """A frozen tensor made from the checkpoint."""
    return Tensor(TensorSpec(name, shape, False, "", transposed=False), load)


class Family(Protocol):
    """What a family's module provides.

    Attributes:
        MODEL_TYPES: the ``model_type`` values of the configs that it serves.
    """

    MODEL_TYPES: tuple[str, ...]

    def build(self, checkpoint: Checkpoint, task: Task, batch: int, length: int) -> Network:
        """Cut the checkpoint's network into stages for a task.

        Raises:
            ExportError: the config asks for something that the family does not do.
        """


_MODULES = ("bert",)


def find_family(checkpoint: Checkpoint) -> Family:
    """The family that serves a checkpoint. Raises ExportError, naming the supported model types, when none does."""
    families: list[Family] = [importlib.import_module(f"export.families.{name}") for name in _MODULES]
    wanted = checkpoint.config.model_type
    for family in families:
        if wanted in family.MODEL_TYPES:
            return family
    known = ", ".join(kind for family in families for kind in family.MODEL_TYPES)
    raise ExportError(f"{checkpoint.name} is of model type '{wanted}'; supported are {known}")
