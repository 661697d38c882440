"""A folder that is made as a whole, under the name that somebody chose, or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from fedspzo.device_runtime.errors import ExportError

#: Characters of the name that the folder beside it begins with: file systems have a longest name.
_NAMED = 50


@contextmanager
def appearing(out: Path) -> Iterator[Path]:
    """A new folder to write to, which is ``out`` once the block has ended, and gone if the block raises.

    Folders above it that are missing are made, and are gone then too.

    Raises:
        ExportError: ``out`` is there, or somebody has made it meanwhile.
        OSError: it cannot be made.
    """
    made = [folder for folder in out.parents if not os.path.lexists(folder)]
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _check_free(out)
        with TemporaryDirectory(prefix=f"{out.name[:_NAMED]}.partial-", dir=out.parent) as beside:
            folder = Path(beside, out.name)  # of the mode that folders usually have
            folder.mkdir()
            yield folder
            _check_free(out)  # an empty folder would be replaced
            try:
                folder.rename(out)
            except OSError:
                _check_free(out)
                raise
    finally:
        for above in made:
            with suppress(OSError):  # something is in it
                above.rmdir()


def _check_free(out: Path) -> None:
    if os.path.lexists(out):
        raise ExportError("export.output-exists", f"{out} already exists; remove it, or choose another --out")
