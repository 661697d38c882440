"""Devices that an operator has blocked: neither their names nor their keys may take part, whatever else lets them in.

The list is in the server's file. A server that runs looks at it once a second, and no round waits for
them.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from fedspzo.broker.server.device_changes import note, unknown
from fedspzo.broker.server.schema import Execute
from fedspzo.broker.server.state_folder import changing
from fedspzo.broker.server.store import ServerStore
from fedspzo.device_runtime.errors import StateError

#: Seconds between looks at the list.
LOOK_S = 1.0
#: Whose doing it is where nobody has logged in.
COMMAND = "fedspzo block"


class Blocked:
    """The list, as a running server reads it.

    Attributes:
        names: device → its public key; empty for one that the server had never heard.
    """

    def __init__(self, store: ServerStore) -> None:
        self._store = store
        self.names = store.load_blocked()
        self._keys = _keys(self.names)
        self._looked_at = time.monotonic()

    def changed(self) -> bool:
        """Look again when it is time; tells whether the list is another one."""
        now = time.monotonic()
        if now < self._looked_at + LOOK_S:
            return False
        self._looked_at, before = now, self.names
        self.names = self._store.load_blocked()
        self._keys = _keys(self.names)
        return self.names != before

    def refusal(self, name: str, key: bytes) -> str | None:
        """Why a device may not take part, or None when it may."""
        return "its operator has blocked it" if name in self.names or key in self._keys else None


def block(folder: Path, names: Sequence[str], known: Collection[str] = (), who: str = COMMAND) -> int:
    """Block devices in a server's state folder, whether or not the server runs; those that are blocked stay so.

    Args:
        known: devices that have a login, and may be blocked before the server has heard them.
        who: whose doing it is.

    Returns:
        How many were not blocked.

    Raises:
        StateError: not a server's folder, or a name is not of a device; then nothing has changed.
    """
    with changing(folder) as execute:
        keys = dict(execute("SELECT name, key FROM enrolled UNION ALL SELECT name, key FROM devices").fetchall())
        before = dict(execute("SELECT name, key FROM blocked").fetchall())
        for name in names:
            if name not in keys and name not in known:
                raise unknown(folder, name)
            key = keys.get(name, before.get(name, b""))  # the server may have forgotten the device
            execute("INSERT OR REPLACE INTO blocked VALUES (?, ?)", (name, key))
        fresh = [name for name in dict.fromkeys(names) if name not in before]
        note(execute, who, "blocked", False, True, fresh)
    return len(fresh)


def unblock(folder: Path, names: Sequence[str], who: str = COMMAND) -> None:
    """Let devices take part again that were blocked.

    Raises:
        StateError: not a server's folder, or a name is not of a blocked device; then nothing has changed.
    """
    with changing(folder) as execute:
        found = _names(execute)
        for name in names:
            if name not in found:
                raise StateError(
                    "device.not-blocked", f"'{name}' is not blocked; fedspzo status {folder} lists those that are"
                )
            execute("DELETE FROM blocked WHERE name = ?", (name,))
        note(execute, who, "blocked", True, False, list(dict.fromkeys(names)))


def _names(execute: Execute) -> set[str]:
    return {name for (name,) in execute("SELECT name FROM blocked").fetchall()}


def _keys(names: Mapping[str, bytes]) -> frozenset[bytes]:
    return frozenset(names.values()) - {b""}
