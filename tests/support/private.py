"""Who may read what is in a folder."""

from __future__ import annotations

import os
import stat
from pathlib import Path


def exposed(folder: Path) -> list[str]:
    """What others than its owner may read or write, of a folder and all in it; links are not followed."""
    found = [folder, *(Path(place, name) for place, folders, files in os.walk(folder) for name in (*folders, *files))]
    return [str(path) for path in found if not path.is_symlink() and stat.S_IMODE(path.stat().st_mode) & 0o077]
