"""Granite: LLaMA's layers, with factors on the token table, on attention, on what layers add and on the scores."""

from __future__ import annotations

from fedspzo.export.checkpoint import Checkpoint
from fedspzo.export.families import Architecture
from fedspzo.export.families.llama import Kind, assemble, head_size
from fedspzo.export.modules.decoder import Attention, DecoderLayer, FeedForward, Final, Norm, Scaled
from fedspzo.export.modules.heads import Scoring
from fedspzo.export.modules.rotary import rotations

MODEL_TYPES = ("granite",)


def describe(checkpoint: Checkpoint, length: int) -> Architecture:
    """See :class:`fedspzo.export.families.Family`."""
    config = checkpoint.config
    norm, rotation = Norm(config.rms_norm_eps), rotations(config, checkpoint.name, length)
    attention = Attention(
        config.num_attention_heads, config.num_key_value_heads, head_size(config),
        bias=config.attention_bias, output_bias=config.attention_bias, scale=config.attention_multiplier,
    )  # fmt: skip
    feed_forward = FeedForward(config.hidden_act, bias=config.mlp_bias)
    factor = config.residual_multiplier
    return assemble(
        checkpoint,
        [Kind()] * config.num_hidden_layers,
        lambda kind: DecoderLayer(attention, feed_forward, norm, length, rotation=rotation, factor=factor),
        Final(norm),
        embedding=Scaled(config.embedding_multiplier),
        scoring=Scoring(divisor=config.logits_scaling),
    )
