"""BERT-like encoders (BERT, RoBERTa, XLM-R): post-norm layers, and a masked-language-model head where there is one."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from export.checkpoint import Checkpoint
from export.families import ENCODER_FORMS, Architecture, Part, require
from export.operators import activation, attend, padding_bias, split_heads
from export.pieces import Piece, Weights, affine

MODEL_TYPES = ("bert", "roberta", "xlm-roberta", "camembert")

_WORDS = "embeddings.word_embeddings.weight"
_TABLES = ("embeddings.position_embeddings.weight", "embeddings.token_type_embeddings.weight")


class Embedding(Piece):
    """Gathered word rows [B, S, H] + positions + the first token type, normalised."""

    def __init__(self, tensors: Sequence[str], first: int, epsilon: float) -> None:
        super().__init__(tensors)
        self.first, self.epsilon = first, epsilon

    def compute(self, weights: Weights, *feeds: Tensor) -> Tensor:
        (rows,) = feeds
        positions, kinds = (weights[name] for name in _TABLES)
        known = positions[:, self.first : self.first + rows.shape[1]] + kinds[:, :1]
        return weights.layer_norm("embeddings.LayerNorm", rows + known, self.epsilon)


class Layer(Piece):
    """One post-norm transformer layer."""

    feeds = ("hidden", "mask")

    def __init__(self, heads: int, act: str, epsilon: float) -> None:
        linears = ("self.query", "self.key", "self.value", "output.dense", "output.LayerNorm")
        names = [f"attention.{name}" for name in linears]
        super().__init__(affine(*names, "intermediate.dense", "output.dense", "output.LayerNorm"))
        self.heads, self.act, self.epsilon = heads, activation(act), epsilon

    def compute(self, weights: Weights, *feeds: Tensor) -> Tensor:
        hidden, mask = feeds
        projected = (weights.linear(f"attention.self.{name}", hidden) for name in ("query", "key", "value"))
        mixed = attend(*(split_heads(x, self.heads) for x in projected), padding_bias(mask))
        mixed = weights.linear("attention.output.dense", mixed)
        hidden = weights.layer_norm("attention.output.LayerNorm", hidden + mixed, self.epsilon)
        inner = weights.linear("output.dense", self.act(weights.linear("intermediate.dense", hidden)))
        return weights.layer_norm("output.LayerNorm", hidden + inner, self.epsilon)


class Transform(Piece):
    """What the masked-language-model head does before it scores tokens."""

    def __init__(self, dense: str, norm: str, act: str, epsilon: float) -> None:
        super().__init__(affine(dense, norm))
        self.dense, self.norm, self.act, self.epsilon = dense, norm, activation(act), epsilon

    def compute(self, weights: Weights, *feeds: Tensor) -> Tensor:
        return weights.layer_norm(self.norm, self.act(weights.linear(self.dense, feeds[0])), self.epsilon)


def describe(checkpoint: Checkpoint, length: int) -> Architecture:
    """See :class:`export.families.Family`."""
    config = checkpoint.config
    require(checkpoint, position_embedding_type="absolute", is_decoder=False, add_cross_attention=False)
    prefix = checkpoint.prefix(_WORDS)
    epsilon = config.layer_norm_eps
    layer = Layer(config.num_attention_heads, config.hidden_act, epsilon)
    if config.model_type == "bert":
        first = 0
        head, transform = "cls.predictions.", Transform("transform.dense", "transform.LayerNorm", config.hidden_act, epsilon)
        bias, decoder = head + "bias", head + "decoder.weight"
    else:  # RoBERTa counts positions from the padding token's on
        first = config.pad_token_id + 1
        head, transform = "lm_head.", Transform("dense", "layer_norm", "gelu", epsilon)
        bias, decoder = head + "bias", head + "decoder.weight"
    final = Part("head", "head", transform, head)
    has_head = bias in checkpoint.files
    return Architecture(
        forms=ENCODER_FORMS if has_head else ENCODER_FORMS[1:],
        limit=config.max_position_embeddings - first,
        embedding=prefix + _WORDS,
        parts=(
            Part("embedding", "embedding", Embedding([*_TABLES, *affine("embeddings.LayerNorm")], first, epsilon), prefix),
            *(
                Part(f"layer {number}", "layer", layer, f"{prefix}encoder.layer.{number}.")
                for number in range(config.num_hidden_layers)
            ),
        ),
        final=final if has_head else None,
        output=prefix + _WORDS if config.tie_word_embeddings else decoder,
        output_bias=bias,
        tables=[prefix + name for name in _TABLES],
        ignored=("pooler.dense.weight", "pooler.dense.bias", "position_ids", "token_type_ids", "decoder.weight",
                 "decoder.bias", "seq_relationship.weight", "seq_relationship.bias"),
    )
