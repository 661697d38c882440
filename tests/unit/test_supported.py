"""Models without a family are refused by their config alone: the sentence says what they are and what to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from models import MODELS, make_checkpoint
from refusals import raises

from fedspzo.device_runtime.errors import ExportError
from fedspzo.export.checkpoint import Checkpoint
from fedspzo.export.families import find_family
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


_ODD = (None, -1, 0, 2, 1.5, 1e30, 10**30, 10**400, "x", [], ["x"], {}, {"a": 1}, True, float("nan"))
#: Keys that configs may have beside those that transformers writes for the tests' models.
_MORE = {"dtype": "float32", "torch_dtype": "float32", "quantization_config": None, "transformers_weights": None}
_MORE |= {"rope_scaling": None, "text_config": None, "layers_block_type": None, "vision_config": None}
#: Those whose describing reads most; the slow suite has the others.
_QUICK = ("bert", "gemma2", "deberta-v3")


def _outcome(root: Path, config: dict[str, Any]) -> str:
    """The kind of the error that a config gives, "" for none; of a damaged config it names the file."""
    (root / "config.json").write_text(json.dumps(config))
    try:
        check_model_type(str(root))
        checkpoint = Checkpoint(str(root))
        find_family(checkpoint).describe(checkpoint, 24)
    except ExportError as error:
        return error.kind if "damaged" not in error.kind or str(root / "config.json") in str(error) else repr(error)
    return ""


@pytest.mark.parametrize(
    "name", [name if name in _QUICK else pytest.param(name, marks=pytest.mark.slow) for name in MODELS]
)
def test_an_odd_value_in_a_config_is_described_or_refused(name: str, tmp_path: Path) -> None:
    root = make_checkpoint(tmp_path / "m", name)
    config = json.loads((root / "config.json").read_text())
    odd = [{**config, key: value} for key in {**config, **_MORE} for value in _ODD]
    for part, within in config.items():
        if isinstance(within, dict):
            odd += [{**config, part: {**within, key: value}} for key in within for value in _ODD]
    found = {_outcome(root, each) for each in odd}
    assert {"", "model.config-damaged"} <= found
    assert all(kind == "" or kind.startswith(("model.", "export.longrope")) for kind in found), found
    assert _outcome(root, config) == ""


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("bert", "num_attention_heads", 0),
        ("bert", "num_hidden_layers", 1 << 30),
        ("gpt2", "n_head", -1),
        ("gemma2", "query_pre_attn_scalar", 0),
        ("deberta-v3", "position_buckets", 1),
        ("bert", "quantization_config", 3),
        ("bert", "transformers_weights", 3),
        ("bert", "dtype", "x"),
    ],
)
def test_an_impossible_config_is_named(name: str, key: str, value: object, tmp_path: Path) -> None:
    root = make_checkpoint(tmp_path / "m", name)
    config = json.loads((root / "config.json").read_text())
    assert _outcome(root, {**config, key: value}) == "model.config-damaged"


@pytest.mark.parametrize("value", [3, "x", [3], {"a": 1}, True, 1e30])
@pytest.mark.parametrize("key", ["layer_types", "layers_block_type", "text_config", "vision_config", "num_experts"])
def test_an_odd_config_without_a_family_is_refused(key: str, value: object, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mixtral", key: value}))
    with raises("model.unsupported-type", "'mixtral'"):
        check_model_type(str(tmp_path))
