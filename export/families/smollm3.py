"""SmolLM3: LLaMA's layers, some of them without rotary positions."""

from __future__ import annotations

from fedspzo.device_runtime.errors import ExportError
from fedspzo.export.checkpoint import Checkpoint
from fedspzo.export.families import Architecture
from fedspzo.export.families.llama import Kind, assemble, head_size, kinds_by_type
from fedspzo.export.modules.decoder import Attention, DecoderLayer, FeedForward, Final, Norm
from fedspzo.export.modules.rotary import rotations

MODEL_TYPES = ("smollm3",)


def describe(checkpoint: Checkpoint, length: int) -> Architecture:
    """See :class:`fedspzo.export.families.Family`."""
    config = checkpoint.config
    norm, rotation = Norm(config.rms_norm_eps), rotations(config, checkpoint.name, length)
    kinds, turned = kinds_by_type(checkpoint, config), config.no_rope_layers
    if len(turned) < len(kinds):
        raise ExportError(
            "model.unsupported-variant",
            f"{checkpoint.name} has no_rope_layers for {len(turned)} of {len(kinds)} layers; correct config.json",
        )
    attention = Attention(
        config.num_attention_heads, config.num_key_value_heads, head_size(config),
        bias=config.attention_bias, output_bias=config.attention_bias,
    )  # fmt: skip
    feed_forward = FeedForward(config.hidden_act, bias=config.mlp_bias)

    def layer(kind: Kind) -> DecoderLayer:
        angles = rotation if kind.turned else None
        return DecoderLayer(attention, feed_forward, norm, length, rotation=angles, window=kind.window)

    return assemble(
        checkpoint,
        [kind._replace(turned=bool(here)) for kind, here in zip(kinds, turned, strict=False)],
        layer,
        Final(norm),
    )
