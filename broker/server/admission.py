"""Who may take part: the operator's list of names and public keys, read again when its file changes."""

from __future__ import annotations

import logging
import time
from pathlib import Path

from fedspzo.device_runtime.errors import StateError
from fedspzo.device_runtime.protocol.signing import KEY_BYTES
from fedspzo.device_runtime.protocol.topics import valid_id

log = logging.getLogger(__name__)

#: Seconds between looks at the file, and seconds for which a file that is being written is left alone.
LOOK_S = 1.0
#: Begins the word that names a device's group.
GROUP = "group="


class Admission:
    """The list: a line for each device, its name and its public key in hexadecimal; ``#`` begins a comment.

    A line may end with ``group=NAME``: figures of the devices of a group are given together.
    """

    def __init__(self, path: Path) -> None:
        """Read it. Raises StateError when it cannot be read, or a line of it cannot be understood."""
        self._path = path
        self._stamp = _stamp(path)
        self._keys, self._groups = _read(path)
        self._looked_at = time.monotonic()
        self._told = self._keys

    def changed(self) -> bool:
        """Whether the list has changed since this was asked last."""
        self._look()
        told, self._told = self._told, self._keys
        return told is not self._keys

    def refusal(self, name: str, key: bytes) -> str | None:
        """Why a device that has shown that a key is its own may not take part, or None when it may."""
        self._look()
        known = self._keys.get(name)
        if known == key:
            return None
        if known is None:
            return "it is not on the list of admitted devices; add what its --show-key prints to the --admit file"
        return "the list of admitted devices has another key for its id; correct it by what its --show-key prints"

    def key(self, name: str) -> bytes | None:
        """The public key that the list has for a name; None where it has none. Any thread may ask."""
        return self._keys.get(name)

    def group(self, name: str) -> str:
        """The group that a device is in, "" for none. Any thread may ask."""
        return self._groups.get(name, "")

    def _look(self) -> None:
        """Read the file again when it has changed; if it is of no use, what it said before holds."""
        if time.monotonic() < self._looked_at + LOOK_S:
            return
        self._looked_at = time.monotonic()
        stamp = _stamp(self._path)
        if stamp != self._stamp and not _may_be_half_written(stamp):
            self._stamp = stamp
            try:
                self._keys, self._groups = _read(self._path)
            except StateError as error:
                log.warning("%s; until then, the list as it was holds", error, extra={"kind": error.kind})


def _stamp(path: Path) -> tuple[int, int] | None:
    """Changes with the file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size


def _may_be_half_written(stamp: tuple[int, int] | None) -> bool:
    """Whether a file was written to just now."""
    return stamp is not None and abs(time.time_ns() - stamp[0]) < LOOK_S * 1e9


def _read(path: Path) -> tuple[dict[str, bytes], dict[str, str]]:
    """Name → public key, and name → group."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise StateError(
            "access.list-unreadable",
            f"the list of admitted devices {path} cannot be read ({getattr(error, 'strerror', error)}); correct the"
            " path or its permissions",
        ) from None
    keys: dict[str, bytes] = {}
    groups: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        try:
            name, text, *more = words
            key = bytes.fromhex(text)
            if not valid_id(name) or len(key) != KEY_BYTES or keys.get(name, key) != key or len(more) > 1:
                raise ValueError
            for word in more:
                if not word.startswith(GROUP) or not valid_id(group := word.removeprefix(GROUP)):
                    raise ValueError
                groups[name] = group
        except ValueError:
            raise StateError(
                "access.list-line",
                f"line {number} of {path} is not a new name and its public key; write lines as fedspzo device"
                f" --show-key prints them, with {GROUP}NAME at the end where the device is in a group",
            ) from None
        keys[name] = key
    return keys, groups
