"""Labels that operators give devices, to find them by; a device hears nothing of them."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path

from fedspzo.broker.server.device_changes import note, unknown
from fedspzo.broker.server.schema import Execute
from fedspzo.broker.server.state_folder import changing
from fedspzo.device_runtime.errors import StateError
from fedspzo.device_runtime.log import printable
from fedspzo.device_runtime.protocol.topics import valid_id

#: Labels that can be chosen by.
MOST = 200


def put_on(folder: Path, names: Sequence[str], label: str, who: str) -> int:
    """Give devices a label; returns how many did not have it.

    Raises:
        StateError: not a server's folder, no label, or a name is not of a device; then nothing has changed.
    """
    if not valid_id(label):
        raise StateError(
            "device.label",
            f"'{printable(label, 64)}' cannot be a label; give up to 64 letters, digits, '-' and '_'",
        )
    with changing(folder) as execute:
        had = _labelled(execute, label)
        known = {name for (name,) in execute("SELECT name FROM devices")}
        for name in names:
            if name not in known:
                raise unknown(folder, name)
        fresh = [name for name in dict.fromkeys(names) if name not in had]
        for name in fresh:
            execute("INSERT INTO labels VALUES (?, ?)", (name, label))
        note(execute, who, "label", None, label, fresh)
    return len(fresh)


def take_off(folder: Path, names: Sequence[str], label: str, who: str) -> int:
    """Take a label from devices; returns how many had it. Raises StateError when the folder is not a server's."""
    with changing(folder) as execute:
        had = _labelled(execute, label)
        gone = [name for name in dict.fromkeys(names) if name in had]
        for name in gone:
            execute("DELETE FROM labels WHERE device = ? AND label = ?", (name, label))
        note(execute, who, "label", label, None, gone)
    return len(gone)


def read_labels(connection: sqlite3.Connection) -> list[str]:
    """The labels that devices have, :data:`MOST` at most."""
    rows = connection.execute("SELECT DISTINCT label FROM labels ORDER BY label LIMIT ?", (MOST,))
    return [label for (label,) in rows]


def _labelled(execute: Execute, label: str) -> set[str]:
    return {name for (name,) in execute("SELECT device FROM labels WHERE label = ?", (label,))}
