"""Every decoder family in configs that differ from the defaults: it scores as transformers does, or is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sweep import check_variants

Settings = dict[str, list[Any]]

_ROPES: list[dict[str, Any] | None] = [
    None,
    {"rope_type": "default", "rope_theta": 500.0},
    {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
    {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0},
    {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 16},
    {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "attention_factor": 0.8, "truncate": False},
    {
        "rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
    {
        "rope_type": "longrope", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 16,
        "short_factor": [1.0, 1.1, 1.3, 1.7], "long_factor": [2.0, 3.0, 4.0, 5.0],
    },
    {
        "rope_type": "longrope", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 5,
        "short_factor": [1.0, 1.1, 1.3, 1.7], "long_factor": [2.0, 3.0, 4.0, 5.0],
    },
    {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
    {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0, "partial_rotary_factor": 0.5},
    {"rope_type": "spiral", "rope_theta": 10000.0},
]  # fmt: skip
_ACTIVATIONS = ["gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu", "swish", "gelu_fast", "quick_gelu", "relu2"]
_TYPES = [[a, b] for a in ("full_attention", "sliding_attention") for b in ("full_attention", "sliding_attention")]
_BASE = {
    "vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 48, "max_position_embeddings": 64, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None,
}  # fmt: skip
_ANY: Settings = {
    "num_attention_heads": [1, 2, 8], "num_key_value_heads": [1, 2, 4, None], "num_hidden_layers": [1, 3],
    "hidden_act": _ACTIVATIONS, "intermediate_size": [24, 56], "rms_norm_eps": [1e-2, 1e-12], "vocab_size": [41, 100],
    "tie_word_embeddings": [True, False], "attention_dropout": [0.5], "attention_bias": [True, False],
    "rope_parameters": _ROPES, "is_causal": [True, False], "use_cache": [False], "max_position_embeddings": [7, 4096],
}  # fmt: skip
_HEAD: Settings = {"head_dim": [6, 8, 12]}
_BIASED: Settings = {"mlp_bias": [True, False]}
_UNIFORM: Settings = {"sliding_window": [1, 3, 64, None]}
_BY_TYPE: Settings = {
    **_UNIFORM, "layer_types": [*_TYPES, ["chunked_attention", "full_attention"]], "use_sliding_window": [True],
    "max_window_layers": [0, 1],
}  # fmt: skip
_GEMMA: Settings = {
    **_ANY, **_HEAD, "hidden_activation": _ACTIVATIONS, "use_bidirectional_attention": [True, False, None],
}  # fmt: skip
_GEMMA_2: Settings = {
    **_GEMMA, **_BY_TYPE, "query_pre_attn_scalar": [4, 100], "attn_logit_softcapping": [None, 1.5, 30.0],
    "final_logit_softcapping": [None, 2.0, 30.0],
}  # fmt: skip
_BY_LAYER_ROPES = [
    {"full_attention": full, "sliding_attention": {"rope_type": "default", "rope_theta": theta}}
    for full in _ROPES[1:]
    for theta in (100.0, 10000.0)
]

#: Model type → (what its config says, settings and values to draw from).
FAMILIES: dict[str, tuple[dict[str, Any], Settings]] = {
    "llama": (_BASE, {**_ANY, **_HEAD, **_BIASED, **_UNIFORM, "pretraining_tp": [2]}),
    "mistral": (_BASE, {**_ANY, **_HEAD, **_UNIFORM, "layer_types": _TYPES}),
    "ministral": ({**_BASE, "sliding_window": 3}, {**_ANY, **_HEAD, **_BY_TYPE}),
    "qwen2": (_BASE, {**_ANY, **_BY_TYPE, **_HEAD}),
    "qwen3": ({**_BASE, "head_dim": 8}, {**_ANY, **_BY_TYPE, **_HEAD}),
    "gemma": ({**_BASE, "head_dim": 8}, _GEMMA),
    "gemma2": ({**_BASE, "head_dim": 8, "sliding_window": 3}, _GEMMA_2),
    "gemma3_text": (
        {**_BASE, "head_dim": 8, "sliding_window": 3},
        {**_GEMMA_2, "rope_parameters": _BY_LAYER_ROPES, "sliding_window_pattern": [1, 2]},
    ),
    "phi3": (
        _BASE,
        {**_ANY, **_HEAD, **_UNIFORM, "partial_rotary_factor": [0.5, 0.75, 1.0], "resid_pdrop": [0.3],
         "original_max_position_embeddings": [5, 16]},
    ),
    "smollm3": (
        _BASE,
        {**_ANY, **_HEAD, **_BIASED, **_BY_TYPE, "no_rope_layers": [[0, 1], [1, 0, 1], [0, 0]],
         "no_rope_layer_interval": [1, 2]},
    ),
    "granite": (
        _BASE,
        {**_ANY, **_HEAD, **_BIASED, "embedding_multiplier": [0.5, 12], "logits_scaling": [0.5, 8],
         "residual_multiplier": [0.2, 2.0], "attention_multiplier": [0.01, 0.5]},
    ),
    "olmo": (_BASE, {**_ANY, **_HEAD, "clip_qkv": [None, 0.3, 5.0]}),
    "olmo2": (_BASE, {**_ANY, **_HEAD}),
    "olmo3": ({**_BASE, "sliding_window": 3}, {**_ANY, **_HEAD, **_BY_TYPE, "rope_parameters": _BY_LAYER_ROPES}),
    "gpt_neox": (
        {name: value for name, value in _BASE.items() if name != "num_key_value_heads"},
        {**_ANY, **_HEAD, "rotary_pct": [0.5, 1.0], "rotary_emb_base": [500], "use_parallel_residual": [True, False],
         "layer_norm_eps": [1e-2, 1e-12], "hidden_dropout": [0.4]},
    ),
    "gpt2": (
        {"vocab_size": 50, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
        {"n_head": [1, 2, 8], "n_layer": [1, 3], "n_inner": [24, None], "activation_function": _ACTIVATIONS,
         "layer_norm_epsilon": [1e-2], "scale_attn_weights": [True, False], "reorder_and_upcast_attn": [True],
         "scale_attn_by_inverse_layer_idx": [True, False], "tie_word_embeddings": [True, False],
         "vocab_size": [41, 100], "n_positions": [7, 100], "resid_pdrop": [0.5], "add_cross_attention": [True, False],
         "is_causal": [True, False]},
    ),
    "opt": (
        {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 48,
         "word_embed_proj_dim": 32, "max_position_embeddings": 64},
        {"num_attention_heads": [1, 2, 8], "num_hidden_layers": [1, 3], "ffn_dim": [24], "word_embed_proj_dim": [16],
         "do_layer_norm_before": [True, False], "activation_function": _ACTIVATIONS, "enable_bias": [True, False],
         "layer_norm_elementwise_affine": [True, False], "tie_word_embeddings": [True, False], "dropout": [0.5],
         "vocab_size": [41, 100], "max_position_embeddings": [7, 100], "_remove_final_layer_norm": [True],
         "is_causal": [True, False]},
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("variants", "seed"), [(4, 0), pytest.param(24, 1, marks=pytest.mark.slow)], ids=["few", "many"]
)
@pytest.mark.parametrize("kind", FAMILIES)
def test_variants_of_a_config_are_transformers_or_refused(kind: str, variants: int, seed: int, tmp_path: Path) -> None:
    check_variants(tmp_path, kind, *FAMILIES[kind], variants, seed)
