"""Progress of a job, a line for each event: for people, or as JSON for programs."""

from __future__ import annotations

import json
from typing import Any


def show(as_json: bool, **fields: Any) -> None:
    """Print an event's fields."""
    if as_json:
        print(json.dumps(fields), flush=True)
    else:
        words = (
            f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in fields.items()
        )
        print(", ".join(words), flush=True)
