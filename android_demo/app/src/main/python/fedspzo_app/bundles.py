"""Import of a bundle, as a folder or as a zip file of one: checked in full before it takes the old one's place."""

from __future__ import annotations

import errno
import os
import shutil
import zipfile
from pathlib import Path

from fedspzo.device_runtime.errors import BundleError
from fedspzo.device_runtime.files import make_folder, sync_folder
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.model.manifest import MANIFEST


def import_bundle(source: Path, target: Path) -> Bundle:
    """Move a bundle to where the app keeps it.

    Args:
        source: a folder, or a zip file with a bundle at its top or in one folder; it is used up.

    Raises:
        BundleError: it is no whole bundle; the one that was there is then kept.
    """
    incoming = target.with_name(target.name + ".partial")
    shutil.rmtree(incoming, ignore_errors=True)
    try:
        make_folder(target.parent)
        if source.is_dir():
            source.rename(incoming)
        else:
            _unpack(source, incoming)
            source.unlink()
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


def _unpack(source: Path, folder: Path) -> None:
    try:
        with zipfile.ZipFile(source) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
            if size > shutil.disk_usage(folder.parent).free:  # no more is unpacked than is said here
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            make_folder(folder)  # there may be nothing in it
            archive.extractall(folder)  # it leaves no way out of the folder: drives, '..' and roots are dropped
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:  # unknown compression; encrypted
        raise BundleError(
            "bundle.not-a-zip", f"the file is not a readable zip file ({error}); choose a bundle's zip file"
        ) from None


def _find(folder: Path) -> Path:
    """Where the manifest lies: here, or in the only folder that has one."""
    places = [folder, *sorted(child for child in folder.iterdir() if child.is_dir())]
    found = [place for place in places if (place / MANIFEST).is_file()]
    if not found:
        raise BundleError(
            "bundle.no-manifest-in-zip", "the chosen file or folder has no manifest.json at its top; choose a bundle"
        )
    return found[0]
