"""Rotary positions (arXiv 2104.09864) as a model's config says: transformers' own angles, scaled as it scales them."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig

from fedspzo.device_runtime.errors import ExportError
from fedspzo.export.quiet import quiet


def rotations(
    config: PretrainedConfig, model: str, length: int, layer_type: str | None = None
) -> tuple[Tensor, Tensor]:
    """Cosines and sines [1, length, turned width] of the angles.

    Args:
        config: the model's.
        model: its name, for errors.
        length: tokens of a text.
        layer_type: the layer's, for models whose layers have angles of their own by type.

    Raises:
        ExportError: the angles would change with the text's length, or the config lacks what they need.
    """
    try:
        longest = longest_text(config, layer_type)
        if longest and length > longest:
            raise ExportError(
                "export.longrope",
                f"{model} changes its rotary embedding beyond {longest} tokens (longrope), and one graph cannot;"
                f" choose a --max-length of at most {longest}",
            )
        with quiet():
            embedding = _rotary_embedding(config)
            arguments = () if layer_type is None else (layer_type,)
            cosines, sines = embedding(torch.zeros(1), torch.arange(length)[None], *arguments)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RuntimeError) as error:
        kind = _rope(config, layer_type).get("rope_type")
        raise ExportError(
            "model.unsupported-rope",
            f"{model} has an unsupported rope_type '{kind}' ({error!r}); choose another model",
        ) from None
    return cosines, sines


def longest_text(config: PretrainedConfig, layer_type: str | None = None) -> int:
    """Tokens of a text up to which the angles stay the same (longrope changes them beyond); 0 for no such bound."""
    rope = _rope(config, layer_type)
    return int(rope.get("original_max_position_embeddings") or 0) if rope.get("rope_type") == "longrope" else 0


def _rope(config: PretrainedConfig, layer_type: str | None) -> dict[str, Any]:
    rope: dict[str, Any] = config.rope_parameters or {}
    found = rope if layer_type is None else rope.get(layer_type)
    return found if isinstance(found, dict) else {}


def _rotary_embedding(config: PretrainedConfig) -> torch.nn.Module:
    """The module that transformers' own model takes the angles from. It is slow to load; not all families need it."""
    module = importlib.import_module(type(config).__module__.replace(".configuration_", ".modeling_"))
    found = next(item for name, item in vars(module).items() if name.endswith("RotaryEmbedding"))
    embedding: torch.nn.Module = found(config)
    return embedding
