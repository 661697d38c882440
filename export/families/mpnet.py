"""MPNet (arXiv 2004.09297): BERT's layers, with a bias on attention's scores by distance that all of them share."""

from __future__ import annotations

import torch
from torch import Tensor

from fedspzo.export.checkpoint import Checkpoint
from fedspzo.export.families import ENCODER_FORMS, Architecture, Stage, require
from fedspzo.export.families.bert import POSITIONS, WORDS, Embedding, Layer, LayerNames, Transform
from fedspzo.export.modules.operators import by_distance, padding_bias
from fedspzo.export.modules.stage_module import Weights

MODEL_TYPES = ("mpnet",)

#: Positions are counted from the padding token's on, which MPNet has fixed; so are the kinds of distances.
_FIRST, _BUCKETS = 2, 32
_SHARED = "relative_attention_bias.weight"
_NAMES = LayerNames(
    "attention.attn.q", "attention.attn.k", "attention.attn.v", "attention.attn.o", "attention.LayerNorm"
)
_IGNORED = (
    "pooler.dense.weight",
    "pooler.dense.bias",
    "lm_head.decoder.weight",
    "lm_head.decoder.bias",
    "position_ids",
)


class RelativeLayer(Layer):
    """A layer that adds to its scores what the table [1, kinds of distances, heads] has for each distance."""

    kinds: Tensor

    def __init__(self, heads: int, act: str, epsilon: float, length: int, kinds: int) -> None:
        super().__init__(heads, act, epsilon, _NAMES, [_SHARED])
        from transformers.models.mpnet.modeling_mpnet import MPNetEncoder  # slow to load; other families need none

        found = MPNetEncoder.relative_position_bucket(torch.arange(1 - length, length), _BUCKETS)
        self.register_buffer("kinds", torch.nn.functional.one_hot(found, kinds).float(), persistent=False)

    def bias(self, weights: Weights, mask: Tensor, query: Tensor, key: Tensor) -> Tensor:
        values = torch.bmm(self.kinds[None], weights[_SHARED]).transpose(1, 2)  # [1, heads, distances]
        return padding_bias(mask) + by_distance(values.unsqueeze(2).expand(-1, -1, query.shape[2], -1))


def describe(checkpoint: Checkpoint, length: int) -> Architecture:
    """See :class:`fedspzo.export.families.Family`."""
    config, prefix = checkpoint.config, checkpoint.prefix(WORDS)
    require(checkpoint, is_decoder=False, add_cross_attention=False)
    epsilon = config.layer_norm_eps
    bias = next((name for name in ("lm_head.decoder.bias", "lm_head.bias") if name in checkpoint.files), "")
    table = f"{prefix}encoder.{_SHARED}"
    kinds = checkpoint.shape(table)[0]
    require(checkpoint, relative_attention_num_buckets=max(kinds, _BUCKETS))
    layer = RelativeLayer(config.num_attention_heads, config.hidden_act, epsilon, length, kinds)
    return Architecture(
        forms=ENCODER_FORMS if bias else ENCODER_FORMS[1:],
        limit=checkpoint.shape(prefix + POSITIONS)[0] - _FIRST,
        embedding=prefix + WORDS,
        stages=(
            Stage("embedding", "embedding", Embedding((POSITIONS,), _FIRST, epsilon), prefix),
            *(
                Stage(f"layer {number}", "layer", layer, f"{prefix}encoder.layer.{number}.", {_SHARED: table})
                for number in range(config.num_hidden_layers)
            ),
        ),
        final=Stage("head", "head", Transform("dense", "layer_norm", "gelu", epsilon), "lm_head.") if bias else None,
        output=prefix + WORDS if config.tie_word_embeddings else "lm_head.decoder.weight",
        output_bias=bias,
        tables=[prefix + POSITIONS, table],
        ignored=_IGNORED,
    )
