"""OPT (arXiv 2205.01068): learnt positions, a plain decoder; OPT-350m's projections and post-norm layers too."""

from __future__ import annotations

from torch import Tensor

from fedspzo.device_runtime.model.manifest import POSITION
from fedspzo.export.checkpoint import Checkpoint
from fedspzo.export.families import DECODER_FORMS, Architecture, Stage, require, require_causal
from fedspzo.export.modules.operators import activation, split_heads
from fedspzo.export.modules.stage_module import StageModule, Weights, affine
from fedspzo.export.modules.tokens import TextLayer, TextStage, Tokens

MODEL_TYPES = ("opt",)

#: OPT's position table starts with rows that are never looked up.
_FIRST_POSITION = 2
_EPSILON = 1e-5


class Embedding(TextStage):
    """Gathered rows [B, S, W], projected to the hidden width where the two differ, + positions."""

    continued = (POSITION,)

    def __init__(self, projected: bool, length: int) -> None:
        super().__init__([*(["project_in.weight"] if projected else []), "embed_positions.weight"], length)
        self.projected = projected

    def through(self, weights: Weights, rows: Tensor, tokens: Tokens) -> Tensor:
        positions = tokens.rows(weights["embed_positions.weight"][:, _FIRST_POSITION:])
        return (weights.linear("project_in", rows) if self.projected else rows) + positions


class Layer(TextLayer):
    """One decoder layer, with the norms before or after attention and feed-forward."""

    def __init__(self, heads: int, act: str, pre_norm: bool, length: int) -> None:
        attention = [f"self_attn.{name}_proj" for name in ("q", "k", "v", "out")]
        super().__init__(affine(*attention, "self_attn_layer_norm", "fc1", "fc2", "final_layer_norm"), length)
        self.heads, self.act, self.pre_norm = heads, activation(act), pre_norm

    def through(self, weights: Weights, hidden: Tensor, tokens: Tokens) -> Tensor:
        def norm(name: str, x: Tensor, here: bool) -> Tensor:
            return weights.layer_norm(name, x, _EPSILON) if here else x

        x = norm("self_attn_layer_norm", hidden, self.pre_norm)
        query, key, value = (split_heads(weights.linear(f"self_attn.{name}_proj", x), self.heads) for name in "qkv")
        mixed = tokens.attend(query, key, value)
        hidden = hidden + weights.linear("self_attn.out_proj", mixed)
        hidden = norm("self_attn_layer_norm", hidden, not self.pre_norm)
        x = norm("final_layer_norm", hidden, self.pre_norm)
        hidden = hidden + weights.linear("fc2", self.act(weights.linear("fc1", x)))
        return norm("final_layer_norm", hidden, not self.pre_norm)


class Final(StageModule):
    """The last norm and the projection to the token table's width, where the model has them."""

    def __init__(self, normed: bool, projected: bool) -> None:
        super().__init__(
            [*(affine("final_layer_norm") if normed else []), *(["project_out.weight"] if projected else [])]
        )
        self.normed, self.projected = normed, projected

    def compute(self, weights: Weights, *feeds: Tensor) -> Tensor:
        (x,) = feeds
        x = weights.layer_norm("final_layer_norm", x, _EPSILON) if self.normed else x
        return weights.linear("project_out", x) if self.projected else x


def describe(checkpoint: Checkpoint, length: int) -> Architecture:
    """See :class:`fedspzo.export.families.Family`."""
    config = checkpoint.config
    require_causal(checkpoint, config)
    require(checkpoint, enable_bias=True, layer_norm_elementwise_affine=True)
    pre_norm = config.do_layer_norm_before
    prefix = checkpoint.prefix("embed_tokens.weight")
    projected = config.word_embed_proj_dim != config.hidden_size
    layer = Layer(config.num_attention_heads, config.activation_function, pre_norm, length)
    final = Final(pre_norm and not config._remove_final_layer_norm, projected)
    return Architecture(
        forms=DECODER_FORMS,
        limit=checkpoint.shape(prefix + "embed_positions.weight")[0] - _FIRST_POSITION,
        embedding=prefix + "embed_tokens.weight",
        stages=(
            Stage("embedding", "embedding", Embedding(projected, length), prefix),
            *(
                Stage(f"layer {number}", "layer", layer, f"{prefix}layers.{number}.")
                for number in range(config.num_hidden_layers)
            ),
        ),
        final=Stage("head", "head", final, prefix),
        output=checkpoint.scoring_table(prefix + "embed_tokens.weight", "lm_head.weight"),
        tables=[prefix + "embed_positions.weight"],
        ignored=("lm_head.weight",),
    )
