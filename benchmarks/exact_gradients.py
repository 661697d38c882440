"""Exact gradients of adapters in little memory, to compare with: backpropagation a layer at a time.

Written for this comparison after MeSP and MeBP (arXiv 2602.13069, 2510.03425): the input of each layer is kept, a layer
is computed again when its gradient is due, and a quantised matrix, which is mapped, is widened a few rows at a time
when it is multiplied with. So one layer's activations are in memory, and no matrix is. It takes the same bundle as
FedSPZO, its adapters and labels' vectors, and the modules that the bundle's graphs were lowered from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.model.manifest import HIDDEN, ROWS
from fedspzo.device_runtime.model.stored import Quantised, widened
from fedspzo.export.checkpoint import Checkpoint
from fedspzo.export.families import find_family
from fedspzo.export.modules.heads import LabelWords
from fedspzo.export.modules.stage_module import StageModule, Weights

#: Rows of a matrix that are widened at a time.
ROWS_AT_ONCE = 512


class Product(torch.autograd.Function):
    """x @ weight.T of a quantised weight, which is widened again for the gradient of x and has none itself."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Quantised) -> Tensor:
        ctx.weight = weight
        return torch.cat([F.linear(x, rows) for rows in _widened_rows(weight)], dim=-1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        found = torch.zeros(*gradient.shape[:-1], ctx.weight.shape[-1])
        for number, rows in enumerate(_widened_rows(ctx.weight)):
            found += gradient[..., number * ROWS_AT_ONCE : (number + 1) * ROWS_AT_ONCE] @ rows
        return found, None


def _widened_rows(weight: Quantised) -> Iterator[Tensor]:
    outputs = weight.shape[0]
    for start in range(0, outputs, ROWS_AT_ONCE):
        yield torch.from_numpy(widened(weight.slice(start, min(start + ROWS_AT_ONCE, outputs))))


class MappedMatrix:
    """A quantised matrix [out, in] over a mapped file, which stands for a tensor."""

    ndim = 2

    def __init__(self, stored: Quantised) -> None:
        self.stored = stored

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Tensor], types: Sequence[type], args: Sequence[Any], kwargs: object = None
    ) -> Tensor:
        """Only its product is known."""
        assert func is F.linear, f"{func} of a quantised matrix"
        return Product.apply(args[0], args[1].stored)


class LayerByLayer:
    """Adapters and labels' vectors, trained with Adam by gradients a layer at a time.

    Attributes:
        leaves: tensor index → what is trained.
    """

    def __init__(self, bundle: Bundle, checkpoint: Checkpoint, learning_rate: float) -> None:
        """Make ready; the checkpoint gives the config alone. Tasks whose labels are words are known."""
        self._bundle, manifest = bundle, bundle.manifest
        architecture = find_family(checkpoint).describe(checkpoint, manifest.length)
        assert architecture.final is not None
        head = LabelWords(architecture.final.module, architecture.scoring)
        parts = [(stage.module, stage.prefix) for stage in architecture.stages] + [(head, architecture.final.prefix)]
        self._stages = list(zip(parts, manifest.stages, strict=True))
        adapters = manifest.adapters
        self._scale = adapters.alpha / adapters.rank if adapters is not None else 1.0
        trained = [index for stage in manifest.stages for index in stage.tensors if manifest.tensors[index].trainable]
        self.leaves = {
            index: torch.from_numpy(np.array(widened(bundle.tensor(index)))).requires_grad_() for index in trained
        }
        self._adam = torch.optim.Adam(self.leaves.values(), lr=learning_rate)

    def gradient(self, feeds: Mapping[str, np.ndarray], count: int) -> float:
        """The mean loss of the first ``count`` rows of a batch; its gradient is then in the leaves' ``grad``.

        Args:
            feeds: of the batch, as :attr:`fedspzo.device_runtime.step.runner.Batch.feeds` has them.
        """
        given = {name: torch.from_numpy(feed) for name, feed in feeds.items()}
        inputs = [given[ROWS]]
        with torch.no_grad():
            for number in range(len(self._stages) - 1):
                inputs.append(self._run(number, given, inputs[-1]))
        gradient: Tensor | None = None
        loss = 0.0
        for number in range(len(self._stages) - 1, -1, -1):
            hidden = inputs.pop().detach().requires_grad_()
            output = self._run(number, given, hidden)
            if gradient is None:
                output = output[:count].mean()
                loss = output.item()
            output.backward(gradient)
            gradient = hidden.grad
            del output
            self._bundle.let_go(self._stages[number][1].constants)
        return loss

    def step(self, feeds: Mapping[str, np.ndarray], count: int) -> float:
        """One step of Adam; the loss before it."""
        self._adam.zero_grad(set_to_none=True)
        loss = self.gradient(feeds, count)
        self._adam.step()
        return loss

    def _run(self, number: int, given: Mapping[str, Tensor], hidden: Tensor) -> Tensor:
        (module, prefix), stage = self._stages[number]
        specs = self._bundle.manifest.tensors
        named = {specs[i].name.removeprefix(prefix): self._weight(i) for i in (*stage.tensors, *stage.constants)}
        feeds = [hidden if name in (HIDDEN, ROWS) else given[name] for name in module.feeds]
        output = _compute(module, Weights(named, self._scale), feeds)
        if not torch.is_grad_enabled():
            self._bundle.let_go(stage.constants)
        return output

    def _weight(self, index: int) -> Any:
        if index in self.leaves:
            return self.leaves[index]
        stored = self._bundle.tensor(index)
        return MappedMatrix(stored) if isinstance(stored, Quantised) else torch.from_numpy(widened(stored))


def _compute(module: StageModule, weights: Weights, feeds: Sequence[Tensor]) -> Tensor:
    outputs = module.compute(weights, *feeds)
    return outputs[0] if isinstance(outputs, tuple) else outputs
