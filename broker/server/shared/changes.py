"""Which rows of a server's file a connection has changed."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from functools import cache

from fedspzo.broker.server.schema import TABLES
from fedspzo.device_runtime.replica.journal import Journal

#: Tables that are about the file itself.
LOCAL = ("place", "shared")


@cache
def columns() -> dict[str, dict[str, str]]:
    """Table of a server's file → its columns → SQLite's type; without those that are about the file itself."""
    with closing(sqlite3.connect(":memory:")) as empty:
        empty.executescript(TABLES)
        Journal(empty)
        names = [name for (name,) in empty.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {
            name: {row[1]: row[2] for row in empty.execute(f"PRAGMA table_info('{name}')")}
            for name in names
            if name not in LOCAL
        }


def watch(connection: sqlite3.Connection) -> None:
    """Have a connection note which rows it changes from now on."""
    Journal(connection)  # its table is there
    connection.execute("PRAGMA recursive_triggers = ON")  # or rows that others replace would not be noted
    connection.execute("CREATE TEMP TABLE changed_rows (name TEXT, number INTEGER, PRIMARY KEY (name, number))")
    for name in columns():
        for change, rows in {"INSERT": ["NEW"], "UPDATE": ["OLD", "NEW"], "DELETE": ["OLD"]}.items():
            values = ", ".join(f"('{name}', {row}.rowid)" for row in rows)
            connection.execute(
                f"CREATE TEMP TRIGGER {name}_{change} AFTER {change} ON main.{name}"
                f" BEGIN INSERT OR IGNORE INTO changed_rows VALUES {values}; END"
            )


def note_all(connection: sqlite3.Connection) -> None:
    """Count every row as changed."""
    for name in columns():
        connection.execute(f"INSERT OR IGNORE INTO changed_rows SELECT '{name}', rowid FROM {name}")


def changed_rows(connection: sqlite3.Connection) -> list[tuple[str, int]]:
    """Tables and row numbers, in order: what has changed since :func:`forget_changes`."""
    return connection.execute("SELECT name, number FROM changed_rows ORDER BY name, number").fetchall()


def forget_changes(connection: sqlite3.Connection) -> None:
    """The file and the database have the same rows."""
    connection.execute("DELETE FROM changed_rows")
