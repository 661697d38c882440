"""A server's file where its state is shared: what is written goes to the database first."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path

from fedspzo.broker.server.schema import SHARED_VERSION, ServerFile, open_tables, writing
from fedspzo.broker.server.shared.changes import note_all, watch
from fedspzo.broker.server.shared.postgres import Postgres
from fedspzo.broker.server.signing_key import take_key
from fedspzo.device_runtime.errors import StateError
from fedspzo.device_runtime.files import is_locked, make_folder, write_atomically

#: File of a state folder that says where its state is.
PLACE = "database.json"


@dataclass(frozen=True)
class Place:
    """Where a job's state is shared.

    Attributes:
        url: of the PostgreSQL database.
        job: the job's name.
    """

    url: str = field(repr=False)
    job: str

    def connect(self) -> Postgres:
        """Raises StateError where the database cannot be used."""
        return Postgres(self.url, self.job)


def read_place(folder: Path) -> Place | None:
    """Where the state of a folder is shared; None where it is the folder's own. Raises StateError."""
    file = folder / PLACE
    try:
        return Place(**json.loads(file.read_bytes()))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise StateError(
            "state.place-unreadable",
            f"{file} does not say which database has the state ({error}); start the server with --database",
        ) from None


def write_place(folder: Path, place: Place) -> None:
    """Say in a folder where its state is; only its owner may read the URL."""
    make_folder(folder, 0o700)
    write_atomically(folder / PLACE, json.dumps(asdict(place)).encode(), mode=0o600)


class _Mirror:
    """The database, from the first write on."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._database: Postgres | None = None

    def push(self, file: sqlite3.Connection) -> None:
        if self._database is None:
            self._database = self._place.connect()
        try:
            self._database.push(file)
        except StateError:
            self.close()
            raise

    def close(self) -> None:
        if self._database is not None:
            self._database.close()
        self._database = None


def open_file(file: Path, place: Place | None = None) -> ServerFile:
    """Open a server's file, and make what it lacks; what is written to it goes where its state is shared, if it is.

    Args:
        place: where it is shared; by default as the folder says.

    Raises:
        StateError: as :func:`fedspzo.broker.server.schema.open_tables`.
    """
    connection, place = open_tables(file), place or read_place(file.parent)
    if place is None and connection.execute("PRAGMA user_version").fetchone()[0] == SHARED_VERSION:
        connection.close()
        raise StateError(
            "state.place-missing",
            f"{file} is a copy of a shared state, and {PLACE} beside it is missing; start the server with --database,"
            " or use a backup, which stands alone",
        )
    if place is not None:
        watch(connection)
        connection.mirror = _Mirror(place)
    return connection


def update(file: Path) -> None:
    """Bring the file of a folder in which no server runs up to date, if its state is shared.

    Raises:
        StateError: the database cannot be used, or is older than the file.
    """
    place = read_place(file.parent)
    if place is None or is_locked(file.parent):
        return
    with closing(place.connect()) as database, closing(open_file(file)) as connection:
        catch_up(database, connection, file)
        take_key(connection, file.parent)


def catch_up(database: Postgres, connection: ServerFile, file: Path) -> None:
    """Bring a file to where the database is.

    Raises:
        StateError: the database is older than the file, or the file has a state of its own.
    """
    row, commits = connection.execute("SELECT commits FROM shared").fetchone(), database.commits
    if not commits:  # it is new, and has yet to be filled
        with writing(connection, file) as execute:
            execute("INSERT OR REPLACE INTO shared VALUES (1, 0, 0)")
        return
    known = row[0] if row else 0
    if known > commits:
        raise StateError(
            "state.database-older",
            f"the database lacks the last {known - commits} changes that {file} has; restore a newer copy of the"
            " database, or drop the job's schema there to have the server fill it from this folder",
        )
    if not row and connection.execute("SELECT 1 FROM job").fetchone():
        raise StateError(
            "state.two-states",
            f"{file} has a state of its own, and the database another; give a new folder, which the database fills",
        )
    if known < commits or not row:
        with writing(connection, file):
            database.pull(connection)


def fill(connection: ServerFile, file: Path) -> None:
    """Have a new database take over all that a file has."""
    with writing(connection, file):
        note_all(connection)
