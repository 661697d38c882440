"""BERT-like encoders (BERT, RoBERTa, XLM-R): post-norm layers, and a masked-language-model head where there is one."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fedspzo.device_runtime.errors import ExportError
from fedspzo.export.checkpoint import Checkpoint
from fedspzo.export.families import ENCODER_FORMS, Architecture, Stage, require
from fedspzo.export.modules.operators import activation, attend, padding_bias, split_heads
from fedspzo.export.modules.stage_module import StageModule, Weights, affine

MODEL_TYPES = ("bert", "roberta", "xlm-roberta", "camembert")

_WORDS = "embeddings.word_embeddings.weight"
_IGNORED = (
    *("pooler.dense.weight", "pooler.dense.bias", "seq_relationship.weight", "seq_relationship.bias"),
    *("decoder.weight", "decoder.bias", "predictions.bias", "lm_head.bias", "position_ids", "token_type_ids"),
)
_TABLES = ("embeddings.position_embeddings.weight", "embeddings.token_type_embeddings.weight")


class Embedding(StageModule):
    """Gathered word rows [B, S, H] + positions + the first token type, normalised."""

    def __init__(self, tensors: Sequence[str], first: int, epsilon: float) -> None:
        super().__init__(tensors)
        self.first, self.epsilon = first, epsilon

    def compute(self, weights: Weights, *feeds: Tensor) -> Tensor:
        (rows,) = feeds
        positions, kinds = (weights[name] for name in _TABLES)
        known = positions[:, self.first : self.first + rows.shape[1]] + kinds[:, :1]
        return weights.layer_norm("embeddings.LayerNorm", rows + known, self.epsilon)


class Layer(StageModule):
    """One post-norm transformer layer."""

    feeds = ("hidden", "mask")

    def __init__(self, heads: int, act: str, epsilon: float) -> None:
        linears = ("self.query", "self.key", "self.value", "output.dense", "output.LayerNorm")
        names = [f"attention.{name}" for name in linears]
        super().__init__(affine(*names, "intermediate.dense", "output.dense", "output.LayerNorm"))
        self.heads, self.act, self.epsilon = heads, activation(act), epsilon

    def compute(self, weights: Weights, *feeds: Tensor) -> Tensor:
        hidden, mask = feeds
        query, key, value = (
            split_heads(weights.linear(f"attention.self.{name}", hidden), self.heads)
            for name in ("query", "key", "value")
        )
        mixed = weights.linear("attention.output.dense", attend(query, key, value, padding_bias(mask)))
        hidden = weights.layer_norm("attention.output.LayerNorm", hidden + mixed, self.epsilon)
        inner = weights.linear("output.dense", self.act(weights.linear("intermediate.dense", hidden)))
        return weights.layer_norm("output.LayerNorm", hidden + inner, self.epsilon)


class Transform(StageModule):
    """What the masked-language-model head does before it scores tokens."""

    def __init__(self, dense: str, norm: str, act: str, epsilon: float) -> None:
        super().__init__(affine(dense, norm))
        self.dense, self.norm, self.act, self.epsilon = dense, norm, activation(act), epsilon

    def compute(self, weights: Weights, *feeds: Tensor) -> Tensor:
        return weights.layer_norm(self.norm, self.act(weights.linear(self.dense, feeds[0])), self.epsilon)


def describe(checkpoint: Checkpoint, length: int) -> Architecture:
    """See :class:`fedspzo.export.families.Family`."""
    config = checkpoint.config
    require(checkpoint, position_embedding_type="absolute", is_decoder=False, add_cross_attention=False)
    prefix = checkpoint.prefix(_WORDS)
    epsilon = config.layer_norm_eps
    layer = Layer(config.num_attention_heads, config.hidden_act, epsilon)
    if config.model_type == "bert":
        first, head = 0, "cls.predictions."
        transform = Transform("transform.dense", "transform.LayerNorm", config.hidden_act, epsilon)
    else:  # RoBERTa counts positions from the padding token's on
        if config.pad_token_id is None:
            raise ExportError(
                "model.no-pad-token",
                f"{checkpoint.name} has no pad_token_id in its config, and its positions count from it; add it",
            )
        first, head = config.pad_token_id + 1, "lm_head."
        transform = Transform("dense", "layer_norm", "gelu", epsilon)
    tied = config.tie_word_embeddings
    has_head = f"{head}bias" in checkpoint.files
    embedding = Embedding([*_TABLES, *affine("embeddings.LayerNorm")], first, epsilon)
    return Architecture(
        forms=ENCODER_FORMS if has_head else ENCODER_FORMS[1:],
        limit=checkpoint.shape(prefix + _TABLES[0])[0] - first,
        embedding=prefix + _WORDS,
        stages=(
            Stage("embedding", "embedding", embedding, prefix),
            *(
                Stage(f"layer {number}", "layer", layer, f"{prefix}encoder.layer.{number}.")
                for number in range(config.num_hidden_layers)
            ),
        ),
        final=Stage("head", "head", transform, head) if has_head else None,
        output=prefix + _WORDS if tied else f"{head}decoder.weight",
        output_bias=f"{head}bias" if tied or f"{head}decoder.bias" not in checkpoint.files else f"{head}decoder.bias",
        tables=[prefix + name for name in _TABLES],
        ignored=_IGNORED,
    )
