"""GPT-NeoX and Pythia: queries, keys and values head by head in one matrix, positions on a part of each head."""

from __future__ import annotations

from fedspzo.export.checkpoint import Checkpoint
from fedspzo.export.families import DECODER_FORMS, Architecture, Stage, require_causal
from fedspzo.export.modules.decoder import Attention, DecoderLayer, FeedForward, Final, Norm
from fedspzo.export.modules.rotary import rotations

MODEL_TYPES = ("gpt_neox",)


def describe(checkpoint: Checkpoint, length: int) -> Architecture:
    """See :class:`fedspzo.export.families.Family`."""
    config = checkpoint.config
    require_causal(checkpoint, config)
    prefix, heads = checkpoint.prefix("embed_in.weight"), config.num_attention_heads
    norm = Norm(config.layer_norm_eps, centred=True)
    attention = Attention(
        heads, heads, config.hidden_size // heads,
        inputs=("attention.query_key_value",), output="attention.dense", interleaved=True,
        bias=config.attention_bias, output_bias=config.attention_bias,
    )  # fmt: skip
    feed_forward = FeedForward(
        config.hidden_act, inputs=("mlp.dense_h_to_4h",), output="mlp.dense_4h_to_h", gated=False, bias=True
    )
    layer = DecoderLayer(
        attention, feed_forward, norm, length,
        rotation=rotations(config, checkpoint.name, length), parallel=config.use_parallel_residual,
    )  # fmt: skip
    output = next(
        (name for name in ("embed_out.weight", "lm_head.weight") if name in checkpoint.files), "embed_out.weight"
    )
    return Architecture(
        forms=DECODER_FORMS,
        limit=config.max_position_embeddings,
        embedding=prefix + "embed_in.weight",
        stages=tuple(
            Stage(f"layer {number}", "layer", layer, f"{prefix}layers.{number}.")
            for number in range(config.num_hidden_layers)
        ),
        final=Stage("head", "head", Final(norm, "final_layer_norm"), prefix),
        output=checkpoint.scoring_table(prefix + "embed_in.weight", output),
        ignored=(
            "rotary_emb.inv_freq", "attention.bias", "attention.masked_bias", "embed_out.weight", "lm_head.weight",
        ),
    )  # fmt: skip
