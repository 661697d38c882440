"""Backpropagation through a bundle's PyTorch programs, for simulations: devices themselves only run forward passes."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fedspzo.device_runtime.data.store import DataStore
from fedspzo.device_runtime.engines.protocol import create_engine
from fedspzo.device_runtime.errors import BundleError
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.model.manifest import HIDDEN, ROWS, Shape, StageSpec
from fedspzo.device_runtime.model.stored import Stored, widened
from fedspzo.device_runtime.step.runner import Batch, Forward

if TYPE_CHECKING:
    import torch

#: Tensor index → float32 array of the tensor's shape.
Tensors = Mapping[int, np.ndarray]


@dataclass(frozen=True)
class Gradient:
    """The gradient of a batch's mean loss.

    Attributes:
        tensors: with respect to each weight that was given.
        loss: mean over the examples.
        examples: how many they were.
        flops: operations of the matrix products, forward and backward.
    """

    tensors: Tensors
    loss: float
    examples: int
    flops: int


class _Untrained:
    """A bundle's tensors over its mapped file; see :class:`fedspzo.device_runtime.step.runner.ModelWeights`."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle

    def tensor(self, index: int) -> Stored:
        return self.bundle.tensor(index)


class Backpropagation:
    """Gradients with respect to the trainable tensors of a bundle: its own weights, or its adapters.

    Attributes:
        bundle: the bundle.
    """

    def __init__(self, bundle: Bundle, threads: int = 1) -> None:
        """Make ready.

        Raises:
            EngineError: PyTorch is not installed.
            BundleError: the bundle has no graphs for it.
        """
        if "torch" not in bundle.formats:
            raise BundleError(
                "bundle.no-torch-graphs",
                f"{bundle.folder} has graphs for {', '.join(bundle.formats)}, and gradients need those for PyTorch;"
                " export it with --engine litert,torch",
            )
        self.bundle = bundle
        self._forward = Forward(create_engine("torch", threads), _Untrained(bundle))
        self._programs: dict[str, torch.nn.Module] = {}
        self._flops: dict[tuple[int, int], int] = {}

    def start(self) -> dict[int, np.ndarray]:
        """θ₀ of the trainable tensors that the loss depends on, in float32."""
        manifest = self.bundle.manifest
        used = dict.fromkeys(index for stage in manifest.stages for index in stage.tensors)
        trained = [index for index in used if manifest.tensors[index].trainable]
        return {index: np.array(widened(self.bundle.tensor(index))) for index in trained}

    def __call__(self, weights: Tensors, store: DataStore, indices: np.ndarray) -> Gradient:
        """The gradient at some weights, on some examples of a store (at most the bundle's batch)."""
        import torch
        from torch.utils.flop_counter import FlopCounterMode

        batch = self._forward.batch(store, indices)
        size = batch.shape.batch, batch.shape.length
        leaves = {index: torch.from_numpy(array).requires_grad_() for index, array in weights.items()}
        # What is computed depends on the shape alone, and counting takes time: once for each is enough.
        with nullcontext() if size in self._flops else FlopCounterMode(display=False) as counter:
            loss = self.losses(batch, leaves)[: batch.count].mean()
            loss.backward()
        if counter is not None:
            self._flops[size] = counter.get_total_flops()
        tensors = {
            i: np.zeros_like(weights[i]) if leaf.grad is None else leaf.grad.numpy() for i, leaf in leaves.items()
        }
        return Gradient(tensors, loss.item(), batch.count, self._flops[size])

    def losses(self, batch: Batch, leaves: Mapping[int, torch.Tensor]) -> torch.Tensor:
        """The losses [batch] with their history, at weights that ``leaves`` has and else at θ₀."""
        import torch

        hidden = torch.from_numpy(batch.feeds[ROWS])
        for stage in self.bundle.manifest.stages:
            feeds = [
                hidden if name == HIDDEN else torch.from_numpy(batch.feeds[name])
                for name in batch.shape.graphs[stage.graph].feeds
            ]
            tensors = [leaves[i] if i in leaves else self._frozen(i) for i in stage.tensors]
            constants = [self._frozen(i).reshape(self.bundle.tensor(i).shape[-2:]) for i in stage.constants]
            hidden = self._program(batch.shape, stage)(*feeds, *tensors, *constants)[0]
        return hidden

    def _frozen(self, index: int) -> torch.Tensor:
        import torch

        return torch.from_numpy(widened(self.bundle.tensor(index)))

    def _program(self, shape: Shape, stage: StageSpec) -> torch.nn.Module:
        import torch

        file = shape.graphs[stage.graph].files["torch"]
        if file not in self._programs:
            self._programs[file] = torch.export.load(self.bundle.folder / file).module()
        return self._programs[file]
