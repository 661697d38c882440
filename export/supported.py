"""Which model types have a family: answered before PyTorch is loaded, which takes long."""

from __future__ import annotations

import ast
import json
from pathlib import Path

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


def check_model_type(model: str) -> None:
    """Raise ExportError when a model's folder says that it is of a type that no family serves."""
    known = supported_types()
    file = find_file(Path(model))
    try:
        if file:
            kind = architecture(file)
            known += [""] + [name.removesuffix("_text") for name in known]  # as llama.cpp calls them
        else:
            kind = json.loads((Path(model) / "config.json").read_text(encoding="utf-8"))["model_type"]
    except (OSError, ValueError, KeyError, TypeError):
        return  # a name of the hub, or a config that the export itself complains about
    if kind not in known:
        raise ExportError(
            "model.unsupported-type",
            f"{model} has the unsupported model type '{kind}'; choose a model of one of the types"
            f" {', '.join(supported_types())}",
        )
