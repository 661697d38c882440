"""DistilBERT (arXiv 1910.01108): BERT's layers under other names, without token types."""

from __future__ import annotations

from fedspzo.export.checkpoint import Checkpoint
from fedspzo.export.families import ENCODER_FORMS, Architecture, Stage
from fedspzo.export.families.bert import POSITIONS, WORDS, Embedding, Layer, LayerNames, Transform, layers

MODEL_TYPES = ("distilbert",)

_EPSILON = 1e-12
_NAMES = LayerNames(
    "attention.q_lin", "attention.k_lin", "attention.v_lin", "attention.out_lin", "sa_layer_norm", "ffn.lin1",
    "ffn.lin2", "output_layer_norm",
)  # fmt: skip
_BIAS, _PROJECTOR = "vocab_projector.bias", "vocab_projector.weight"


def describe(checkpoint: Checkpoint, length: int) -> Architecture:
    """See :class:`fedspzo.export.families.Family`."""
    config, prefix = checkpoint.config, checkpoint.prefix(WORDS)
    has_head = _BIAS in checkpoint.files
    transform = Transform("vocab_transform", "vocab_layer_norm", config.activation, _EPSILON)
    layer = Layer(config.n_heads, config.activation, _EPSILON, _NAMES)
    return Architecture(
        forms=ENCODER_FORMS if has_head else ENCODER_FORMS[1:],
        limit=checkpoint.shape(prefix + POSITIONS)[0],
        embedding=prefix + WORDS,
        stages=(
            Stage("embedding", "embedding", Embedding((POSITIONS,), 0, _EPSILON), prefix),
            *layers(layer, prefix + "transformer.layer.", config.n_layers),
        ),
        final=Stage("head", "head", transform, "") if has_head else None,
        output=checkpoint.scoring_table(prefix + WORDS, _PROJECTOR),
        output_bias=_BIAS,
        tables=[prefix + POSITIONS],
        ignored=(_PROJECTOR,),
    )
