"""Building blocks of stage modules, in the forms that both engines delegate whole.

A matrix product with a weight that is an input is delegated as a batched product, not as a fully connected layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from fedspzo.device_runtime.errors import ExportError

#: Added to attention scores of what must not be seen. Any score vanishes beside it in float32, and twice of it is
#: finite still: a token that sees nothing gets equal shares, not NaN.
_HIDDEN = torch.finfo(torch.float32).min / 2
#: The least square of a length that a vector is divided by, as PyTorch's ``normalize`` has it.
_TINY = 1e-24


def gelu_tanh(x: Tensor) -> Tensor:
    """GELU by its tanh approximation, written out as ½(1 + tanh u) = σ(2u): XNNPACK's own GELU is the exact one."""
    return x * torch.sigmoid(2.0 * math.sqrt(2.0 / math.pi) * (x + 0.044715 * x * x * x))


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_python": F.gelu,
    **dict.fromkeys(("gelu_new", "gelu_pytorch_tanh", "gelu_python_tanh", "gelu_fast", "gelu_accurate"), gelu_tanh),
    "relu": F.relu,
    "silu": F.silu,
    "swish": F.silu,
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "relu2": lambda x: F.relu(x) * F.relu(x),
    "tanh": torch.tanh,
}


def activation(name: str) -> Callable[[Tensor], Tensor]:
    """An activation function by the name that configs have for it. Raises ExportError when it is another one."""
    if name not in _ACTIVATIONS:
        raise ExportError(
            "model.unsupported-activation",
            f"the model has the unsupported activation '{name}'; choose a model with one of {', '.join(_ACTIVATIONS)}",
        )
    return _ACTIVATIONS[name]


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A linear map; as a batched matrix product where the weight is an input, which is delegated only in this form.

    Args:
        x: [..., in].
        weight: [1, in, out], stored so: a reshape inside the graph would copy it at every call. Or a constant
            [out, in].
        bias: [out].
    """
    if weight.ndim == 2:
        return F.linear(x, weight) if bias is None else F.linear(x, weight) + bias
    flat = torch.bmm(x.reshape(1, -1, x.shape[-1]), weight)
    if bias is not None:
        flat = flat + bias
    return flat.reshape(*x.shape[:-1], weight.shape[-1])


def low_rank(x: Tensor, *factors: Tensor, shared: bool = False) -> Tensor:
    """A map of low rank in factors (LoRA, arXiv 2106.09685); several groups of a batch may have factors of their own.

    Args:
        x: [groups · batch, ..., in]; or [batch, ..., in], where all groups share it.
        factors: [groups or 1, in, rank], …, [groups or 1, rank, out].
        shared: whether the groups, which are several, share x.

    Returns:
        [groups · batch, ..., out].
    """
    flat = x
    for factor in factors:
        if shared and factor.shape[0] > 1:
            flat, shared = flat.reshape(1, -1, flat.shape[-1]).expand(factor.shape[0], -1, -1), False
        flat = torch.bmm(flat.reshape(factor.shape[0], -1, flat.shape[-1]), factor)
    return flat.reshape(-1, *x.shape[1:-1], factors[-1].shape[-1])


def scale_outputs(y: Tensor, factors: Tensor, shared: bool = False) -> Tensor:
    """Outputs times factors of their own for each of several groups of a batch.

    Args:
        y: [groups · batch, ..., out]; or [batch, ..., out], where all groups share it.
        factors: [groups, 1, out].
        shared: whether the groups share y.
    """
    scaled = y.reshape(1 if shared else factors.shape[0], -1, y.shape[-1]) * factors
    return scaled.reshape(-1, *y.shape[1:])


def add_by_group(y: Tensor, added: Tensor) -> Tensor:
    """A sum [groups · batch, ...], where y may be [batch, ...], shared by all groups."""
    if y.shape == added.shape:
        return y + added
    return (y.unsqueeze(0) + added.reshape(-1, *y.shape)).reshape(added.shape)


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """Root-mean-square normalisation (arXiv 1910.07467) over the last axis, then ``weight``."""
    return x * torch.rsqrt((x * x).mean(dim=-1, keepdim=True) + epsilon) * weight


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[batch, tokens, heads · size] → [batch, heads, tokens, size]."""
    return x.reshape(*x.shape[:-1], heads, -1).transpose(1, 2)


