"""What a server lives on and an operator has to look after: room on the disk, and certificates that end."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509


@dataclass(frozen=True)
class Upkeep:
    """At one moment.

    Attributes:
        free_bytes, disk_bytes: of the file system that the state folder is on.
        state_bytes: of the files in the state folder.
        certificates: whose certificate → when it ends, as Unix time.
    """

    free_bytes: int
    disk_bytes: int
    state_bytes: int
    certificates: Mapping[str, float] = field(default_factory=dict)


def look(state: Path, certificates: Mapping[str, float | None]) -> Upkeep:
    """Look at a state folder; of certificates, those whose end is known are kept.

    Raises:
        OSError: the folder is gone.
    """
    disk = shutil.disk_usage(state)
    known = {whose: end for whose, end in certificates.items() if end is not None}
    return Upkeep(disk.free, disk.total, _size(state), known)


def certificate_end(file: Path) -> float | None:
    """When the first certificate of a PEM file ends, as Unix time; None where it cannot be read."""
    with suppress(OSError, ValueError):
        return x509.load_pem_x509_certificate(file.read_bytes()).not_valid_after_utc.timestamp()
    return None


def _size(folder: Path) -> int:
    """Bytes of the files in a folder; one that goes away meanwhile counts as nothing."""
    total = 0
    for path in folder.rglob("*"):  # the link to the bundle is not followed
        with suppress(OSError):
            total += path.lstat().st_size
    return total
