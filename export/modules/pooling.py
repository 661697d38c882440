"""Pooling: one vector of a text's last hidden states, as sentence-transformers makes it."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from fedspzo.export.modules.operators import linear, unit_length
from fedspzo.export.modules.stage_module import Weights
from fedspzo.export.sentence import CLS, LAST, MAX, MEAN_SQRT, WEIGHTED, Pooling, Step

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "Identity": lambda x: x,
    "Tanh": torch.tanh,
    "ReLU": F.relu,
    "GELU": F.gelu,
    "SiLU": F.silu,
    "Sigmoid": torch.sigmoid,
}

#: Far below any activation, yet its sum with one is finite.
_LOWEST = -1e30


def pool(pooling: Pooling, weights: Weights, hidden: Tensor, mask: Tensor) -> Tensor:
    """A text's vector, scaled to unit length.

    Args:
        pooling: how it is made.
        weights: of the steps.
        hidden: [batch, tokens, width].
        mask: [batch, tokens], 1 for tokens and 0 for padding, which is at the end.

    Returns:
        [batch, width of the vector].
    """
    if pooling.skipped:
        mask = mask * (torch.arange(mask.shape[1]) >= pooling.skipped).to(mask.dtype)
    vectors = [_pool(mode, hidden, mask, pooling.skipped) for mode in pooling.modes]
    x = vectors[0] if len(vectors) == 1 else torch.cat(vectors, dim=-1)
    for step in pooling.steps:
        x = _apply(step, weights, x)
    return unit_length(x if pooling.width is None else x[:, : pooling.width], may_vanish=bool(pooling.steps))


def _pool(mode: str, hidden: Tensor, mask: Tensor, skipped: int) -> Tensor:
    if mode == CLS:
        return hidden[:, skipped]
    if mode == MAX:
        return (hidden + (1.0 - mask).unsqueeze(-1) * _LOWEST).amax(dim=1)
    if mode == LAST:
        following = torch.cat([mask[:, 1:], torch.zeros_like(mask[:, :1])], dim=1)
        return (hidden * (mask - following * mask).unsqueeze(-1)).sum(dim=1)
    shares = mask * torch.arange(1.0, mask.shape[1] + 1.0) if mode == WEIGHTED else mask
    count = shares.sum(dim=1, keepdim=True)
    if skipped:  # a text may have nothing after its prompt
        count = count.clamp(min=1e-9)
    return (hidden * shares.unsqueeze(-1)).sum(dim=1) / (torch.sqrt(count) if mode == MEAN_SQRT else count)


def _apply(step: Step, weights: Weights, x: Tensor) -> Tensor:
    """[batch, in] → [batch, out]."""
    if step.kind == "Normalize":
        return unit_length(x, may_vanish=True)
    if step.kind == "LayerNorm":
        return weights.layer_norm(f"{step.name}.norm", x, 1e-5)
    bias = weights[f"{step.name}.linear.bias"] if "linear.bias" in step.tensors else None
    y = _ACTIVATIONS[step.act](linear(x, weights[f"{step.name}.linear.weight"], bias))
    if not step.residual:
        return y
    return y + (linear(x, weights[f"{step.name}.residual.weight"]) if "residual.weight" in step.tensors else x)
