"""What the estimator estimates: gradients and curvature of the loss, block by block, by PyTorch's autograd.

The loss is that of the bundle's stage programs for PyTorch, which compute what the engines' graphs do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from fedspzo.broker.simulation.gradient import Backpropagation
from fedspzo.device_runtime.data.store import DataStore
from fedspzo.device_runtime.protocol.plan import Plan
from fedspzo.device_runtime.replica.weights import Replica
from fedspzo.device_runtime.step.runner import Forward


@dataclass(frozen=True)
class Curvature:
    """Of one block's own part of the Hessian H.

    Attributes:
        trace: tr H.
        norm: |H|², the sum of its squares.
    """

    trace: float
    norm: float


class Autograd:
    """The loss of some examples as a function of a replica's trained weights."""

    def __init__(self, forward: Forward[Replica], store: DataStore) -> None:
        """The bundle must have been exported for PyTorch too, with batches of as many examples as are asked for."""
        self._forward, self._store = forward, store
        self._weights = {
            index: torch.tensor(array, requires_grad=True) for index, array in forward.weights.trainable.items()
        }
        self._programs = Backpropagation(forward.bundle)

    def gradients(self, plan: Plan, indices: np.ndarray) -> list[list[np.ndarray]]:
        """For each example, for each block of a plan, ∂loss/∂weights: float64, all of the block's in one row."""
        losses = self._losses(indices)
        return [
            [_flat(torch.autograd.grad(loss, block, retain_graph=True)) for block in self._blocks(plan)]
            for loss in losses
        ]

    def curvature(self, plan: Plan, indices: np.ndarray, draws: int) -> list[Curvature]:
        """Of each block, for the mean loss of some examples, by Hutchinson's estimate: tr H = E z·Hz, |H|² = E|Hz|²."""
        found = []
        for block in self._blocks(plan):
            gradient = torch.autograd.grad(self._losses(indices).mean(), block, create_graph=True)
            quadratic, squares = [], []
            for draw in range(draws):
                torch.manual_seed(draw)
                z = [torch.randint(0, 2, tensor.shape) * 2.0 - 1.0 for tensor in block]
                product = torch.autograd.grad(gradient, block, z, retain_graph=True)
                along = _flat(product)
                quadratic.append(float(along @ _flat(z)))
                squares.append(float(along @ along))
            found.append(Curvature(float(np.mean(quadratic)), float(np.mean(squares))))
        return found

    def _blocks(self, plan: Plan) -> list[list[torch.Tensor]]:
        weights = self._forward.weights
        return [[self._weights[index] for index in weights.trainable_in(stages)] for stages in plan.stages()]

    def _losses(self, indices: np.ndarray) -> torch.Tensor:
        batch = self._forward.batch(self._store, indices)
        return self._programs.losses(batch, self._weights).reshape(-1)[: batch.count]


def _flat(tensors: Sequence[torch.Tensor]) -> np.ndarray:
    return np.concatenate([tensor.detach().numpy().astype(np.float64).ravel() for tensor in tensors])
