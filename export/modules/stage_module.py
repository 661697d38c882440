"""Pieces of a network as PyTorch modules whose weights are inputs: what a family is written in."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from copy import copy

import torch
import torch.nn.functional as F
from torch import Tensor

from fedspzo.export.modules import operators

#: What follows a linear map's name in the names of its adapter's two factors, as peft has them.
DOWN, UP = ".lora_A.weight", ".lora_B.weight"
#: The same for factors on its outputs.
FACTORS = ".factors"
#: The same for a core and the two bases that it lies between, which stay as they are.
RIGHT, CORE, LEFT = ".core_R", ".core_C", ".core_L"
#: All that adapters add; each of the branches that share a run has its own of what is trained.
ADDED = (DOWN, UP, FACTORS, RIGHT, CORE, LEFT)


class Weights:
    """A module's weights by their names in the checkpoint, without the part's prefix."""

    def __init__(self, tensors: Mapping[str, Tensor], scale: float = 1.0, alike: Collection[str] = frozenset()) -> None:
        """A module's weights.

        Args:
            tensors: the weights.
            scale: factor on what adapters add.
            alike: linear maps whose input all branches share.
        """
        self._tensors = tensors
        self._scale = scale
        self._alike = alike

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    @property
    def groups(self) -> int:
        """How many branches go through the stage together, each with adapters of its own."""
        return max((x.shape[0] for name, x in self._tensors.items() if name.endswith(ADDED)), default=1)

    def linear(self, name: str, x: Tensor) -> Tensor:
        """x @ weight, plus the bias, with the adapter where the module has one."""
        shared = name in self._alike
        x = x[: x.shape[0] // self.groups] if shared else x
        y = operators.linear(x, self[f"{name}.weight"], self._tensors.get(f"{name}.bias"))
        factors = self._tensors.get(name + FACTORS)
        if factors is not None:
            y = operators.scale_outputs(y, factors, shared)
        if name + CORE in self._tensors:
            added = operators.low_rank(x, *(self[name + part] for part in (RIGHT, CORE, LEFT)), shared=shared)
            y = operators.add_by_group(y, added)
        if name + UP in self._tensors:
            added = operators.low_rank(x, self[name + DOWN], self[name + UP], shared=shared)
            y = operators.add_by_group(y, added * self._scale)
        return y

    def layer_norm(self, name: str, x: Tensor, epsilon: float) -> Tensor:
        """Layer normalisation over the last axis, with the bias where there is one."""
        weight = self[f"{name}.weight"]
        return F.layer_norm(x, weight.shape, weight, self._tensors.get(f"{name}.bias"), epsilon)

    def rms_norm(self, name: str, x: Tensor, epsilon: float) -> Tensor:
        """Root-mean-square normalisation over the last axis."""
        return operators.rms_norm(x, self[f"{name}.weight"], epsilon)


class StageModule(torch.nn.Module, ABC):
    """One stage's computation. A subclass sets ``feeds`` and writes :meth:`compute`.

    Attributes:
        feeds: names of its leading inputs: ``hidden``, or feeds that ``fedspzo.device_runtime.step.inputs`` knows.
        tensors: names of its weights, which follow the feeds.
        alike: linear maps whose input all branches of a run share.
    """

    feeds: tuple[str, ...] = ("hidden",)

    def __init__(self, tensors: Sequence[str]) -> None:
        super().__init__()
        self.tensors = tuple(tensors)
        self.scale = 1.0
        self.alike: frozenset[str] = frozenset()

    def adapted(self, names: Sequence[str], parts: Sequence[str], scale: float) -> StageModule:
        """The module with adapters of such parts on some of its linear maps; what low-rank ones add is scaled."""
        module = copy(self)
        module.tensors = (*self.tensors, *(name + part for name in names for part in parts))
        module.scale = scale
        return module

    def starting_alike(self, names: Collection[str]) -> StageModule:
        """The module for branches that start alike, so that those of its linear maps share their input."""
        module = copy(self)
        module.alike = frozenset(names)
        return module

    def ending(self, names: Sequence[str]) -> StageModule:
        """The module with some of its tensors as the last of its inputs."""
        module = copy(self)
        module.tensors = (*(name for name in self.tensors if name not in names), *names)
        return module

    @abstractmethod
    def compute(self, weights: Weights, *feeds: Tensor) -> Tensor | tuple[Tensor, ...]:
        """The stage's output from its feeds."""

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Feeds, then weights in the order of ``tensors`` → the outputs."""
        count = len(self.feeds)
        named = dict(zip(self.tensors, inputs[count:], strict=True))
        outputs = self.compute(Weights(named, self.scale, self.alike), *inputs[:count])
        return outputs if isinstance(outputs, tuple) else (outputs,)


def affine(*names: str, bias: bool = True) -> list[str]:
    """Tensor names of linear maps or norms: each a weight, and a bias where they have one."""
    return [f"{name}.{part}" for name in names for part in (("weight", "bias") if bias else ("weight",))]


def linear_name(source: str) -> str:
    """Name of the linear map that a part of an adapter belongs to."""
    return next((source.removesuffix(part) for part in ADDED if source.endswith(part)), source)
