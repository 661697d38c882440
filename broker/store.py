"""What the server must not lose: the journal, the open round and its results, in one SQLite file."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from broker.open_round import OpenRound
from broker.rounds import ClosedRound
from device_runtime.errors import StateError
from device_runtime.journal import EMPTY, Journal, chain, connect
from device_runtime.plan import Entry, Plan
from device_runtime.state import lock_folder
from device_runtime.wire import Result, decode, encode

DATABASE, SNAPSHOT = "server.sqlite", "snapshot.safetensors"

_SCHEMA = """
CREATE TABLE IF NOT EXISTS job (bundle BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS open_round (round INTEGER PRIMARY KEY, plan BLOB NOT NULL, cohort TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS results (round INTEGER, device TEXT, result BLOB NOT NULL, PRIMARY KEY (round, device));
CREATE TABLE IF NOT EXISTS history (
    round INTEGER PRIMARY KEY, loss REAL, devices TEXT, seconds REAL, step_seconds REAL
);
"""


class ServerStore:
    """The server's state folder. Everything is on disk when a method returns.

    Attributes:
        bundle: identity of the job's bundle.
        journal: the entries of closed rounds.
        snapshot: where the server's replica is kept.
    """

    def __init__(self, folder: Path, bundle: bytes) -> None:
        """Open or create.

        Args:
            bundle: identity of the job's bundle.

        Raises:
            StateError: the folder cannot be used, or belongs to a job with another bundle.
        """
        self._lock = lock_folder(folder)
        self.bundle = bundle
        self.snapshot = folder / SNAPSHOT
        self._connection = connect(folder / DATABASE)
        self._connection.executescript(_SCHEMA)
        self.journal = Journal(self._connection)
        self._heads = [EMPTY]
        for entry in self.journal.entries():
            self._heads.append(chain(self._heads[-1], entry))
        row = self._connection.execute("SELECT bundle FROM job").fetchone()
        if row is None:
            self._connection.execute("INSERT INTO job VALUES (?)", (bundle,))
        elif row[0] != bundle:
            raise StateError(f"{folder} belongs to a job with another bundle; give each job a state folder of its own")

    def save_open_round(self, plan: Plan, cohort: tuple[str, ...]) -> None:
        """Record the plan and who is asked, before they are."""
        with self._transaction() as execute:
            execute("DELETE FROM open_round")
            execute("INSERT INTO open_round VALUES (?, ?, ?)", (plan.round, encode(plan), " ".join(cohort)))

    def load_open_round(self, now: float) -> OpenRound | None:
        """The round that was open when the server stopped, with the results it had, opened anew at ``now``."""
        row = self._connection.execute("SELECT plan, cohort FROM open_round").fetchone()
        if row is None:
            return None
        plan = decode(row[0])
        if not isinstance(plan, Plan):
            raise StateError("the record of the open round is damaged; remove the server's state folder")
        rows = self._connection.execute("SELECT device, result FROM results WHERE round = ?", (plan.round,))
        results = {device: decode(blob) for device, blob in rows.fetchall()}
        accepted = {device: result for device, result in results.items() if isinstance(result, Result)}
        return OpenRound(plan, tuple(row[1].split()), accepted, now)

    def save_result(self, device: str, result: Result) -> None:
        """Keep a device's result of the open round; a second one of the same device changes nothing."""
        with self._transaction() as execute:
            execute("INSERT OR IGNORE INTO results VALUES (?, ?, ?)", (result.round, device, encode(result)))

    def close_round(self, entry: Entry, closed: ClosedRound) -> None:
        """Append the entry and forget the open round, at once or not at all."""
        with self._transaction() as execute:
            self.journal.append(entry)
            execute("DELETE FROM open_round")
            execute("DELETE FROM results")
            execute(
                "INSERT INTO history VALUES (?, ?, ?, ?, ?)",
                (closed.round, closed.loss, " ".join(closed.devices), closed.seconds, closed.step_seconds),
            )
        self._heads.append(chain(self._heads[-1], entry))

    def head(self, round: int) -> bytes | None:
        """Hash of the journal up to a round, None when it has not come so far."""
        return self._heads[round] if round < len(self._heads) else None

    def history(self) -> list[ClosedRound]:
        """All closed rounds in order."""
        rows = self._connection.execute("SELECT * FROM history ORDER BY round").fetchall()
        return [
            ClosedRound(number, loss, tuple(devices.split()), seconds, step)
            for number, loss, devices, seconds, step in rows
        ]

    @contextmanager
    def _transaction(self) -> Iterator[Callable[..., sqlite3.Cursor]]:
        """All of what is executed inside, or nothing."""
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection.execute
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")
        except sqlite3.Error as error:
            raise StateError(f"the server's database cannot be written: {error}") from None


def read_journal(path: Path) -> list[Entry]:
    """All entries of a server's journal, given its state folder.

    Raises:
        StateError: there is none, or it is damaged.
    """
    file = path / DATABASE
    if not file.is_file():
        raise StateError(f"{path} has no journal; give the state folder of a server")
    connection = connect(file)
    try:
        return list(Journal(connection).entries())
    finally:
        connection.close()
