"""Gemma 1, 2 and 3: a scaled token table, norms with weights less 1, and from Gemma 2 on norms around each part.

Of a Gemma 3 model that also sees, the text part is exported.
"""

from __future__ import annotations

from fedspzo.export.checkpoint import Checkpoint
from fedspzo.export.families import Architecture
from fedspzo.export.families.llama import Kind, assemble, head_size, kinds_by_type
from fedspzo.export.modules.decoder import BEFORE, Attention, DecoderLayer, FeedForward, Final, Norm, Norms, Scaled
from fedspzo.export.modules.heads import Scoring
from fedspzo.export.modules.rotary import rotations
from fedspzo.export.settings import damaged

MODEL_TYPES = ("gemma", "gemma2", "gemma3", "gemma3_text")

_AROUND = Norms(
    "input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm"
)


def describe(checkpoint: Checkpoint, length: int) -> Architecture:
    """See :class:`fedspzo.export.families.Family`."""
    name, config = checkpoint.config.model_type, checkpoint.config.get_text_config()
    first, second, third = name == "gemma", name == "gemma2", name.startswith("gemma3")
    settings, norm = checkpoint.settings(config), Norm(config.rms_norm_eps, offset=1.0)
    scale = None if first else float(settings.get("query_pre_attn_scalar", (int, float), 256))
    if scale is not None and not scale > 0:
        raise damaged(settings.path, f"its query_pre_attn_scalar is {scale:g}")
    attention = Attention(
        config.num_attention_heads, config.num_key_value_heads, head_size(config),
        bias=config.attention_bias, output_bias=config.attention_bias, norm=norm if third else None,
        scale=None if scale is None else scale**-0.5,
        cap=config.attn_logit_softcapping if second else None,
    )  # fmt: skip
    feed_forward = FeedForward(config.hidden_act if first else config.hidden_activation)

    def layer(kind: Kind) -> DecoderLayer:
        rotation = rotations(config, checkpoint.name, length, kind.layer_type if third else None)
        norms = BEFORE if first else _AROUND
        return DecoderLayer(attention, feed_forward, norm, length, norms=norms, rotation=rotation, window=kind.window)

    return assemble(
        checkpoint,
        [Kind()] * config.num_hidden_layers if first else kinds_by_type(checkpoint, config),
        layer,
        Final(norm),
        embedding=Scaled(config.hidden_size**0.5),
        scoring=Scoring(cap=config.final_logit_softcapping if name in ("gemma2", "gemma3_text") else None),
        config=config,
        unused=("vision_tower", "multi_modal_projector"),
    )
