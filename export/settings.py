"""JSON files of a model's folder, read key by key: a value of another kind than its key has is named with its file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from fedspzo.device_runtime.errors import ExportError

#: The largest integer of a config, and the largest of each size: many times what models have.
_LARGEST = 1 << 40
_MOST = {
    "hidden_size": 1 << 20, "num_attention_heads": 1 << 20, "num_key_value_heads": 1 << 20, "head_dim": 1 << 20,
    "num_hidden_layers": 1 << 12,
}  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """What a JSON file says; nothing where the file is missing. A null counts as a key that is missing."""

    path: Path
    said: Mapping[str, Any]

    def get(self, key: str, kind: type | tuple[type, ...], default: Any = None) -> Any:
        """A key's value. Raises ExportError when it is of another kind."""
        found = self.said.get(key)
        if found is None:
            return default
        if not isinstance(found, kind) or (isinstance(found, bool) and kind is not bool):
            raise damaged(self.path, f"its {key} is {found!r:.40}")
        return found

    def count(self, key: str) -> int | None:
        """A key's number of something, None where it is missing. Raises ExportError when it is no such number."""
        found: int | None = self.get(key, int)
        if found is not None and found < 1:
            raise damaged(self.path, f"its {key} is {found}")
        return found

    def part(self, key: str) -> Settings:
        """A key's own settings. Raises ExportError when it is no object."""
        return Settings(self.path, self.get(key, dict, {}))


def read_settings(path: Path) -> Settings:
    """The settings of a file. Raises ExportError when it is damaged."""
    return Settings(path, read_json(path, dict))


def read_json(path: Path, kind: type) -> Any:
    """What a JSON file says; nothing where the file is missing. Raises ExportError when it is damaged."""
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else kind()
    except (OSError, ValueError, RecursionError) as error:
        raise damaged(path, str(error)) from None
    if not isinstance(found, kind):
        raise damaged(path, f"it is {found!r:.40}")
    return found


def damaged(path: Path, what: str) -> ExportError:
    """The error for a file that says what it cannot mean."""
    return ExportError("model.config-damaged", f"{path} is not what it should be ({what}); get the model again")


def check_sizes(path: Path, config: PretrainedConfig) -> None:
    """Raise ExportError when a model's config has a size that no model has.

    Args:
        path: its file.
        config: what transformers has made of it.
    """
    text = config.get_text_config()
    if not isinstance(text, PretrainedConfig):
        raise damaged(path, f"its text_config is {text!r:.40}")
    for part in (config, text):
        for key, value in vars(part).items():
            if isinstance(value, int) and abs(value) > _LARGEST:
                raise damaged(path, f"its {key} is {str(value)[:40]}")
    sizes = {name: getattr(text, name, None) for name in _MOST}
    for name, size in sizes.items():
        if isinstance(size, int) and not 1 <= size <= _MOST[name]:
            raise damaged(path, f"its {text.attribute_map.get(name, name)} is {size}")
    width, heads = sizes["hidden_size"], sizes["num_attention_heads"]
    if isinstance(width, int) and isinstance(heads, int) and heads > width and not sizes["head_dim"]:
        raise damaged(path, f"it has {heads} heads in a width of {width}")
