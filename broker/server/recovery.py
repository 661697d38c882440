"""Entries that a server lost, taken back from where they are kept: devices, backups, or other state folders.

The server's own signature tells good copies from bad ones, wherever they come from.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from fedspzo.broker.server.schema import check_whole, writing
from fedspzo.broker.server.shared.file import open_file
from fedspzo.broker.server.signing_key import KEY, open_signer, read_keys
from fedspzo.broker.server.state_folder import DATABASE, check_servers
from fedspzo.device_runtime.errors import MessageError, StateError
from fedspzo.device_runtime.files import lock_folder
from fedspzo.device_runtime.protocol.codec import BATCH_BYTES, decode
from fedspzo.device_runtime.protocol.entry import Entry
from fedspzo.device_runtime.protocol.server_keys import ServerKeys
from fedspzo.device_runtime.protocol.signing import SIGNATURE_BYTES, Scope, Signer, split
from fedspzo.device_runtime.replica.chain import EMPTY, Check, Row, chain, find_damage
from fedspzo.device_runtime.replica.journal import Journal, connect
from fedspzo.device_runtime.replica.state import DATABASE as DEVICE_DATABASE

_PUT = "INSERT OR REPLACE INTO journal VALUES (?, ?, ?, ?)"


class Source(Protocol):
    """Where entries may be kept. Nothing that it gives is believed without the server's signature.

    Attributes:
        name: what people call it.
    """

    name: str

    def entries(self, after: int) -> tuple[bytes, ...]:
        """The first signed entries of the rounds after one; none where it does not have the next."""
        ...


class FolderSource:
    """A backup, or the state folder of a device or of a server.

    Attributes:
        name: its path.
    """

    def __init__(self, folder: Path) -> None:
        """Raises StateError where there is no journal."""
        file = next((folder / name for name in (DATABASE, DEVICE_DATABASE) if (folder / name).is_file()), None)
        if file is None:
            raise StateError(
                "state.no-journal-to-read",
                f"{folder} has no journal; give a backup, or the state folder of a device or of a server",
            )
        self.name, self._file = str(folder), file

    def check_job(self, check: Check) -> None:
        """Raise StateError where the server has signed none of its first and last entries."""
        with closing(connect(self._file)) as connection:
            journal = Journal(connection)
            rows = {row.round: row for at in (0, max(0, journal.last_round - 2)) for row in journal.rows(at, 2)}
        heads = {0: EMPTY, **{round: row.head for round, row in rows.items()}}
        following = [(row.signed, heads[row.round - 1]) for row in rows.values() if row.round - 1 in heads]
        if following and not any(_signed(signed, head, check) for signed, head in following):
            raise StateError(
                "state.foreign-journal",
                f"{self.name} belongs to another job: this server has signed none of its entries; give backups of this"
                " server, or state folders of this job's devices",
            )

    def entries(self, after: int) -> tuple[bytes, ...]:
        """As :meth:`Source.entries`. Raises StateError where the file cannot be read."""
        with closing(connect(self._file)) as connection:
            return Journal(connection).kept(after, BATCH_BYTES)


@dataclass(frozen=True)
class Own:
    """A stopped server's state folder.

    Attributes:
        bundle: identity of the job's bundle.
        name: of the job.
        keys: the server's public keys.
        signer: has the newest of them.
        connection: to its file.
        journal: in the file.
        check: of an entry's signature.
    """

    bundle: bytes
    name: str
    keys: ServerKeys
    signer: Signer
    connection: sqlite3.Connection
    journal: Journal
    check: Check


@contextmanager
def open_stopped(folder: Path) -> Iterator[Own]:
    """The state folder of a server that does not run; what is done within is done as a whole, or not at all.

    Raises:
        StateError: not a server's folder, its server runs, or its file is damaged beyond its rows.
    """
    check_servers(folder)
    try:
        lock = lock_folder(folder)
    except StateError:
        raise StateError(
            "state.in-use", f"a server runs on {folder}; stop it first, and start it again afterwards"
        ) from None
    with lock, closing(open_file(folder / DATABASE)) as connection:
        check_whole(connection, folder / DATABASE)
        job = connection.execute("SELECT CAST(bundle AS BLOB), name FROM job").fetchone()
        if job is None:
            raise StateError("state.no-job", f"{folder} has no job yet; start its server first")
        keys = read_keys(connection, folder, job[0], job[1])
        signer, check = open_signer(connection, folder), keys.check_entry
        with writing(connection, folder / DATABASE):
            yield Own(job[0], job[1], keys, signer, connection, Journal(connection, check), check)


@dataclass(frozen=True)
class Repaired:
    """A round that was damaged.

    Attributes:
        round: the round.
        part: what was damaged: entry, signature, hash or number.
        source: where a good copy was; "" where what was left of the round sufficed.
    """

    round: int
    part: str
    source: str


def repair(own: Own, sources: Sequence[Source]) -> Iterator[Repaired]:
    """Go through a journal, and put right what is damaged or missing in it.

    A hash follows from the entries, and a signature from the server's key, if that has signed others there. Only an
    entry needs a copy, or a signature by an earlier key.

    Raises:
        StateError: no source has a good copy of an entry, or the key may be another server's.
    """
    head, round = EMPTY, 0
    while rows := own.journal.rows(round, 2):
        round += 1
        at = rows.pop(0) if rows[0].round == round else None
        part = find_damage(at, head, own.check) if at else "entry"
        if at and not part:
            head = at.head
            continue
        following, source = rows[0] if rows else None, ""
        by_key = part == "signature" and own.keys.at(round) == own.signer.public
        if at and by_key and _has_signed(own):
            signed = own.signer.sign(at.payload, Scope(own.name, own.bundle, head=head))
            at = replace(at, signature=signed[-SIGNATURE_BYTES:])
        elif at and part == "hash":
            at = replace(at, head=chain(head, at.payload))
        elif following and not at and (moved := fitting(following.signed, round, head, own.check)):
            own.connection.execute("DELETE FROM journal WHERE round = ?", (following.round,))
            at, part = moved, "number"
        elif by_key and not sources:
            raise StateError(
                "journal.other-key",
                f"{KEY} has signed nothing in the journal beside it; restore {KEY} from a backup, or give backups or"
                " devices' state folders with --from",
            )
        else:
            source, at = _find_copy(sources, round, head, at, following, own.check)
        own.connection.execute(_PUT, (at.round, at.payload, at.signature, at.head))
        head = at.head
        yield Repaired(round, part, source)


def adopt(own: Own, sources: Sequence[Source]) -> Iterator[tuple[int, str]]:
    """Add the entries that follow a journal, and that the server has signed; yields each round and its source's name.

    A round that was open is one of those, or comes after them, so it is forgotten.

    Raises:
        StateError: the journal is damaged.
    """
    last = sum(1 for _ in own.journal.entries())  # all of it is checked
    head, start = own.journal.head(last) or EMPTY, last
    for source in sources:
        while entries := source.entries(last):
            before = last
            for signed in entries:
                row = fitting(signed, last + 1, head, own.check)
                if row is None:
                    break
                own.connection.execute(_PUT, (row.round, row.payload, row.signature, row.head))
                last, head = row.round, row.head
                yield last, source.name
            if last == before:
                break
    if last > start:
        own.connection.execute("DELETE FROM open_round")
        own.connection.execute("DELETE FROM results")
        own.connection.execute("DELETE FROM summed")


def _has_signed(own: Own) -> bool:
    """Whether any signature in the journal is by the server's keys: else these may be another's."""
    round, head = 0, EMPTY
    while rows := own.journal.rows(round, 1):
        if _signed(rows[0].signed, head, own.check):
            return True
        round, head = rows[0].round, rows[0].head
    return False


def _find_copy(
    sources: Sequence[Source], round: int, head: bytes, at: Row | None, following: Row | None, check: Check
) -> tuple[str, Row]:
    """A good copy of a round's entry, and where it is: the one that what is left of the journal speaks for."""
    found: dict[bytes, tuple[str, Row]] = {}
    for source in sources:
        for signed in source.entries(round - 1)[:1]:
            if row := fitting(signed, round, head, check):
                found.setdefault(row.head, (source.name, row))
    proven = [
        copy for copy in found.values()
        if (at and at.head == copy[1].head) or (following and _signed(following.signed, copy[1].head, check))
    ]  # fmt: skip
    best = proven or list(found.values())
    if len(best) != 1:
        places = ", ".join(source.name for source in sources)
        found_in = f"{len(best) or 'none'} of {places} can replace it" if sources else "no copy of it was looked for"
        raise StateError(
            "journal.no-good-copy",
            f"round {round} of the journal is damaged, and {found_in}; give backups or devices' state folders with"
            " --from, or ask devices that run with the server's --access file, or with --broker",
        )
    return best[0]


def fitting(signed: bytes, round: int, head: bytes, check: Check) -> Row | None:
    """A round's row, where bytes are its entry and signed for a journal with a hash; else None."""
    if not _signed(signed, head, check):
        return None
    payload = split(signed)
    entry = decode(payload)
    if not isinstance(entry, Entry) or entry.round != round:
        return None
    return Row(round, payload, signed[len(payload) :], chain(head, payload))


def _signed(signed: bytes, head: bytes, check: Check) -> bool:
    try:
        check(signed, head)
    except MessageError:
        return False
    return True
