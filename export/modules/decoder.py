"""A decoder layer that a family describes by its parts: norms, attention, feed-forward, and where they stand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from fedspzo.export.modules.operators import activation, rms_norm, split_heads
from fedspzo.export.modules.stage_module import StageModule, Weights, affine
from fedspzo.export.modules.tokens import TextLayer, TextStage, Tokens


@dataclass(frozen=True)
class Norm:
    """Normalisation over the last axis.

    Attributes:
        epsilon: added to the mean square.
        centred: layer normalisation, not root-mean-square.
        bias: whether layer normalisation has a bias.
        offset: what is added to the stored weights (Gemma stores them less 1).
        weighted: whether there are weights at all.
    """

    epsilon: float
    centred: bool = False
    bias: bool = True
    offset: float = 0.0
    weighted: bool = True

    def tensors(self, *names: str) -> list[str]:
        """Names of the tensors of norms; an empty name is for a norm that is not there."""
        return affine(*filter(None, names), bias=self.centred and self.bias) if self.weighted else []

    def apply(self, weights: Weights, name: str, x: Tensor) -> Tensor:
        """The norm of that name, or x itself when the name is empty."""
        if not name:
            return x
        if not self.weighted:
            return F.layer_norm(x, x.shape[-1:], None, None, self.epsilon)
        if self.centred:
            return weights.layer_norm(name, x, self.epsilon)
        if self.offset:
            return rms_norm(x, weights[f"{name}.weight"] + self.offset, self.epsilon)
        return weights.rms_norm(name, x, self.epsilon)


class Norms(NamedTuple):
    """Names of a layer's norms, "" for each that it lacks."""

    before_attention: str = "input_layernorm"
    after_attention: str = ""
    before_feed_forward: str = "post_attention_layernorm"
    after_feed_forward: str = ""


#: Norms before each part, as LLaMA has them.
BEFORE = Norms()
#: Names of the norms of queries and keys.
_QUERY_NORM, _KEY_NORM = "self_attn.q_norm", "self_attn.k_norm"


