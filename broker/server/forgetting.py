"""Devices that lost their key are struck from a stopped server's state folder: new keys can have their names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fedspzo.broker.server.device_changes import unknown
from fedspzo.broker.server.schema import Execute
from fedspzo.broker.server.state_folder import changing, check_servers
from fedspzo.device_runtime.errors import StateError
from fedspzo.device_runtime.files import lock_folder


def forget_devices(folder: Path, names: Sequence[str]) -> None:
    """Strike devices, and so the keys that their names belong to, from a server's state folder.

    The open round does not wait for them any more, and does without the groups that they are in.

    Raises:
        StateError: not a server's folder, its server runs, or a name is not of a device; then nothing has changed.
    """
    check_servers(folder)
    try:
        lock = lock_folder(folder)
    except StateError:
        raise StateError(
            "state.in-use", f"a server runs on {folder}; stop it first, and start it again afterwards"
        ) from None
    with lock, changing(folder) as execute:
        for name in names:
            gone = [
                execute(f"DELETE FROM {table} WHERE name = ?", (name,)).rowcount for table in ("devices", "enrolled")
            ]
            if not any(gone):
                raise unknown(folder, name)
            for table in ("records", "conduct", "authorities", "former_keys", "labels"):
                execute(f"DELETE FROM {table} WHERE device = ?", (name,))
        _forget_sums(execute, names)
        answered = {device for (device,) in execute("SELECT device FROM results")}
        for round, cohort in execute("SELECT round, cohort FROM open_round").fetchall():
            waited = " ".join(device for device in cohort.split() if device in answered or device not in set(names))
            execute("UPDATE open_round SET cohort = ? WHERE round = ?", (waited, round))


def _forget_sums(execute: Execute, names: Sequence[str]) -> None:
    """Strike devices' keys, and groups of the open round with them: without its keys nobody can be told of a group."""
    for name in names:
        execute("DELETE FROM partners WHERE device = ?", (name,))
    for (devices,) in execute("SELECT devices FROM summed").fetchall():
        group = devices.split()
        if not set(names).isdisjoint(group):
            execute("DELETE FROM summed WHERE devices = ?", (devices,))
            for device in group:
                execute("DELETE FROM results WHERE device = ?", (device,))
