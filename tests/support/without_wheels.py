"""Runs fedspzo where compiled packages are missing, as on Android: `python without_wheels.py FOLDER COMMAND …`.

Packages in FOLDER are taken before those that are installed.
"""

from __future__ import annotations

import sys
from importlib.abc import MetaPathFinder
from typing import Any

MISSING = ("cryptography", "safetensors", "tokenizers", "_cbor2")


class Refusal(MetaPathFinder):
    """Finds none of the missing packages, wherever they are."""

    def find_spec(self, fullname: str, *_: Any) -> None:
        if fullname.split(".")[0] in MISSING:
            raise ModuleNotFoundError(f"No module named '{fullname}'", name=fullname)


if __name__ == "__main__":
    folder = sys.argv.pop(1)
    sys.path[0] = folder  # else the tests' own folder
    sys.meta_path.insert(0, Refusal())
    from fedspzo.cli import main

    sys.exit(main())