def soft_cap(x: Tensor, cap: float | None) -> Tensor:
    """Scores bent to lie within ± ``cap`` (Gemma 2, arXiv 2408.00118); None leaves them."""
    return x if cap is None else torch.tanh(x / cap) * cap


def attend(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor, scale: float | None = None, cap: float | None = None
) -> Tensor:
    """Attention, with as many query heads for each key head as there are (arXiv 2305.13245).

    Args:
        query: [batch, heads, tokens, size].
        key, value: [batch, key heads, others, size], of the tokens that are attended to.
        bias: added to the scores, broadcast to [batch, heads, tokens, others].
        scale: factor on the scores, by default size^-½.
        cap: see :func:`soft_cap`.

    Returns:
        [batch, tokens, heads · size].
    """
    batch, heads, tokens, size = query.shape
    if batch * key.shape[1] == 1:
        # LiteRT's converter would make a single product of this kind a fully connected layer, which is not delegated.
        if heads % 2:
            query, key, value = (torch.cat([x, x], dim=1) for x in (query, key, value))
            return attend(query, key, value, bias, scale, cap)[..., : heads * size]
        key, value = torch.cat([key, key], dim=1), torch.cat([value, value], dim=1)
    groups, others = batch * key.shape[1], key.shape[2]

    def flat(x: Tensor) -> Tensor:
        return x.reshape(groups, -1, x.shape[-1])

    scores = torch.bmm(flat(query), flat(key).transpose(1, 2)) * (size**-0.5 if scale is None else scale)
    scores = soft_cap(scores, cap).reshape(batch, heads, tokens, others)
    shares = torch.softmax(scores + bias, dim=-1)
    mixed = torch.bmm(shares.reshape(groups, -1, others), flat(value))
    return mixed.reshape(batch, heads, tokens, size).transpose(1, 2).reshape(batch, tokens, heads * size)


def hide(seen: Tensor) -> Tensor:
    """1 for what is seen and 0 for what is not → what is added to attention scores."""
    return (1.0 - seen) * _HIDDEN


def padding_bias(mask: Tensor) -> Tensor:
    """[batch, tokens], 1 for tokens and 0 for padding → [batch, 1, 1, tokens]: no token sees padding."""
    return hide(mask).reshape(mask.shape[0], 1, 1, mask.shape[1])


def causal_bias(tokens: int, window: int | None = None) -> Tensor:
    """[1, 1, tokens, tokens]: each token sees itself and those before it, at most ``window`` in all.

    Padding at the end needs no mask: no token before it sees it.
    """
    distance = torch.arange(tokens)[:, None] - torch.arange(tokens)
    seen = (distance >= 0) & (distance < (window or tokens))
    return torch.where(seen, 0.0, _HIDDEN)[None, None]


def window_bias(tokens: int, reach: int) -> Tensor:
    """[1, 1, tokens, tokens]: each token sees those up to ``reach`` before and after it."""
    distance = torch.arange(tokens)[:, None] - torch.arange(tokens)
    return hide((distance.abs() <= reach).to(torch.float32))[None, None]


def by_distance(x: Tensor) -> Tensor:
    """[..., tokens, 2·tokens − 1], what each token has for each distance → [..., tokens, tokens] for each other token.

    Distances go up from that to a token as far before as can be. The shift is that of Transformer-XL (arXiv
    1901.02860): rows one element longer than they should be are read as if they were not.
    """
    tokens = x.shape[-2]
    flat = torch.cat([x, x[..., :1]], dim=-1).reshape(*x.shape[:-2], 2 * tokens * tokens)
    flat = flat[..., tokens - 1 : tokens - 1 + tokens * (2 * tokens - 1)]
    return flat.reshape(*x.shape[:-2], tokens, 2 * tokens - 1)[..., :tokens]


