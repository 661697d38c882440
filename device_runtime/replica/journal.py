"""The journal: the append-only list of applied rounds, in SQLite. A power cut leaves its first entries whole."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedspzo.device_runtime.errors import MessageError, StateError
from fedspzo.device_runtime.protocol.messages import decode, encode
from fedspzo.device_runtime.protocol.plan import Entry


def connect(path: Path) -> sqlite3.Connection:
    """Open a SQLite file whose committed transactions survive a power cut.

    Raises:
        StateError: the file is damaged, locked, or not to be written.
    """
    try:
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA wal_checkpoint")  # what a killed process wrote can be read and yet not be on disk
        return connection
    except sqlite3.Error as error:
        raise StateError(
            "state.database-unusable",
            f"{path} cannot be used ({error}); make room on the disk, or choose another folder",
        ) from None


#: Entries that are read at once.
_PAGE = 64
#: Hash of the empty journal.
EMPTY = bytes(16)


@dataclass(frozen=True)
class Record:
    """An entry on its way into a journal.

    Attributes:
        entry: the entry.
        payload: its bytes.
        head: hash of the journal up to and with it (16 bytes).
    """

    entry: Entry
    payload: bytes
    head: bytes


def make_records(entries: Iterable[Entry], head: bytes) -> Iterator[Record]:
    """Records of entries that follow a journal with a hash."""
    for entry in entries:
        payload = encode(entry)
        head = chain(head, payload)
        yield Record(entry, payload, head)


class Journal:
    """Entries of consecutive rounds over a SQLite connection, each signed by the server and with the hash up to it."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._query(
            "CREATE TABLE IF NOT EXISTS journal"
            " (round INTEGER PRIMARY KEY, entry BLOB NOT NULL, signature BLOB NOT NULL, head BLOB NOT NULL)"
        )

    @property
    def last_round(self) -> int:
        """Number of the last round in it, 0 when it is empty. Raises StateError when the file is damaged."""
        return int(self._query("SELECT COALESCE(MAX(round), 0) FROM journal")[0][0])

    def head(self, round: int) -> bytes | None:
        """Hash of the journal up to a round, None when it does not have the round."""
        rows = self._query("SELECT head FROM journal WHERE round = ?", (round,)) if round else [(EMPTY,)]
        return bytes(rows[0][0]) if rows else None

    def append(self, record: Record, signature: bytes = b"") -> None:
        """Add the next round's entry; it is on disk when this returns, or when the transaction around it is.

        Args:
            signature: of the entry's bytes.

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
        self._query("INSERT INTO journal VALUES (?, ?, ?, ?)", (round, record.payload, signature, record.head))

    def extend(self, records: Sequence[Record]) -> None:
        """Add the next rounds' entries, all or none of them. Raises as :meth:`append` does."""
        self._query("BEGIN IMMEDIATE")
        try:
            for record in records:
                self.append(record)
            self._query("COMMIT")
        except BaseException:
            self._connection.rollback()
            raise

    def entries(self, after: int = 0, most: int = -1) -> Iterator[Entry]:
        """Entries of the rounds after ``after``, in order, at most ``most`` or all.

        Raises:
            StateError: one is damaged or missing.
        """
        expected = after + 1
        for number, blob in self._rows(after, most):
            try:
                entry = decode(blob)
            except MessageError as error:
                raise StateError(
                    "journal.entry-damaged",
                    f"journal entry {number} is damaged ({error}); a device starts again with --afresh, a server from"
                    " its backup",
                ) from None
            if not isinstance(entry, Entry) or number != expected or entry.round != number:
                raise StateError(
                    "journal.round-missing",
                    f"the journal lacks round {expected}; a device starts again with --afresh, a server from a backup",
                )
            expected += 1
            yield entry

    def _rows(self, after: int, most: int) -> Iterator[tuple[int, bytes]]:
        """Rounds and their entries' bytes, of which only few are in memory at a time."""
        statement = "SELECT round, entry FROM journal WHERE round > ? ORDER BY round LIMIT ?"
        while rows := self._query(statement, (after, min(most, _PAGE) if most >= 0 else _PAGE)):
            yield from rows
            after, most = rows[-1][0], most - len(rows) if most >= 0 else most

    def signed(self, after: int, most_bytes: int) -> tuple[bytes, ...]:
        """Signed entries of the rounds after ``after``, as many as fit ``most_bytes`` but at least one."""
        found: list[bytes] = []
        size = 0
        statement = "SELECT entry, signature FROM journal WHERE round > ? ORDER BY round"
        try:
            for entry, signature in self._connection.execute(statement, (after,)):
                size += len(entry) + len(signature)
                if found and size > most_bytes:
                    break
                found.append(entry + signature)
        except sqlite3.Error as error:
            raise StateError(
                "journal.unusable", f"the journal cannot be read ({error}); make room on the disk, or restore the file"
            ) from None
        return tuple(found)

    def size(self, after: int, up_to: int) -> int:
        """Bytes of the signed entries of the rounds after ``after`` up to another."""
        statement = (
            "SELECT COALESCE(SUM(LENGTH(entry) + LENGTH(signature)), 0) FROM journal WHERE round > ? AND round <= ?"
        )
        return int(self._query(statement, (after, up_to))[0][0])

    def forget(self, up_to: int) -> None:
        """Drop the entries up to a round, which a snapshot now stands for."""
        self._query("DELETE FROM journal WHERE round <= ?", (up_to,))

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


def chain(head: bytes, payload: bytes) -> bytes:
    """Hash (16 bytes) of a journal that has a hash and then an entry's bytes; the empty journal's is :data:`EMPTY`."""
    return hashlib.blake2b(head + payload, digest_size=16, person=b"fedspzo journal").digest()
