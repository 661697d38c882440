"""Within which limits the phone takes part, as its owner set them."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fedspzo.device_runtime.errors import DataError
from fedspzo.device_runtime.platform.conditions import Limits

#: Until the owner says otherwise.
FIRST = Limits(battery=0.2, temperature_c=42.0, charging=False, unmetered=True)


def load_limits(file: Path) -> Limits:
    """Those that were set, or the first ones where the file is not there or is damaged."""
    try:
        return parse_limits(file.read_text(encoding="ascii"))
    except (OSError, UnicodeDecodeError, DataError):
        return FIRST


def parse_limits(text: str) -> Limits:
    """From the JSON of some of the fields; the others are as in :data:`FIRST`. Raises DataError when it is not that."""
    try:
        fields: dict[str, Any] = {**asdict(FIRST), **json.loads(text)}
        limits = Limits(**fields)
        if not (0 <= limits.battery <= 1 and limits.temperature_c > 0):
            raise ValueError
    except (ValueError, TypeError):
        raise DataError(
            "option.limits", f"these are not limits: {text[:80]}; give numbers as the settings page does"
        ) from None
    return limits
