"""Files that are whole or not there, whatever is killed and whenever the power fails."""

from __future__ import annotations

import os
from pathlib import Path

from fedspzo.device_runtime.errors import StateError


def write_durably(path: Path, content: bytes, mode: int = 0o644) -> None:
    """Write a file anew, with an fsync of its content."""
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def replace_durably(partial: Path, path: Path) -> None:
    """Rename ``partial`` to ``path`` and make the rename itself survive a power cut."""
    os.replace(partial, path)
    sync_folder(path.parent)


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it that are missing; its name then survives a power cut.

    Raises:
        StateError: it is or lies in the source code of a Python package, where keys and journals would be published.
    """
    check_no_package(folder)
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


def check_no_package(folder: Path) -> None:
    """Raise StateError when a folder is, or lies in, the source code of a Python package."""
    for package in (folder.resolve(), *folder.resolve().parents):
        if (package / "__init__.py").exists():
            raise StateError(
                "state.in-package", f"{folder} is source code of the Python package {package}; choose another folder"
            )


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
