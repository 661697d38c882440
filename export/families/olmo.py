"""OLMo 1, 2 and 3: norms without weights in the first, norms after each part and over all queries and keys since."""

from __future__ import annotations

from fedspzo.export.checkpoint import Checkpoint
from fedspzo.export.families import Architecture
from fedspzo.export.families.llama import Kind, assemble, head_size, kinds_by_type
from fedspzo.export.modules.decoder import BEFORE, Attention, DecoderLayer, FeedForward, Final, Norm, Norms
from fedspzo.export.modules.rotary import rotations

MODEL_TYPES = ("olmo", "olmo2", "olmo3")

_AFTER = Norms("", "post_attention_layernorm", "", "post_feedforward_layernorm")
#: What OLMo 1 adds to the variance; its config does not say it.
_EPSILON = 1e-5


def describe(checkpoint: Checkpoint, length: int) -> Architecture:
    """See :class:`fedspzo.export.families.Family`."""
    config = checkpoint.config
    first, third = config.model_type == "olmo", config.model_type == "olmo3"
    norm = Norm(_EPSILON, weighted=False) if first else Norm(config.rms_norm_eps)
    attention = Attention(
        config.num_attention_heads, config.num_key_value_heads, head_size(config),
        bias=config.attention_bias, output_bias=config.attention_bias,
        norm=None if first else norm, wide_norm=True, clip=config.clip_qkv if first else None,
    )  # fmt: skip
    feed_forward, norms = FeedForward(config.hidden_act), BEFORE if first else _AFTER

    def layer(kind: Kind) -> DecoderLayer:
        rotation = rotations(config, checkpoint.name, length, kind.layer_type if third else None)
        return DecoderLayer(attention, feed_forward, norm, length, norms=norms, rotation=rotation, window=kind.window)

    kinds = kinds_by_type(checkpoint, config) if third else [Kind()] * config.num_hidden_layers
    return assemble(checkpoint, kinds, layer, Final(norm))
