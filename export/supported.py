"""Which model types have a family: answered before PyTorch is loaded, which takes long."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedspzo.device_runtime.errors import ExportError
from fedspzo.export.gguf import architecture, find_file

FAMILIES = Path(__file__).parent / "families"


def supported_types() -> list[str]:
    """The ``model_type`` values that the families serve, read off their source."""
    found = []
    for file in FAMILIES.glob("*.py"):
        for statement in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "MODEL_TYPES":
                found += ast.literal_eval(statement.value)
    return sorted(found)


_STATE = "has layers without attention"
#: What a model is when its config has one of these settings, and why there is no family for it.
_TRAITS = (
    (
        ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"),
        "is a mixture of experts, of which a fixed graph would compute all for every token",
    ),
    (
        ("linear_num_key_heads", "mamba_d_state", "ssm_cfg", "state_size", "conv_L_cache"),
        "has layers without attention",
    ),
    (("hidden_size_per_layer_input",), "has a token table for each layer"),
    (("is_encoder_decoder",), "is an encoder with a decoder"),
    (("vision_config", "audio_config"), "takes images or sound beside text"),
)


def check_model_type(model: str) -> None:
    """Raise ExportError when a model's folder says that it is of a type that no family serves."""
    known = supported_types()
    file = find_file(Path(model))
    try:
        if file:
            config = {"model_type": architecture(file)}
            known += [""] + [name.removesuffix("_text") for name in known]  # as llama.cpp calls them
        else:
            config = json.loads((Path(model) / "config.json").read_text(encoding="utf-8"))
        if config["model_type"] in known:
            return
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return  # a name of the hub, or a config that the export itself complains about
    raise unsupported(model, config)


def unsupported(model: str, config: Mapping[str, Any]) -> ExportError:
    """The error for a model that no family serves: what the model is, as far as its config tells, and what to do."""
    kind, text = config["model_type"], config.get("text_config")
    text = text if isinstance(text, Mapping) else {}
    settings = {**config, **text}
    traits = [what for keys, what in _TRAITS if any(settings.get(key) for key in keys)]
    layers = settings.get("layer_types") or settings.get("layers_block_type")
    names = list(map(str, layers)) if isinstance(layers, list) else []
    if names and all(name.endswith("attention") and "linear" not in name for name in names):
        traits = [what for what in traits if what != _STATE]  # its config has settings of layers that it does not have
    what = " and ".join(traits) if traits else "has no family here"
    known, part = supported_types(), text.get("model_type")
    otherwise = (
        f"save its text part, which is '{part}', as a model of its own"
        if part in known
        else ("write a family for it, as docs/families.md says")
    )
    return ExportError(
        "model.unsupported-type",
        f"{model} has the unsupported model type '{kind}', which {what}; choose a model of one of the types"
        f" {', '.join(known)}, or {otherwise}",
    )
