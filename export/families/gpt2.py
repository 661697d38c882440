"""GPT-2: learnt positions, pre-norm layers, one matrix for query, key and value, matrices stored [in, out]."""

from __future__ import annotations

from torch import Tensor

from fedspzo.device_runtime.model.manifest import POSITION
from fedspzo.export.checkpoint import Checkpoint
from fedspzo.export.families import DECODER_FORMS, Architecture, Stage, require, require_causal
from fedspzo.export.modules.operators import activation, split_heads
from fedspzo.export.modules.stage_module import StageModule, Weights, affine
from fedspzo.export.modules.tokens import TextLayer, TextStage, Tokens

MODEL_TYPES = ("gpt2",)


class Embedding(TextStage):
    """Gathered rows [B, S, H] + positions."""

    continued = (POSITION,)

    def __init__(self, length: int) -> None:
        super().__init__(["wpe.weight"], length)

    def through(self, weights: Weights, rows: Tensor, tokens: Tokens) -> Tensor:
        return rows + tokens.rows(weights["wpe.weight"])


class Layer(TextLayer):
    """One pre-norm decoder layer."""

    def __init__(self, heads: int, act: str, epsilon: float, length: int) -> None:
        super().__init__(affine("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj"), length)
        self.heads, self.act, self.epsilon = heads, activation(act), epsilon

    def through(self, weights: Weights, hidden: Tensor, tokens: Tokens) -> Tensor:
        x = weights.linear("attn.c_attn", weights.layer_norm("ln_1", hidden, self.epsilon))
        query, key, value = (split_heads(part, self.heads) for part in x.chunk(3, dim=-1))
        hidden = hidden + weights.linear("attn.c_proj", tokens.attend(query, key, value))
        x = weights.linear("mlp.c_fc", weights.layer_norm("ln_2", hidden, self.epsilon))
        return hidden + weights.linear("mlp.c_proj", self.act(x))


class Final(StageModule):
    """The last norm."""

    def __init__(self, epsilon: float) -> None:
        super().__init__(affine("ln_f"))
        self.epsilon = epsilon

    def compute(self, weights: Weights, *feeds: Tensor) -> Tensor:
        return weights.layer_norm("ln_f", feeds[0], self.epsilon)


def describe(checkpoint: Checkpoint, length: int) -> Architecture:
    """See :class:`fedspzo.export.families.Family`."""
    config = checkpoint.config
    require_causal(checkpoint, config)
    require(checkpoint, scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False, add_cross_attention=False)
    prefix = checkpoint.prefix("wte.weight")
    epsilon = config.layer_norm_epsilon
    layer = Layer(config.n_head, config.activation_function, epsilon, length)
    return Architecture(
        forms=DECODER_FORMS,
        limit=checkpoint.shape(prefix + "wpe.weight")[0],
        embedding=prefix + "wte.weight",
        stages=(
            Stage("embedding", "embedding", Embedding(length), prefix),
            *(Stage(f"layer {number}", "layer", layer, f"{prefix}h.{number}.") for number in range(config.n_layer)),
        ),
        final=Stage("head", "head", Final(epsilon), prefix),
        output=checkpoint.scoring_table(prefix + "wte.weight", "lm_head.weight"),
        tables=[prefix + "wpe.weight"],
        conv1d=True,
        ignored=("lm_head.weight", "attn.bias", "attn.masked_bias"),
    )
