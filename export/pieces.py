"""Pieces of a network as PyTorch modules whose weights are inputs: what a family is written in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from export import operators


class Weights:
    """A piece's weights by their names in the checkpoint, without the part's prefix."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def linear(self, name: str, x: Tensor) -> Tensor:
        """x @ weight, plus the bias where the piece has one."""
        return operators.linear(x, self[f"{name}.weight"], self._tensors.get(f"{name}.bias"))

    def layer_norm(self, name: str, x: Tensor, epsilon: float) -> Tensor:
        """Layer normalisation over the last axis."""
        weight = self[f"{name}.weight"]
        return F.layer_norm(x, weight.shape, weight, self[f"{name}.bias"], epsilon)

    def rms_norm(self, name: str, x: Tensor, epsilon: float) -> Tensor:
        """Root-mean-square normalisation over the last axis."""
        return operators.rms_norm(x, self[f"{name}.weight"], epsilon)


class Piece(torch.nn.Module):
    """One stage's computation. A subclass sets ``feeds`` and writes :meth:`compute`.

    Attributes:
        feeds: names of its leading inputs: ``hidden``, or feeds that ``device_runtime.feeds`` knows.
        tensors: names of its weights, which follow the feeds.
    """

    feeds: ClassVar[tuple[str, ...]] = ("hidden",)

    def __init__(self, tensors: Sequence[str]) -> None:
        super().__init__()
        self.tensors = tuple(tensors)

    def compute(self, weights: Weights, *feeds: Tensor) -> Tensor | tuple[Tensor, ...]:
        """The stage's output from its feeds."""
        raise NotImplementedError

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Feeds, then weights in the order of ``tensors`` → the outputs."""
        count = len(self.feeds)
        named = dict(zip(self.tensors, inputs[count:], strict=True))
        outputs = self.compute(Weights(named), *inputs[:count])
        return outputs if isinstance(outputs, tuple) else (outputs,)


def affine(*names: str, bias: bool = True) -> list[str]:
    """Tensor names of linear maps or norms: each a weight, and a bias where they have one."""
    return [f"{name}.{part}" for name in names for part in (("weight", "bias") if bias else ("weight",))]