@dataclass(frozen=True)
class Attention:
    """Causal attention.

    Attributes:
        heads, key_heads: how many heads queries have, and keys and values.
        size: width of a head.
        inputs: names of the maps to queries, keys and values; or of the one map to all three.
        output: name of the map after the heads.
        interleaved: whether the one map's outputs go head by head (GPT-NeoX), not queries, keys, values.
        bias, output_bias: whether the maps have biases.
        scale: factor on the scores, by default size^-½.
        cap: scores are bent to lie within ± this (Gemma 2); None to leave them.
        norm: normalises queries and keys.
        wide_norm: whether it does so over all heads together (OLMo 2), not over each.
        clip: queries, keys and values are cut to lie within ± this; None to leave them.
    """

    heads: int
    key_heads: int
    size: int
    inputs: tuple[str, ...] = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    output: str = "self_attn.o_proj"
    interleaved: bool = False
    bias: bool = False
    output_bias: bool = False
    scale: float | None = None
    cap: float | None = None
    norm: Norm | None = None
    wide_norm: bool = False
    clip: float | None = None

    @property
    def tensors(self) -> list[str]:
        """Names of its maps' tensors."""
        return [*affine(*self.inputs, bias=self.bias), *affine(self.output, bias=self.output_bias)]

    def project(self, weights: Weights, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[batch, tokens, width] → queries, keys and values [batch, heads, tokens, size], normalised."""
        if self.interleaved:
            each = split_heads(weights.linear(self.inputs[0], x), self.heads)
            query, key, value = each.chunk(3, dim=-1)
            return query, key, value
        if len(self.inputs) == 1:
            widths = [self.size * heads for heads in (self.heads, self.key_heads, self.key_heads)]
            query, key, value = weights.linear(self.inputs[0], x).split(widths, dim=-1)
        else:
            query, key, value = (weights.linear(name, x) for name in self.inputs)
        if self.clip is not None:
            query, key, value = (part.clamp(-self.clip, self.clip) for part in (query, key, value))
        if self.wide_norm:
            query, key = self._normed(weights, query, key)
        query, key, value = (
            split_heads(part, heads)
            for part, heads in ((query, self.heads), (key, self.key_heads), (value, self.key_heads))
        )
        if not self.wide_norm:
            query, key = self._normed(weights, query, key)
        return query, key, value

    def _normed(self, weights: Weights, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        if self.norm is None:
            return query, key
        return self.norm.apply(weights, _QUERY_NORM, query), self.norm.apply(weights, _KEY_NORM, key)


@dataclass(frozen=True)
class FeedForward:
    """The layer's feed-forward part.

    Attributes:
        act: name of the activation.
        inputs: names of the maps to the gate and to what it is multiplied with; or of the one map to both, or, where
            there is no gate, to the inner width.
        output: name of the map back.
        gated: whether there is a gate.
        bias: whether the maps have biases.
    """

    act: str
    inputs: tuple[str, ...] = ("mlp.gate_proj", "mlp.up_proj")
    output: str = "mlp.down_proj"
    gated: bool = True
    bias: bool = False

    @property
    def tensors(self) -> list[str]:
        """Names of its maps' tensors."""
        return affine(*self.inputs, self.output, bias=self.bias)

    def compute(self, weights: Weights, x: Tensor) -> Tensor:
        """[batch, tokens, width] → the same."""
        act = activation(self.act)
        if not self.gated:
            return weights.linear(self.output, act(weights.linear(self.inputs[0], x)))
        if len(self.inputs) == 1:
            gate, up = weights.linear(self.inputs[0], x).chunk(2, dim=-1)
            return weights.linear(self.output, act(gate) * up)
        gate = act(weights.linear(self.inputs[0], x))
        return weights.linear(self.output, gate * weights.linear(self.inputs[1], x))


class DecoderLayer(TextLayer):
    """One decoder layer."""

    cosines: Tensor | None
    sines: Tensor | None

    def __init__(
        self,
        attention: Attention,
        feed_forward: FeedForward,
        norm: Norm,
        length: int,
        *,
        norms: Norms = BEFORE,
        rotation: tuple[Tensor, Tensor] | None = None,
        window: int | None = None,
        parallel: bool = False,
        factor: float = 1.0,
    ) -> None:
        """Put a layer together.

        Args:
            attention, feed_forward: what the layer does.
            norm: what its norms do.
            length: tokens of a text.
            norms: where it has norms.
            rotation: cosines and sines [1, length, turned width] of the rotary positions; None for a layer without.
            window: how many tokens each sees, itself included; None for all before it.
            parallel: whether the feed-forward part starts from the layer's input, not from the attention's output.
            factor: on what each part adds.
        """
        super().__init__(
            [
                *norm.tensors(*norms),
                *attention.tensors,
                *feed_forward.tensors,
                *(attention.norm.tensors(_QUERY_NORM, _KEY_NORM) if attention.norm else []),
            ],
            length,
            window,
        )
        activation(feed_forward.act)  # refuses an unknown one now
        self.attention, self.feed_forward, self.norm, self.norms = attention, feed_forward, norm, norms
        self.parallel, self.factor = parallel, factor
        for name, table in zip(("cosines", "sines"), rotation or (None, None), strict=True):
            self.register_buffer(name, table, persistent=False)

    def through(self, weights: Weights, hidden: Tensor, tokens: Tokens) -> Tensor:
        added = self._attend(weights, tokens, self.norm.apply(weights, self.norms.before_attention, hidden))
        added = self.norm.apply(weights, self.norms.after_attention, added)
        before, hidden = hidden, hidden + self._scaled(added)
        x = self.norm.apply(weights, self.norms.before_feed_forward, before if self.parallel else hidden)
        added = self.feed_forward.compute(weights, x)
        return hidden + self._scaled(self.norm.apply(weights, self.norms.after_feed_forward, added))

    def _attend(self, weights: Weights, tokens: Tokens, x: Tensor) -> Tensor:
        query, key, value = self.attention.project(weights, x)
        if self.cosines is not None and self.sines is not None:
            query, key = (tokens.rotate(x, self.cosines, self.sines) for x in (query, key))
        mixed = tokens.attend(query, key, value, self.attention.scale, self.attention.cap)
        return weights.linear(self.attention.output, mixed)

    def _scaled(self, added: Tensor) -> Tensor:
        return added if self.factor == 1.0 else added * self.factor


class Scaled(TextStage):
    """The gathered rows [B, S, H] times a factor: the first stage of models that scale their token table."""

    def __init__(self, factor: float) -> None:
        super().__init__([])
        self.factor = factor

    def through(self, weights: Weights, hidden: Tensor, tokens: Tokens) -> Tensor:
        return hidden * self.factor


class Final(StageModule):
    """The last norm."""

    def __init__(self, norm: Norm, name: str = "norm") -> None:
        super().__init__(norm.tensors(name))
        self.norm, self.name = norm, name

    def compute(self, weights: Weights, *feeds: Tensor) -> Tensor:
        return self.norm.apply(weights, self.name, feeds[0])
