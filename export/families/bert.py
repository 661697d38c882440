"""BERT-like encoders (BERT, RoBERTa, XLM-R, ELECTRA): post-norm layers, and a head for masks where there is one.

Other files use these modules for families whose layers differ in names, or in what is added to attention's scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from fedspzo.device_runtime.errors import ExportError
from fedspzo.export.checkpoint import Checkpoint
from fedspzo.export.families import ENCODER_FORMS, Architecture, Stage, require
from fedspzo.export.modules.operators import activation, attend, padding_bias, split_heads
from fedspzo.export.modules.stage_module import StageModule, Weights, affine

MODEL_TYPES = ("bert", "roberta", "xlm-roberta", "camembert", "electra")

WORDS = "embeddings.word_embeddings.weight"
POSITIONS, KINDS = "embeddings.position_embeddings.weight", "embeddings.token_type_embeddings.weight"
NORM, _PROJECT = "embeddings.LayerNorm", "embeddings_project"
_IGNORED = (
    *("pooler.dense.weight", "pooler.dense.bias", "seq_relationship.weight", "seq_relationship.bias"),
    *("decoder.weight", "decoder.bias", "predictions.bias", "lm_head.bias", "position_ids", "token_type_ids"),
    *(f"discriminator_predictions.{name}" for name in affine("dense", "dense_prediction")),
    *("generator_lm_head.weight", "generator_lm_head.bias"),
)


class LayerNames(NamedTuple):
    """What a layer's maps and norms are called."""

    query: str = "attention.self.query"
    key: str = "attention.self.key"
    value: str = "attention.self.value"
    mixed: str = "attention.output.dense"
    attention_norm: str = "attention.output.LayerNorm"
    inner: str = "intermediate.dense"
    outer: str = "output.dense"
    norm: str = "output.LayerNorm"


BERT_NAMES = LayerNames()


class Embedding(StageModule):
    """Gathered word rows [B, S, W] + positions + the first token type, normalised, and projected where W is not H."""

    def __init__(self, tables: Sequence[str], first: int, epsilon: float, project: bool = False) -> None:
        """``tables`` are those of the positions, looked up from the place ``first`` on, and of the token types."""
        super().__init__([*tables, *affine(NORM, *([_PROJECT] if project else []))])
        self.tables, self.first, self.epsilon, self.project = tables, first, epsilon, project

    def compute(self, weights: Weights, *feeds: Tensor) -> Tensor:
        (rows,) = feeds
        positions, *kinds = (weights[name] for name in self.tables)
        known = positions[:, self.first : self.first + rows.shape[1]]
        for kind in kinds:
            known = known + kind[:, :1]
        x = weights.layer_norm(NORM, rows + known, self.epsilon)
        return weights.linear(_PROJECT, x) if self.project else x


class Layer(StageModule):
    """One post-norm transformer layer."""

    feeds = ("hidden", "mask")

    def __init__(
        self, heads: int, act: str, epsilon: float, names: LayerNames = BERT_NAMES, others: Sequence[str] = ()
    ) -> None:
        """``others`` are tensors that a subclass needs."""
        super().__init__([*affine(*names), *others])
        self.heads, self.act, self.epsilon, self.names = heads, activation(act), epsilon, names
        self.factor: float | None = None  # on the scores, by default size^-½

    def compute(self, weights: Weights, *feeds: Tensor) -> Tensor:
        hidden, mask = feeds
        names = self.names
        query, key, value = (split_heads(weights.linear(name, hidden), self.heads) for name in names[:3])
        bias = self.bias(weights, mask, query, key)
        mixed = weights.linear(names.mixed, attend(query, key, value, bias, self.factor))
        hidden = weights.layer_norm(names.attention_norm, hidden + mixed, self.epsilon)
        inner = weights.linear(names.outer, self.act(weights.linear(names.inner, hidden)))
        return weights.layer_norm(names.norm, hidden + inner, self.epsilon)

    def bias(self, weights: Weights, mask: Tensor, query: Tensor, key: Tensor) -> Tensor:
        """What is added to the scores of queries [B, heads, S, size] with keys."""
        return padding_bias(mask)


class Transform(StageModule):
    """What the masked-language-model head does before it scores tokens."""

    def __init__(
        self, dense: str, norm: str, act: str, epsilon: float, biases: tuple[bool, bool] = (True, True)
    ) -> None:
        """``biases`` says whether the map and the norm have one."""
        super().__init__([*affine(dense, bias=biases[0]), *affine(norm, bias=biases[1])])
        self.dense, self.norm, self.act, self.epsilon = dense, norm, activation(act), epsilon

    def compute(self, weights: Weights, *feeds: Tensor) -> Tensor:
        return weights.layer_norm(self.norm, self.act(weights.linear(self.dense, feeds[0])), self.epsilon)


def describe(checkpoint: Checkpoint, length: int) -> Architecture:
    """See :class:`fedspzo.export.families.Family`."""
    config, kind = checkpoint.config, checkpoint.config.model_type
    require(checkpoint, position_embedding_type="absolute", is_decoder=False, add_cross_attention=False)
    prefix, epsilon, first = checkpoint.prefix(WORDS), config.layer_norm_eps, 0
    if kind == "bert":
        head, table = "cls.predictions.", "decoder"
        transform = Transform("transform.dense", "transform.LayerNorm", config.hidden_act, epsilon)
    elif kind == "electra":
        head, table = "", "generator_lm_head"
        transform = Transform("generator_predictions.dense", "generator_predictions.LayerNorm", "gelu", epsilon)
    else:  # RoBERTa counts positions from the padding token's on
        if config.pad_token_id is None:
            raise ExportError(
                "model.no-pad-token",
                f"{checkpoint.name} has no pad_token_id in its config, and its positions count from it; add it",
            )
        first, head, table = config.pad_token_id + 1, "lm_head.", "decoder"
        transform = Transform("dense", "layer_norm", "gelu", epsilon)
    bias = next((n for n in (f"{head}{table}.bias", f"{head}bias") if n in checkpoint.files), "")
    layer = Layer(config.num_attention_heads, config.hidden_act, epsilon)
    project = getattr(config, "embedding_size", config.hidden_size) != config.hidden_size
    return Architecture(
        forms=ENCODER_FORMS if bias else ENCODER_FORMS[1:],
        limit=checkpoint.shape(prefix + POSITIONS)[0] - first,
        embedding=prefix + WORDS,
        stages=(
            Stage("embedding", "embedding", Embedding((POSITIONS, KINDS), first, epsilon, project), prefix),
            *layers(layer, prefix + "encoder.layer.", config.num_hidden_layers),
        ),
        final=Stage("head", "head", transform, head) if bias else None,
        output=checkpoint.scoring_table(prefix + WORDS, f"{head}{table}.weight"),
        output_bias=bias,
        tables=[prefix + POSITIONS, prefix + KINDS],
        ignored=_IGNORED,
    )


def layers(layer: Layer, prefix: str, count: int) -> list[Stage]:
    """As many stages that share a module."""
    return [Stage(f"layer {number}", "layer", layer, f"{prefix}{number}.") for number in range(count)]
