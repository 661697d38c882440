"""Models without a family are refused by their config alone: the sentence says what they are and what to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from refusals import raises

from fedspzo.export.supported import check_model_type, supported_types

_IMAGES, _EXPERTS = "takes images or sound beside text", "a mixture of experts"
_LINEAR, _TABLES, _FAMILY = "layers without attention", "a token table for each layer", "docs/families.md"


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"model_type": "mixtral", "num_local_experts": 8}, [_EXPERTS, _FAMILY]),
        ({"model_type": "qwen3_moe", "num_experts": 128}, [_EXPERTS, _FAMILY]),
        ({"model_type": "deepseek_v3", "n_routed_experts": 256}, [_EXPERTS]),
        ({"model_type": "gemma3n", "text_config": {"hidden_size_per_layer_input": 256}}, [_TABLES]),
        (
            {"model_type": "gemma4", "text_config": {"hidden_size_per_layer_input": 256}, "vision_config": {"a": 1}},
            [_TABLES, _IMAGES, _FAMILY],
        ),
        (
            {
                "model_type": "qwen3_5", "text_config": {"model_type": "qwen3_5_text", "linear_num_key_heads": 16},
                "vision_config": {"depth": 27},
            },
            [_LINEAR, _IMAGES, _FAMILY],
        ),
        (
            {"model_type": "llava", "text_config": {"model_type": "llama"}, "vision_config": {"model_type": "clip"}},
            [_IMAGES, "save its text part, which is 'llama'"],
        ),
        ({"model_type": "t5", "is_encoder_decoder": True}, ["an encoder with a decoder"]),
        ({"model_type": "mamba2", "state_size": 128}, [_LINEAR]),
        ({"model_type": "granitemoehybrid", "mamba_d_state": 128, "layer_types": ["attention"]}, ["no family here"]),
        ({"model_type": "cohere2"}, ["no family here", _FAMILY]),
    ],
    ids=lambda value: value["model_type"] if isinstance(value, dict) else "",
)  # fmt: skip
def test_what_is_refused(config: dict[str, Any], named: list[str], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    with raises("model.unsupported-type", f"'{config['model_type']}'", *named, ", ".join(supported_types())):
        check_model_type(str(tmp_path))


@pytest.mark.parametrize("kind", ["gemma3", "gemma3_text", "phi3", "olmo2", "gpt_neox", "granite", "smollm3"])
def test_what_has_a_family(kind: str, tmp_path: Path) -> None:
    config = {"model_type": kind, "text_config": {"model_type": "gemma3_text"}, "vision_config": {"hidden_size": 8}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    check_model_type(str(tmp_path))
