"""LLaMA-like decoders (LLaMA 3.2, SmolLM, Mistral, Qwen 2 and 3): rotary positions, grouped-query attention, SwiGLU."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from fedspzo.device_runtime.errors import ExportError
from fedspzo.export.checkpoint import Checkpoint
from fedspzo.export.families import DECODER_FORMS, Architecture, Stage, require
from fedspzo.export.modules.operators import activation, attend, causal_bias, rotate, split_heads
from fedspzo.export.modules.stage_module import StageModule, Weights, affine
from fedspzo.export.quiet import quiet

if TYPE_CHECKING:
    from transformers import LlamaConfig

MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3")


class Layer(StageModule):
    """One pre-norm decoder layer. Qwen 2 has biases on q, k and v; Qwen 3 normalises the heads of q and k."""

    cosines: Tensor
    sines: Tensor
    seen: Tensor

    def __init__(self, checkpoint: Checkpoint, length: int, window: int | None) -> None:
        config = checkpoint.config
        kind, bias = config.model_type, getattr(config, "attention_bias", False)
        super().__init__(
            [
                *affine("input_layernorm", "post_attention_layernorm", bias=False),
                *affine(*(f"self_attn.{name}_proj" for name in "qkv"), bias=bias or kind == "qwen2"),
                *affine("self_attn.o_proj", bias=bias),
                *affine("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj", bias=getattr(config, "mlp_bias", False)),
                *(affine("self_attn.q_norm", "self_attn.k_norm", bias=False) if kind == "qwen3" else []),
            ]
        )
        self.heads, self.key_heads = config.num_attention_heads, config.num_key_value_heads
        self.act, self.epsilon = activation(config.hidden_act), config.rms_norm_eps
        cosines, sines = rotations(checkpoint, length)
        self.register_buffer("cosines", cosines, persistent=False)
        self.register_buffer("sines", sines, persistent=False)
        self.register_buffer("seen", causal_bias(length, window), persistent=False)

    def compute(self, weights: Weights, *feeds: Tensor) -> Tensor:
        (hidden,) = feeds
        x = weights.rms_norm("input_layernorm", hidden, self.epsilon)
        query = self._turned(weights, "q", x, self.heads)
        key = self._turned(weights, "k", x, self.key_heads)
        value = split_heads(weights.linear("self_attn.v_proj", x), self.key_heads)
        hidden = hidden + weights.linear("self_attn.o_proj", attend(query, key, value, self.seen))
        x = weights.rms_norm("post_attention_layernorm", hidden, self.epsilon)
        gate = self.act(weights.linear("mlp.gate_proj", x))
        return hidden + weights.linear("mlp.down_proj", gate * weights.linear("mlp.up_proj", x))

    def _turned(self, weights: Weights, name: str, x: Tensor, heads: int) -> Tensor:
        """Queries or keys, normalised where the model does it, turned by their positions."""
        split = split_heads(weights.linear(f"self_attn.{name}_proj", x), heads)
        norm = f"self_attn.{name}_norm"
        if f"{norm}.weight" in self.tensors:
            split = weights.rms_norm(norm, split, self.epsilon)
        return rotate(split, self.cosines, self.sines)


class Final(StageModule):
    """The last norm."""

    def __init__(self, epsilon: float) -> None:
        super().__init__(["norm.weight"])
        self.epsilon = epsilon

    def compute(self, weights: Weights, *feeds: Tensor) -> Tensor:
        return weights.rms_norm("norm", feeds[0], self.epsilon)


def rotations(checkpoint: Checkpoint, length: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines [1, length, head size] of the rotary angles, scaled as the config says (transformers' own)."""
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding  # slow to load; other families need none

    config = cast("LlamaConfig", checkpoint.config)
    rope = config.rope_parameters or {}
    kind, trained = rope.get("rope_type"), rope.get("original_max_position_embeddings")
    if kind == "longrope" and trained and length > trained:
        raise ExportError(
            "export.longrope",
            f"{checkpoint.name} changes its rotary embedding beyond {trained} tokens (longrope), and one graph cannot;"
            f" choose a --max-length of at most {trained}",
        )
    try:
        with quiet():
            cosines, sines = LlamaRotaryEmbedding(config)(torch.zeros(1), torch.arange(length)[None])
    except (KeyError, TypeError, ZeroDivisionError) as error:
        raise ExportError(
            "model.unsupported-rope",
            f"{checkpoint.name} has an unsupported rope_type '{kind}' ({error!r}); choose another model",
        ) from None
    return cosines, sines


def describe(checkpoint: Checkpoint, length: int) -> Architecture:
    """See :class:`fedspzo.export.families.Family`."""
    config = checkpoint.config
    require(checkpoint, partial_rotary_factor=1.0, use_bidirectional_attention=None)
    prefix = checkpoint.prefix("embed_tokens.weight")
    windows = [_window(checkpoint, number) for number in range(config.num_hidden_layers)]
    layers = {window: Layer(checkpoint, length, window) for window in dict.fromkeys(windows)}
    return Architecture(
        forms=DECODER_FORMS,
        limit=config.max_position_embeddings,
        embedding=prefix + "embed_tokens.weight",
        stages=tuple(
            Stage(f"layer {number}", "sliding" if window else "layer", layers[window], f"{prefix}layers.{number}.")
            for number, window in enumerate(windows)
        ),
        final=Stage("head", "head", Final(config.rms_norm_eps), prefix),
        output=prefix + "embed_tokens.weight" if config.tie_word_embeddings else "lm_head.weight",
        ignored=("rotary_emb.inv_freq", "lm_head.weight"),
    )


def _window(checkpoint: Checkpoint, number: int) -> int | None:
    """How many tokens a layer's attention sees, None for all."""
    kinds = getattr(checkpoint.config, "layer_types", None)
    window = getattr(checkpoint.config, "sliding_window", None)
    if checkpoint.config.model_type == "llama" or (kinds is not None and kinds[number] != "sliding_attention"):
        return None
    return int(window) if window else None
