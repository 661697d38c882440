"""The journal: the append-only list of applied rounds, in SQLite. A power cut leaves its first entries whole.

It is a chain: each entry is signed for the hash of the journal before it, and kept with the hash up to it. Both are
checked whenever an entry is read, so a bit that flips on the disk is found in the round where it is.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar, overload

from fedspzo.device_runtime.errors import MessageError, StateError
from fedspzo.device_runtime.files import make_private
from fedspzo.device_runtime.protocol.codec import decode
from fedspzo.device_runtime.protocol.entry import Entry
from fedspzo.device_runtime.replica.chain import EMPTY, Check, Record, Row, find_damage

Connection = TypeVar("Connection", bound=sqlite3.Connection)


@overload
def connect(path: Path) -> sqlite3.Connection: ...


@overload
def connect(path: Path, factory: type[Connection]) -> Connection: ...


def connect(path: Path, factory: type[sqlite3.Connection] = sqlite3.Connection) -> sqlite3.Connection:
    """Open a SQLite file whose committed transactions survive a power cut.

    Args:
        factory: the kind of the connection.

    Raises:
        StateError: the file is damaged, locked, or not to be written.
    """
    connection: sqlite3.Connection | None = None
    try:
        make_private(path)  # SQLite gives its other files the mode of this one
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, factory=factory)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA wal_checkpoint")  # what a killed process wrote can be read and yet not be on disk
        return connection
    except (OSError, UnicodeError, sqlite3.Error) as error:  # SQLite quotes a damaged table's name as it is
        if connection is not None:
            connection.close()
        reason = "its list of tables is damaged" if isinstance(error, UnicodeError) else str(error)
        raise StateError(
            "state.database-unusable",
            f"{path} cannot be used ({reason}); choose another folder, restore a backup, or make room on the disk",
        ) from None


#: Entries that are read at once.
_PAGE = 64


class Journal:
    """Entries of consecutive rounds over a SQLite connection, each signed by the server and with the hash up to it."""

    def __init__(self, connection: sqlite3.Connection, check: Check | None = None) -> None:
        """Use a connection's journal.

        Args:
            check: of the signatures; without one, only the hashes are checked.
        """
        self._connection, self._check = connection, check
        self._checked_head = 0, EMPTY
        self._query(
            "CREATE TABLE IF NOT EXISTS journal"
            " (round INTEGER PRIMARY KEY, entry BLOB NOT NULL, signature BLOB NOT NULL, head BLOB NOT NULL)"
        )

    @property
    def last_round(self) -> int:
        """Number of the last round in it, 0 when it is empty. Raises StateError when the file is damaged."""
        return int(self._query("SELECT COALESCE(MAX(round), 0) FROM journal")[0][0])

    def head(self, round: int) -> bytes | None:
        """Hash of the journal up to a round, None when it does not have the round.

        Raises:
            StateError: the round is damaged.
        """
        if not round:
            return EMPTY
        if round == self._checked_head[0]:  # most ask for the last round's
            return self._checked_head[1]
        rows = {row.round: row for row in self.rows(round - 2, 2)}
        if round not in rows:
            return None
        if round == 1 or round - 1 in rows:
            self._expect(rows[round], rows[round - 1].head if round > 1 else EMPTY)
        self._checked_head = round, rows[round].head
        return rows[round].head

    def append(self, record: Record) -> None:
        """Add the next round's entry; it is on disk when this returns, or when the transaction around it is.

        Raises:
            StateError: the entry's round is not the next one.
        """
        last, round = self.last_round, record.entry.round
        if last and round != last + 1:
            raise StateError(
                "journal.wrong-round",
                f"the journal ends at round {last} and cannot take round {round}; restore the state folder from a"
                " backup",
            )
        self._insert(record)

    def extend(self, records: Sequence[Record]) -> None:
        """Add later rounds' entries, all or none of them; before them, rounds may be missing that a snapshot skips.

        Raises:
            StateError: the disk refuses, or a round is there already.
        """
        self._query("BEGIN IMMEDIATE")
        try:
            for record in records:
                self._insert(record)
            self._query("COMMIT")
        except BaseException:
            self._connection.rollback()
            raise

    def _insert(self, record: Record) -> None:
        values = (record.entry.round, record.payload, record.signature, record.head)
        self._query("INSERT INTO journal VALUES (?, ?, ?, ?)", values)

    def entries(self, after: int = 0, most: int = -1, head: bytes | None = None) -> Iterator[Entry]:
        """Entries of the rounds after ``after``, in order, at most ``most`` or all.

        Args:
            head: hash of the journal up to ``after``, where this journal does not have that round.

        Raises:
            StateError: one is damaged or missing.
        """
        for row in self._checked(after, most, head):
            yield _decode(row)

    def signed(self, after: int, most: int) -> tuple[bytes, ...]:
        """Signed entries of the rounds after ``after``, at most ``most``.

        Raises:
            StateError: one is damaged or missing.
        """
        return tuple(row.signed for row in self._checked(after, most))

    def kept(self, after: int, most_bytes: int) -> tuple[bytes, ...]:
        """Signed entries of the rounds after ``after``, as many as fit ``most_bytes`` but at least one.

        They are as they lie on the disk, and only those up to the first that was not kept or signed.
        """
        found: list[bytes] = []
        for row in _fitting(iter(self.rows(after, _PAGE)), most_bytes):
            if row.round != after + len(found) + 1 or not row.signature:
                break
            found.append(row.signed)
        return tuple(found)

    def rows(self, after: int, most: int) -> list[Row]:
        """Rounds after one, in order, at most ``most``, as they lie on the disk: nothing of them is checked."""
        statement = (
            "SELECT round, CAST(entry AS BLOB), CAST(signature AS BLOB), CAST(head AS BLOB) FROM journal"
            " WHERE round > ? ORDER BY round LIMIT ?"
        )
        return [
            Row(number, *(part or b"" for part in parts)) for number, *parts in self._query(statement, (after, most))
        ]

    def _checked(self, after: int, most: int = -1, head: bytes | None = None) -> Iterator[Row]:
        """Rows after a round, of which only few are in memory at a time. Raises StateError: one is damaged."""
        head = self.head(after) if head is None else head
        while rows := self.rows(after, min(most, _PAGE) if most >= 0 else _PAGE):
            for row in rows:
                if row.round != after + 1:
                    raise StateError(
                        "journal.round-missing",
                        f"the journal lacks round {after + 1}; run fedspzo server repair on its folder",
                    )
                self._expect(row, head)
                after, head = row.round, row.head
                yield row
            most -= len(rows) if most >= 0 else 0

    def _expect(self, row: Row, before: bytes | None) -> None:
        """Raise StateError unless a row follows a journal with a hash; None where that is not known."""
        damaged = find_damage(row, before, self._check) if before is not None else ""
        if damaged:
            raise _damaged(row.round, f"its {damaged} is not what was written")

    def size(self, after: int, up_to: int) -> int:
        """Bytes of the signed entries of the rounds after ``after`` up to another."""
        statement = (
            "SELECT COALESCE(SUM(LENGTH(entry) + LENGTH(signature)), 0) FROM journal WHERE round > ? AND round <= ?"
        )
        return int(self._query(statement, (after, up_to))[0][0])

    def beyond(self, up_to: int, most_bytes: int) -> int:
        """The last round before the newest signed entries up to ``up_to`` that fit ``most_bytes``; 0 where all fit."""
        statement = (
            "SELECT COALESCE(MAX(round), 0) FROM (SELECT round, SUM(LENGTH(entry) + LENGTH(signature))"
            " OVER (ORDER BY round DESC) AS total FROM journal WHERE round <= ?) WHERE total > ?"
        )
        return int(self._query(statement, (up_to, most_bytes))[0][0])

    def forget(self, up_to: int) -> None:
        """Drop the entries up to a round, which a snapshot now stands for."""
        self._query("DELETE FROM journal WHERE round <= ?", (up_to,))

    def drop(self, after: int) -> None:
        """Drop the entries after a round."""
        self._query("DELETE FROM journal WHERE round > ?", (after,))

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def _query(self, statement: str, values: tuple[object, ...] = ()) -> list[Any]:
        try:
            return self._connection.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            raise StateError(
                "journal.unusable", f"the journal cannot be used ({error}); make room on the disk, or restore the file"
            ) from None


def _fitting(rows: Iterator[Row], most_bytes: int) -> Iterator[Row]:
    """The first rows, as many as fit but at least one."""
    size = 0
    for number, row in enumerate(rows):
        size += len(row.signed)
        if number and size > most_bytes:
            break
        yield row


def _decode(row: Row) -> Entry:
    try:
        entry = decode(row.payload)
    except MessageError as error:
        raise _damaged(row.round, str(error)) from None
    if not isinstance(entry, Entry) or entry.round != row.round:
        raise _damaged(row.round, "it holds something else")
    return entry


def _damaged(round: int, why: str) -> StateError:
    return StateError(
        "journal.entry-damaged",
        f"round {round} of the journal is damaged ({why}); run fedspzo server repair on its folder",
    )
