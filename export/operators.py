"""Building blocks of stage modules, in the forms that both engines delegate whole (design, section 5)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

#: Added to attention scores where a token is padding; far below any score, yet finite in float32.
_MASKED = -1e4


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A linear map as a batched matrix product: a weight that is an input is delegated only in this form.

    Args:
        x: [..., in].
        weight: [1, in, out], stored so: a reshape inside the graph would copy it at every call.
        bias: [out].
    """
    flat = torch.bmm(x.reshape(1, -1, x.shape[-1]), weight) + bias
    return flat.reshape(*x.shape[:-1], weight.shape[-1])


def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, heads: int) -> Tensor:
    """Bidirectional multi-head attention.

    Args:
        query, key, value: [batch, tokens, width].
        mask: [batch, tokens], 1 for tokens and 0 for padding.
        heads: number of heads.

    Returns:
        [batch, tokens, width].
    """
    batch, tokens, width = query.shape
    size = width // heads

    def split(x: Tensor) -> Tensor:
        return x.reshape(batch, tokens, heads, size).transpose(1, 2).reshape(batch * heads, tokens, size)

    scores = torch.bmm(split(query), split(key).transpose(1, 2)) / math.sqrt(size)
    bias = ((1.0 - mask) * _MASKED).reshape(batch, 1, 1, tokens)
    shares = torch.softmax(scores.reshape(batch, heads, tokens, tokens) + bias, dim=-1)
    mixed = torch.bmm(shares.reshape(batch * heads, tokens, tokens), split(value))
    return mixed.reshape(batch, heads, tokens, size).transpose(1, 2).reshape(batch, tokens, width)


def mean_pool(hidden: Tensor, mask: Tensor) -> Tensor:
    """Mean over the tokens that are not padding, scaled to unit length.

    Args:
        hidden: [batch, tokens, width].
        mask: [batch, tokens].

    Returns:
        [batch, width].
    """
    pooled = (hidden * mask.unsqueeze(-1)).sum(dim=1) / mask.sum(dim=1, keepdim=True)
    return pooled / torch.sqrt((pooled * pooled).sum(dim=1, keepdim=True))


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Loss of each example.

    Args:
        logits: [batch, labels].
        targets: [batch, labels], one-hot.

    Returns:
        [batch].
    """
    shifted = logits - logits.amax(dim=-1, keepdim=True)
    return torch.log(torch.exp(shifted).sum(dim=-1)) - (shifted * targets).sum(dim=-1)
