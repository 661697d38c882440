"""A backup of a server's state folder, made while the server runs or not; devices keep what no backup has."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

from fedspzo.broker.server.schema import VERSION, writing
from fedspzo.broker.server.shared.file import open_file
from fedspzo.broker.server.signing_key import KEY, NEXT, find_key
from fedspzo.broker.server.state_folder import DATABASE, check_servers, read_checker
from fedspzo.device_runtime.errors import StateError
from fedspzo.device_runtime.files import make_folder, move_into_place, write_atomically
from fedspzo.device_runtime.replica.journal import Journal

#: Whose doing a backup is where nobody has logged in.
COMMAND = "fedspzo server backup"


@dataclass(frozen=True)
class Backup:
    """A backup that was made.

    Attributes:
        at: Unix time.
        who: the name of a login, or :data:`COMMAND`.
        folder: where it is.
        round: the last in it.
    """

    at: float
    who: str
    folder: str
    round: int


def last_backup(connection: sqlite3.Connection) -> Backup | None:
    """The last backup of a server's file that the file knows of."""
    row = connection.execute("SELECT at, who, folder, round FROM backups ORDER BY number DESC LIMIT 1").fetchone()
    return Backup(*row) if row else None


def back_up(folder: Path, target: Path, who: str = COMMAND) -> int:
    """Copy a server's file and its key to another folder, and note in the first where, by whose doing and up to where.

    The copy's journal is checked to its end before it counts. An older backup in the folder is replaced, once the new
    one is whole. Snapshots are left out: a server makes them again.

    Returns:
        The last round in the backup.

    Raises:
        StateError: not a server's folder, its journal is damaged, the target lies in it or has other files, or a folder
            cannot be used.
    """
    if target.resolve() == folder.resolve():
        raise StateError("state.backup-in-place", f"{folder} cannot be its own backup; give another folder")
    if target.resolve().is_relative_to(folder.resolve()):
        raise StateError(
            "state.backup-inside",
            f"{target} lies in {folder}, with which it would be lost; give a folder elsewhere, on another disk",
        )
    others = target.is_dir() and any(not path.name.startswith("server.") for path in target.iterdir())
    if others and not (target / DATABASE).is_file():
        raise StateError(
            "state.backup-among-files", f"{target} has files that are no backup of a server; give a new or empty folder"
        )
    check_servers(folder, as_it_is=True)  # or there is nothing to back up
    with closing(open_file(folder / DATABASE)) as connection:
        try:
            make_folder(target, 0o700)
            partial = target / f"{DATABASE}.partial"
            partial.unlink(missing_ok=True)
            partial.touch(mode=0o600)
            with closing(sqlite3.connect(partial)) as copy:
                connection.backup(copy)
                copy.execute("PRAGMA journal_mode = DELETE")  # all of it is in the one file
                copy.execute("INSERT OR REPLACE INTO place VALUES (1, 0)")  # a server there is in doubt, see standing
                copy.execute("DELETE FROM shared")
                copy.execute(f"PRAGMA user_version = {VERSION}")  # it has the state alone
                copy.commit()
                last = sum(1 for _ in Journal(copy, read_checker(copy, folder)).entries())
                key = find_key(copy, folder).read_bytes()
            beside = target / (NEXT if (target / KEY).is_file() else KEY)  # or an older backup would lose its own
            write_atomically(beside, key, mode=0o600)
            for left in ("-wal", "-shm"):  # of an older backup that was looked into
                (target / f"{DATABASE}{left}").unlink(missing_ok=True)
            move_into_place(partial, target / DATABASE)
            if beside.name == NEXT:
                move_into_place(beside, target / KEY)
            # A copy of a shared state cannot always say so, which only has devices keep more than they need.
            perhaps = suppress(StateError) if connection.mirror else nullcontext()
            with perhaps, writing(connection, folder / DATABASE) as execute:
                execute("INSERT OR REPLACE INTO backup VALUES (1, ?)", (last,))
                execute(
                    "INSERT INTO backups (at, who, folder, round) VALUES (?, ?, ?, ?)",
                    (time.time(), who, str(target.resolve()), last),
                )
        except (OSError, sqlite3.Error) as error:
            raise StateError(
                "state.backup-failed", f"{target} cannot take the backup ({error}); give a folder with room on its disk"
            ) from None
    return last
