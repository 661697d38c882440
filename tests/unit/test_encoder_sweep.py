"""Every encoder family in configs that differ from the defaults: it scores as transformers does, or is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sweep import check_variants

Settings = dict[str, list[Any]]

_ACTIVATIONS = ["gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu", "swish", "gelu_fast", "quick_gelu", "tanh"]
_BASE = {
    "vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
    "max_position_embeddings": 40,
}  # fmt: skip
_ANY: Settings = {
    "num_attention_heads": [1, 2, 8], "num_hidden_layers": [1, 3], "intermediate_size": [24, 56],
    "hidden_act": _ACTIVATIONS, "layer_norm_eps": [1e-2, 1e-12], "vocab_size": [41, 100],
    "tie_word_embeddings": [True, False], "max_position_embeddings": [9, 100], "hidden_dropout_prob": [0.5],
    "pad_token_id": [0, 1, 2, None], "type_vocab_size": [1, 4], "is_decoder": [True], "add_cross_attention": [True],
    "chunk_size_feed_forward": [1], "position_embedding_type": ["absolute", "relative_key"], "use_cache": [False],
}  # fmt: skip
_ROPES = [
    {"full_attention": {"rope_type": kind, "rope_theta": theta, "factor": 2.0}, "sliding_attention": other}
    for kind, theta in (("default", 300.0), ("linear", 10000.0), ("dynamic", 500.0))
    for other in (None, {"rope_type": "default", "rope_theta": 50.0})
]
_MODERN: Settings = {
    **{key: _ANY[key] for key in ("num_attention_heads", "num_hidden_layers", "intermediate_size", "vocab_size")},
    **{key: _ANY[key] for key in ("tie_word_embeddings", "max_position_embeddings")},
    "hidden_activation": _ACTIVATIONS, "norm_eps": [1e-2, 1e-12], "norm_bias": [True, False],
    "attention_bias": [True, False], "mlp_bias": [True, False], "decoder_bias": [True, False],
    "classifier_bias": [True, False], "classifier_activation": _ACTIVATIONS, "local_attention": [1, 2, 3, 5, 64],
    "global_attn_every_n_layers": [1, 2], "rope_parameters": _ROPES, "mlp_dropout": [0.3], "is_causal": [True],
    "layer_types": [["sliding_attention", "full_attention"], ["chunked_attention", "full_attention"]],
}  # fmt: skip

#: Model type → (what its config says, settings and values to draw from).
FAMILIES: dict[str, tuple[dict[str, Any], Settings]] = {
    "bert": (_BASE, _ANY),
    "roberta": ({**_BASE, "pad_token_id": 1}, _ANY),
    "xlm-roberta": ({**_BASE, "pad_token_id": 1}, _ANY),
    "camembert": ({**_BASE, "pad_token_id": 1}, _ANY),
    "electra": ({**_BASE, "embedding_size": 16}, {**_ANY, "embedding_size": [8, 32, 48], "summary_type": ["mean"]}),
    "distilbert": (
        {"vocab_size": 50, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48, "max_position_embeddings": 40},
        {"n_heads": [1, 2, 8], "n_layers": [1, 3], "hidden_dim": [24, 56], "activation": _ACTIVATIONS,
         "sinusoidal_pos_embds": [True, False], "tie_word_embeddings": [True, False], "vocab_size": [41, 100],
         "max_position_embeddings": [9, 100], "pad_token_id": [0, 2, None], "dropout": [0.4],
         "chunk_size_feed_forward": [1]},
    ),
    "mpnet": (_BASE, {**_ANY, "relative_attention_num_buckets": [16, 32, 40]}),
    "deberta-v2": (
        {**_BASE, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
        {**_ANY, "relative_attention": [True, False], "pos_att_type": [["c2p"], ["p2c"], [], None, "p2c|c2p"],
         "share_att_key": [True], "position_buckets": [-1, 2, 4, 8], "max_relative_positions": [-1, 3, 20],
         "norm_rel_ebd": ["layer_norm", "none"], "position_biased_input": [True, False], "type_vocab_size": [0, 2],
         "embedding_size": [16, 48], "conv_kernel_size": [0, 3], "legacy": [True, False],
         "attention_head_size": [8, 12]},
    ),
    "modernbert": ({**_BASE, "local_attention": 4, "pad_token_id": 1}, _MODERN),
}  # fmt: skip


@pytest.mark.parametrize(
    ("variants", "seed"), [(3, 0), pytest.param(24, 1, marks=pytest.mark.slow)], ids=["few", "many"]
)
@pytest.mark.parametrize("kind", FAMILIES)
def test_variants_of_a_config_are_transformers_or_refused(kind: str, variants: int, seed: int, tmp_path: Path) -> None:
    check_variants(tmp_path, kind, *FAMILIES[kind], variants, seed)
