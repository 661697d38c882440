"""Backpropagation through a bundle's PyTorch programs, for simulations: devices themselves only run forward passes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fedspzo.device_runtime.data.store import DataStore
from fedspzo.device_runtime.engines.protocol import create_engine
from fedspzo.device_runtime.errors import BundleError
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.model.manifest import AT, HIDDEN, ROWS, GraphSpec
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
        names = [spec.name for spec in bundle.manifest.tensors]
        self._table = names.index(bundle.manifest.output) if bundle.manifest.output else -1
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

        feeds = {name: torch.from_numpy(feed) for name, feed in batch.feeds.items()}
        hidden = feeds[ROWS]
        for stage in self.bundle.manifest.stages:
            graph = batch.shape.graphs[stage.graph]
            weights = {i: leaves[i] if i in leaves else self._frozen(i) for i in stage.tensors}
            weights |= {i: self._frozen(i).reshape(self.bundle.tensor(i).shape[-2:]) for i in stage.constants}
            table = weights.pop(self._table) if graph.slices else None
            hidden, *own = self._run(graph, {**feeds, HIDDEN: hidden}, weights.values())
            if table is not None:
                scored = {**feeds, AT: hidden}
                parts = [
                    self._run(part.graph, scored, [table[..., part.start : part.stop, :]])[0] for part in graph.slices
                ]
                mask = feeds["answer_mask"]
                missing = torch.stack(parts).logsumexp(dim=0) - own[0]
                hidden = (missing * mask).sum(dim=1) / mask.sum(dim=1)
        return hidden

    def _run(
        self, graph: GraphSpec, feeds: Mapping[str, torch.Tensor], weights: Iterable[torch.Tensor]
    ) -> tuple[torch.Tensor, ...]:
        outputs: tuple[torch.Tensor, ...] = self._program(graph)(*(feeds[name] for name in graph.feeds), *weights)
        return outputs

    def _frozen(self, index: int) -> torch.Tensor:
        import torch

        return torch.from_numpy(widened(self.bundle.tensor(index)))

    def _program(self, graph: GraphSpec) -> torch.nn.Module:
        import torch

        file = graph.files["torch"]
        if file not in self._programs:
            self._programs[file] = torch.export.load(self.bundle.folder / file).module()
        return self._programs[file]
