"""Devices that an operator has blocked: neither their names nor their keys may take part, whatever else lets them in.

The list is in the server's file. A server that runs looks at it once a second, and no round waits for
them.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import closing
from pathlib import Path

from fedspzo.broker.server.schema import open_tables
from fedspzo.broker.server.state_folder import DATABASE, open_database
from fedspzo.broker.server.store import ServerStore
from fedspzo.device_runtime.errors import StateError

#: Seconds between looks at the list.
LOOK_S = 1.0


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


def block(folder: Path, names: Sequence[str], known: Collection[str] = ()) -> None:
    """Block devices in a server's state folder, whether or not the server runs; those that are blocked stay so.

    Args:
        known: devices that have a login, and may be blocked before the server has heard them.

    Raises:
        StateError: not a server's folder, or a name is not of a device; then nothing has changed.
    """
    with closing(_open(folder)) as connection:
        keys = dict(
            connection.execute("SELECT name, key FROM enrolled UNION ALL SELECT name, key FROM devices").fetchall()
        )
        for name in names:
            if name not in keys and name not in known:
                raise StateError(
                    "device.unknown",
                    f"'{name}' is not a device of this job; fedspzo status {folder} lists the names",
                )
        rows = [(name, keys.get(name, b"")) for name in names]
        _change(connection, folder, "INSERT OR REPLACE INTO blocked VALUES (?, ?)", rows)


def unblock(folder: Path, names: Sequence[str]) -> None:
    """Let devices take part again that were blocked.

    Raises:
        StateError: not a server's folder, or a name is not of a blocked device; then nothing has changed.
    """
    with closing(_open(folder)) as connection:
        found = {name for (name,) in connection.execute("SELECT name FROM blocked").fetchall()}
        for name in names:
            if name not in found:
                raise StateError(
                    "device.not-blocked", f"'{name}' is not blocked; fedspzo status {folder} lists those that are"
                )
        _change(connection, folder, "DELETE FROM blocked WHERE name = ?", [(name,) for name in names])


def _open(folder: Path) -> sqlite3.Connection:
    """A server's file, with this table."""
    open_database(folder).close()  # or it is not a server's
    return open_tables(folder / DATABASE)


def _change(connection: sqlite3.Connection, folder: Path, statement: str, rows: Sequence[tuple[object, ...]]) -> None:
    try:
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany(statement, rows)
        connection.execute("COMMIT")
    except sqlite3.Error as error:
        raise StateError(
            "state.unwritable", f"{folder / DATABASE} cannot be changed ({error}); make room on the disk"
        ) from None


def _keys(names: Mapping[str, bytes]) -> frozenset[bytes]:
    return frozenset(names.values()) - {b""}
