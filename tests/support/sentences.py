"""Small folders of sentence-transformers, with any modules, over models of ``models``."""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from models import make_checkpoint
from safetensors.torch import save_file
from transformers import AutoModel

_PACKAGE = "sentence_transformers.models"


def dense(width: int, out: int, **config: object) -> dict[str, Any]:
    """A dense layer with random weights."""
    torch.manual_seed(width + out)
    weights = {"linear.weight": torch.randn(out, width), "linear.bias": torch.randn(out)}
    if config.get("use_residual") and width != out:
        weights["residual.weight"] = torch.randn(out, width)
    if config.get("bias") is False:
        del weights["linear.bias"]
    return {"type": "Dense", "config": {"in_features": width, "out_features": out, **config}, "weights": weights}


def layer_norm(width: int) -> dict[str, Any]:
    """A norm with random weights."""
    weights = {"norm.weight": 1 + 0.3 * torch.randn(width), "norm.bias": torch.randn(width)}
    return {"type": "LayerNorm", "config": {"dimension": width}, "weights": weights}


NORMALIZE: dict[str, Any] = {"type": "Normalize"}


def make_sentence_model(
    root: Path,
    name: str = "bert",
    pooling: Mapping[str, object] | None = None,
    steps: Sequence[Mapping[str, Any]] = (),
    transformer: Mapping[str, object] | None = None,
    settings: Mapping[str, object] | None = None,
    within: str = "",
    torch_files: bool = False,
) -> Path:
    """Save a model without its head as a folder of sentence-transformers.

    Args:
        pooling: its config, but for the width.
        steps: modules after it.
        transformer: ``sentence_bert_config.json``.
        settings: ``config_sentence_transformers.json``.
        within: the transformer's folder in it.
        torch_files: whether the steps' weights are in PyTorch's own files.
    """
    folder = root / within
    shutil.copytree(_transformer(name), folder)
    found = {"type": "Pooling", "config": {"word_embedding_dimension": 32, **(pooling or {})}}
    modules = [{"idx": 0, "name": "0", "path": within, "type": f"{_PACKAGE}.Transformer"}]
    for place, step in enumerate((found, *steps), 1):
        path = f"{place}_{step['type'].rpartition('.')[2]}"
        kind = step["type"] if "." in step["type"] else f"{_PACKAGE}.{step['type']}"
        modules.append({"idx": place, "name": str(place), "path": path, "type": kind})
        if "config" in step:
            (root / path).mkdir()
            (root / path / "config.json").write_text(json.dumps(step["config"]))
        if "weights" in step and torch_files:
            torch.save(step["weights"], root / path / "pytorch_model.bin")
        elif "weights" in step:
            save_file(step["weights"], root / path / "model.safetensors")
    (root / "modules.json").write_text(json.dumps(modules))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 24, **(transformer or {})}))
    if settings:
        (root / "config_sentence_transformers.json").write_text(json.dumps(settings))
    return root


@cache
def _transformer(name: str) -> Path:
    """A model without its head, and its tokenizer."""
    made = Path(tempfile.mkdtemp(prefix="fedspzo-sentence-"))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    layers = "n_layer" if name == "gpt2" else "num_hidden_layers"
    whole = make_checkpoint(made / "whole", name, **{layers: 2, **({"layer_types": None} if name == "qwen3" else {})})
    AutoModel.from_pretrained(whole).save_pretrained(made / "bare")
    (made / "bare" / "tokenizer.json").write_bytes((whole / "tokenizer.json").read_bytes())
    config = json.loads((whole / "tokenizer_config.json").read_text())
    roles = {"pad_token": "[PAD]", "sep_token": "[SEP]"} if name == "bert" else {"pad_token": "<pad>"}
    (made / "bare" / "tokenizer_config.json").write_text(json.dumps({**config, **roles}))
    return made / "bare"
