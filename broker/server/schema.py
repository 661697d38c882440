"""The tables of a server's SQLite file, and the version of them that a file has."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Protocol

from fedspzo.device_runtime.errors import StateError
from fedspzo.device_runtime.replica.journal import connect

Execute = Callable[..., sqlite3.Cursor]

#: Kept in the file as PRAGMA user_version. Files from before versions were kept have 0, and the tables of version 1.
VERSION = 1
#: That of a file whose state is shared: a program that does not know this would change the file alone.
SHARED_VERSION = 2

TABLES = """
CREATE TABLE IF NOT EXISTS job (bundle BLOB NOT NULL, name TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS open_round (round INTEGER PRIMARY KEY, plan BLOB NOT NULL, cohort TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS results (round INTEGER, device TEXT, result BLOB NOT NULL, PRIMARY KEY (round, device));
CREATE TABLE IF NOT EXISTS history (
    round INTEGER PRIMARY KEY, loss REAL, devices TEXT, seconds REAL, step_seconds REAL, closed REAL,
    joules REAL, joules_uncertainty REAL, joules_devices INTEGER, joules_estimated INTEGER
);
CREATE TABLE IF NOT EXISTS devices (
    name TEXT PRIMARY KEY, key BLOB NOT NULL, round INTEGER, examples INTEGER, battery REAL, charging INTEGER,
    served INTEGER, results INTEGER, bytes_up INTEGER, bytes_down INTEGER, seen REAL,
    measured_joules REAL, estimated_joules REAL, joules_uncertainty REAL, joules_results INTEGER
);
CREATE TABLE IF NOT EXISTS rebase (one INTEGER PRIMARY KEY CHECK (one = 1), message BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS evaluations (
    round INTEGER PRIMARY KEY, examples BLOB NOT NULL, count INTEGER NOT NULL, loss REAL, scores TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS backup (one INTEGER PRIMARY KEY CHECK (one = 1), round INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS place (one INTEGER PRIMARY KEY CHECK (one = 1), inode INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS records (
    device TEXT PRIMARY KEY, large INTEGER, contrary INTEGER, noted INTEGER, against REAL, accused INTEGER,
    expelled INTEGER, grouped INTEGER
);
CREATE TABLE IF NOT EXISTS summed (round INTEGER, devices TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS partners (
    device TEXT PRIMARY KEY, key BLOB NOT NULL, agreement BLOB NOT NULL, signature BLOB NOT NULL,
    certificate BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS conduct (
    device TEXT PRIMARY KEY, version TEXT, can TEXT, copies INTEGER, floods INTEGER, cut_off INTEGER
);
CREATE TABLE IF NOT EXISTS blocked (name TEXT PRIMARY KEY, key BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS invitations (
    name TEXT PRIMARY KEY, hash BLOB NOT NULL, uses INTEGER NOT NULL, used INTEGER NOT NULL, expires REAL NOT NULL,
    "group" TEXT NOT NULL, waits INTEGER NOT NULL, broker TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS enrolled (
    name TEXT PRIMARY KEY, key BLOB NOT NULL UNIQUE, invitation TEXT NOT NULL, "group" TEXT NOT NULL,
    state TEXT NOT NULL, asked REAL NOT NULL, broker TEXT NOT NULL, login BLOB
);
CREATE TABLE IF NOT EXISTS hand_overs (number INTEGER PRIMARY KEY, signed BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS former_keys (key BLOB PRIMARY KEY, device TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS authorities (device TEXT PRIMARY KEY, fingerprint BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS counts (name TEXT PRIMARY KEY, count INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS settings (one INTEGER PRIMARY KEY CHECK (one = 1), job TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS changes (
    number INTEGER PRIMARY KEY, at REAL NOT NULL, who TEXT NOT NULL, name TEXT NOT NULL, old TEXT NOT NULL,
    new TEXT NOT NULL, round INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS labels (device TEXT NOT NULL, label TEXT NOT NULL, PRIMARY KEY (device, label));
CREATE TABLE IF NOT EXISTS device_changes (
    number INTEGER PRIMARY KEY, at REAL NOT NULL, who TEXT NOT NULL, name TEXT NOT NULL, old TEXT NOT NULL,
    new TEXT NOT NULL, devices TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS backups (
    number INTEGER PRIMARY KEY, at REAL NOT NULL, who TEXT NOT NULL, folder TEXT NOT NULL, round INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS signing (one INTEGER PRIMARY KEY CHECK (one = 1), secret BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS shared (
    one INTEGER PRIMARY KEY CHECK (one = 1), commits INTEGER NOT NULL, token INTEGER NOT NULL
);
"""


class Mirror(Protocol):
    """Where a file's changes are written before the file has them for good."""

    def push(self, file: sqlite3.Connection) -> None:
        """Write what the open transaction has changed. Raises StateError where it cannot be."""

    def close(self) -> None:
        """Let go of it."""


class ServerFile(sqlite3.Connection):
    """A connection to a server's file.

    Attributes:
        mirror: None where the file has the state alone.
    """

    mirror: Mirror | None = None

    def close(self) -> None:
        """Close it and its mirror."""
        if self.mirror is not None:
            self.mirror.close()
        super().close()


def open_tables(file: Path) -> ServerFile:
    """Open a server's file, and make what it lacks.

    Raises:
        StateError: it is not a server's, of another version, or cannot be used.
    """
    connection = connect(file, ServerFile)
    try:
        check_version(connection, file)
        found = _columns(connection)
        if found and "job" not in found:  # a server makes this table first
            raise StateError(
                "state.not-a-servers-database",
                f"{file} is another program's database: it has no table 'job'; give a server's state folder",
            )
        connection.executescript(TABLES)
        if connection.execute("PRAGMA user_version").fetchone()[0] < VERSION:
            connection.execute(f"PRAGMA user_version = {VERSION}")
    except sqlite3.Error as error:
        connection.close()
        raise StateError(
            "state.not-a-servers-database",
            f"{file} is not a server's database, or has another version ({error}); give a server's state folder",
        ) from None
    except StateError:
        connection.close()
        raise
    return connection


@contextmanager
def writing(connection: ServerFile, file: Path) -> Iterator[Execute]:
    """All of what is written inside, or nothing. Raises StateError when the disk or the mirror refuses."""
    try:
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield connection.execute
            if connection.mirror is not None:
                connection.mirror.push(connection)
        except BaseException:
            connection.execute("ROLLBACK")
            raise
        connection.execute("COMMIT")
    except sqlite3.Error as error:
        raise StateError("state.unwritable", f"{file} cannot be changed ({error}); make room on the disk") from None


def check_version(connection: sqlite3.Connection, file: Path) -> None:
    """Raise StateError unless this program can read and write a file's tables."""
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > SHARED_VERSION:
        raise StateError(
            "state.newer-version",
            f"{file} was written by a newer version of fedspzo (its tables are of version {version}, and this one knows"
            f" version {SHARED_VERSION}); install that version",
        )
    with closing(sqlite3.connect(":memory:")) as empty:
        empty.executescript(TABLES)
        expected = _columns(empty)
    different = [name for name, columns in _columns(connection).items() if columns != expected.get(name, columns)]
    if different:
        raise StateError(
            "state.not-a-servers-database",
            f"{file} is not a server's database, or has another version (its table '{different[0]}' has other columns);"
            " give a server's state folder, or install the version that wrote it",
        )


def lacking_tables(connection: sqlite3.Connection) -> str:
    """SQL that makes the tables that a file of an older version lacks, empty, for one connection that only reads."""
    known = _columns(connection)
    statements = (part.strip() for part in TABLES.split(";"))
    lacking = [part for part in statements if part and part.split("(")[0].split()[-1] not in known]
    return "".join(f"{part.replace('CREATE TABLE', 'CREATE TEMP TABLE', 1)};\n" for part in lacking)


def check_whole(connection: sqlite3.Connection, file: Path) -> None:
    """Raise StateError where SQLite finds that a file is damaged; what rows say is not looked at."""
    try:
        found = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    except sqlite3.Error as error:
        found = str(error)
    if found != "ok":
        raise StateError(
            "state.database-damaged",
            f"{file} is damaged ({found.splitlines()[-1]}); restore the state folder from a backup, and take what the"
            " backup lacks from the devices with fedspzo server adopt",
        )


def _columns(connection: sqlite3.Connection) -> dict[str, list[str]]:
    """Table → its columns."""
    tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    return {name: [row[1] for row in connection.execute(f"PRAGMA table_info('{name}')")] for name in tables}
