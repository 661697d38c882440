"""Phi-3 and Phi-4-mini: one matrix for queries, keys and values, one for gate and up, part of a head turned."""

from __future__ import annotations

from fedspzo.export.checkpoint import Checkpoint
from fedspzo.export.families import Architecture
from fedspzo.export.families.llama import Kind, assemble, head_size, window
from fedspzo.export.modules.decoder import Attention, DecoderLayer, FeedForward, Final, Norm
from fedspzo.export.modules.rotary import rotations

MODEL_TYPES = ("phi3",)


def describe(checkpoint: Checkpoint, length: int) -> Architecture:
    """See :class:`fedspzo.export.families.Family`."""
    config = checkpoint.config
    norm, rotation = Norm(config.rms_norm_eps), rotations(config, checkpoint.name, length)
    heads, key_heads = config.num_attention_heads, config.num_key_value_heads
    attention = Attention(heads, key_heads, head_size(config), inputs=("self_attn.qkv_proj",))
    feed_forward = FeedForward(config.hidden_act, inputs=("mlp.gate_up_proj",))
    return assemble(
        checkpoint,
        [Kind(window(checkpoint, config))] * config.num_hidden_layers,
        lambda kind: DecoderLayer(attention, feed_forward, norm, length, rotation=rotation, window=kind.window),
        Final(norm),
    )
