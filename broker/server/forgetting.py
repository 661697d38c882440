"""Devices that lost their key are struck from a stopped server's state folder: new keys can have their names."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from fedspzo.broker.server.member_tables import read_conduct
from fedspzo.broker.server.records import read_records
from fedspzo.broker.server.state_folder import DATABASE, open_database
from fedspzo.device_runtime.errors import StateError
from fedspzo.device_runtime.files import lock_folder


def forget_devices(folder: Path, names: Sequence[str]) -> None:
    """Strike devices, and so the keys that their names belong to, from a server's state folder.

    The open round does not wait for them any more, and does without the groups that they are in.

    Raises:
        StateError: not a server's folder, its server runs, or a name is not of a device; then nothing has changed.
    """
    with closing(open_database(folder)) as connection:
        try:
            lock = lock_folder(folder)
        except StateError:
            raise StateError(
                "state.in-use", f"a server runs on {folder}; stop it first, and start it again afterwards"
            ) from None
        try:
            connection.execute("BEGIN IMMEDIATE")
            for name in names:
                enrolled = _forget_enrolled(connection, name)
                if not connection.execute("DELETE FROM devices WHERE name = ?", (name,)).rowcount and not enrolled:
                    raise StateError(
                        "device.unknown",
                        f"'{name}' is not a device of this job; fedspzo status {folder} lists the names",
                    )
                if read_records(connection):
                    connection.execute("DELETE FROM records WHERE device = ?", (name,))
                if read_conduct(connection):
                    connection.execute("DELETE FROM conduct WHERE device = ?", (name,))
            _forget_sums(connection, names)
            answered = {device for (device,) in connection.execute("SELECT device FROM results")}
            for round, cohort in connection.execute("SELECT round, cohort FROM open_round").fetchall():
                waited = " ".join(device for device in cohort.split() if device in answered or device not in set(names))
                connection.execute("UPDATE open_round SET cohort = ? WHERE round = ?", (waited, round))
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            raise StateError(
                "state.unwritable", f"{folder / DATABASE} cannot be changed ({error}); make room on the disk"
            ) from None
        finally:
            lock.close()


def _forget_enrolled(connection: sqlite3.Connection, name: str) -> bool:
    """Strike what an invitation for many has given a device; whether there was something."""
    if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'enrolled'").fetchone():
        return False  # a file of before
    return bool(connection.execute("DELETE FROM enrolled WHERE name = ?", (name,)).rowcount)


def _forget_sums(connection: sqlite3.Connection, names: Sequence[str]) -> None:
    """Strike devices' keys, and groups of the open round with them: without its keys nobody can be told of a group."""
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if not tables >= {"partners", "summed"}:
        return  # a file of before
    for name in names:
        connection.execute("DELETE FROM partners WHERE device = ?", (name,))
    for (devices,) in connection.execute("SELECT devices FROM summed").fetchall():
        group = devices.split()
        if not set(names).isdisjoint(group):
            connection.execute("DELETE FROM summed WHERE devices = ?", (devices,))
            connection.executemany("DELETE FROM results WHERE device = ?", [(device,) for device in group])
