"""What operators have changed of a job's devices, and of invitations for them: who, when, from what to what.

Such changes are made in the server's file, by the console's threads or by commands, whether or not the server runs.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fedspzo.broker.server.schema import Execute
from fedspzo.device_runtime.errors import StateError
from fedspzo.device_runtime.log import printable

#: Devices that are named of those that were changed together.
NAMED = 10


@dataclass(frozen=True)
class DeviceChange:
    """A change that was made of some devices at once, or of an invitation.

    Attributes:
        at: Unix time.
        who: the name of a login, or a command.
        name: what was changed.
        old, new: as JSON.
        count: of devices; 0 where it was an invitation.
        devices: some of them.
    """

    at: float
    who: str
    name: str
    old: str
    new: str
    count: int
    devices: tuple[str, ...]


def note(execute: Execute, who: str, name: str, old: object, new: object, devices: Sequence[str]) -> None:
    """Write down what was changed of devices, if there are any."""
    if devices:
        _write(execute, who, name, old, new, devices)


def note_invitation(execute: Execute, who: str, old: str | None, new: str | None) -> None:
    """Write down that an invitation was made, and so is new, or that an old one was taken back: by its name."""
    _write(execute, who, "invitation", old, new, ())


def _write(execute: Execute, who: str, name: str, old: object, new: object, devices: Sequence[str]) -> None:
    execute(
        "INSERT INTO device_changes (at, who, name, old, new, devices) VALUES (?, ?, ?, ?, ?, ?)",
        (time.time(), printable(who, 64), name, json.dumps(old), json.dumps(new), " ".join(devices)),
    )


def unknown(folder: Path, name: str) -> StateError:
    """What to say of a name that is not of a device."""
    return StateError(
        "device.unknown",
        f"'{printable(name, 64)}' is not a device of this job; fedspzo status {folder} lists the names",
    )


def read_device_changes(connection: sqlite3.Connection, most: int) -> list[DeviceChange]:
    """The last changes, the newest first."""
    rows = connection.execute(
        "SELECT at, who, name, old, new, devices FROM device_changes ORDER BY number DESC LIMIT ?", (most,)
    )
    changes = []
    for at, who, name, old, new, devices in rows:
        names = devices.split()
        changes.append(DeviceChange(at, who, name, old, new, len(names), tuple(names[:NAMED])))
    return changes
