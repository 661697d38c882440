"""Java's own classes as far as the app's Python uses them."""

from __future__ import annotations

import importlib
from typing import Any


def jclass(name: str) -> Any:
    """A class by its name."""
    module, _, found = name.rpartition(".")
    return getattr(importlib.import_module(module), found)