def products_by_group(x: Tensor, others: Tensor) -> Tensor:
    """Products of all rows with those of their group: [groups · batch, heads, tokens, n] for n others.

    Args:
        x: [groups · batch, heads, tokens, size].
        others: [groups, heads, n, size].
    """
    rows, heads, tokens, size = x.shape
    groups, count = others.shape[0], others.shape[2]
    each = x.reshape(groups, rows // groups, heads, tokens, size).transpose(1, 2).reshape(groups * heads, -1, size)
    found = torch.bmm(each, others.reshape(groups * heads, count, size).transpose(1, 2))
    found = found.reshape(groups, heads, rows // groups, tokens, count).transpose(1, 2)
    return found.reshape(rows, heads, tokens, count)


def rotate(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Rotary position embedding (arXiv 2104.09864): pairs (i, i + n/2) of [..., tokens, size] turned by n angles.

    What is beyond the first n of a head stays as it is.
    """
    turned = cosines.shape[-1]
    if turned < x.shape[-1]:
        return torch.cat((rotate(x[..., :turned], cosines, sines), x[..., turned:]), dim=-1)
    low, high = x.chunk(2, dim=-1)
    return x * cosines + torch.cat((-high, low), dim=-1) * sines


def score_tokens(table: Tensor, at: Tensor, select: Tensor) -> Tensor:
    """Scores of all tokens at some positions.

    The table is the left operand: engines take that as it lies, where they would pack the right one at every run. The
    factor, 0 for positions that are not there, also keeps LiteRT's converter from making this a fully connected layer,
    which is not delegated.

    Args:
        table: [1, tokens, width]; or a constant [tokens, width].
        at: [batch, positions, width].
        select: [batch, positions, length], one-hot or zero.

    Returns:
        [1, tokens, batch · positions].
    """
    if table.ndim == 2:
        return F.linear(at.reshape(1, -1, at.shape[-1]), table).transpose(1, 2)
    there = select.sum(dim=-1).reshape(1, 1, -1)
    return torch.bmm(table, at.reshape(1, -1, at.shape[-1]).transpose(1, 2) * there)


def unit_length(x: Tensor, may_vanish: bool = False) -> Tensor:
    """Vectors of the last axis scaled to unit length.

    Args:
        may_vanish: whether there may be vectors of nothing but zeros, which then stay so. Without it LiteRT has one
            operator for the whole.
    """
    square = (x * x).sum(dim=-1, keepdim=True)
    return x / torch.sqrt(square.clamp(min=_TINY) if may_vanish else square)


def log_sum_exp(x: Tensor, dim: int) -> Tensor:
    """log Σ exp(x) over an axis, which disappears."""
    highest = x.amax(dim=dim, keepdim=True)
    return torch.log(torch.exp(x - highest).sum(dim=dim)) + highest.squeeze(dim)


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


def threshold_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Loss of each example whose labels are a set: the mean binary cross-entropy of all labels but the last.

    A label's probability is the sigmoid of its logit less the last label's, which stands for none.

    Args:
        logits: [batch, labels].
        targets: [batch, labels], 1 for the labels of the set, else 0, as for the last.

    Returns:
        [batch].
    """
    above = logits - logits[:, -1:]
    each = torch.relu(above) - above * targets + torch.log(1 + torch.exp(-above.abs()))
    return (each.sum(dim=-1) - math.log(2)) / (logits.shape[-1] - 1)  # the last one's is log 2


def squared_error(logits: Tensor, distances: Tensor) -> Tensor:
    """Loss of each example whose answer is a number: the mean of the labels' numbers, less the target, squared.

    Args:
        logits: [batch, labels], whose softmax weighs the mean.
        distances: [batch, labels], each label's number less the target.

    Returns:
        [batch].
    """
    shares = torch.exp(logits - logits.amax(dim=-1, keepdim=True))
    error = (shares * distances).sum(dim=-1) / shares.sum(dim=-1)
    return error * error
