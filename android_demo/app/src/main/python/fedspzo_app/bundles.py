"""Import of a bundle's folder: checked in full before it takes the old one's place."""

from __future__ import annotations

import shutil
from pathlib import Path

from fedspzo.device_runtime.errors import BundleError
from fedspzo.device_runtime.files import make_folder, sync_folder
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.model.manifest import MANIFEST


def import_bundle(source: Path, target: Path) -> Bundle:
    """Move a bundle to where the app keeps it.

    Args:
        source: a folder with a bundle at its top or in one folder; it is used up.

    Raises:
        BundleError: it is no whole bundle; the one that was there is then kept.
    """
    incoming = target.with_name(target.name + ".partial")
    shutil.rmtree(incoming, ignore_errors=True)
    try:
        make_folder(target.parent)
        source.rename(incoming)
        found = _find(incoming)
        Bundle(found).check_base()
        shutil.rmtree(target, ignore_errors=True)
        found.rename(target)
        sync_folder(target.parent)
    except OSError as error:
        raise BundleError(
            "bundle.no-room", f"the bundle cannot be kept ({error}); make room, and import it again"
        ) from None
    finally:
        shutil.rmtree(incoming, ignore_errors=True)
    return Bundle(target)


def _find(folder: Path) -> Path:
    """Where the manifest lies: here, or in the only folder that has one."""
    places = [folder, *sorted(child for child in folder.iterdir() if child.is_dir())]
    found = [place for place in places if (place / MANIFEST).is_file()]
    if not found:
        raise BundleError(
            "bundle.no-manifest-in-zip", "the chosen file or folder has no manifest.json at its top; choose a bundle"
        )
    return found[0]
