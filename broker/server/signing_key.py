"""The key that a server signs with, and the public halves of those before it.

The file has the hand-overs, and a file beside it the secret half of the newest key. A new one lies under another name
until its hand-over is in the file, so whatever is killed, one of the two names has the secret of the newest key.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

from fedspzo.broker.server.schema import ServerFile, writing
from fedspzo.device_runtime.errors import MessageError, StateError
from fedspzo.device_runtime.files import move_into_place, write_atomically
from fedspzo.device_runtime.protocol.codec import decode
from fedspzo.device_runtime.protocol.messages import HandOver
from fedspzo.device_runtime.protocol.server_keys import ServerKeys
from fedspzo.device_runtime.protocol.signing import Signer, split

#: Files of a state folder: the key, and the one that is yet to take its place.
KEY, NEXT = "server.key", "server.key.next"


def read_first_key(connection: sqlite3.Connection, folder: Path) -> bytes:
    """The public key that bundles of a server name: its first, made where it is new.

    Raises:
        StateError: a hand-over is damaged, or the key's file cannot be used, or is missing where it is not new.
    """
    hand_overs = _read(connection)
    return hand_overs[0][1].before if hand_overs else Signer(find_key(connection, folder)).public


def read_keys(connection: sqlite3.Connection, folder: Path, bundle: bytes, name: str) -> ServerKeys:
    """A server's public keys, given its file and folder, for a job. Raises as :func:`read_first_key`."""
    keys = ServerKeys(read_first_key(connection, folder), bundle, name)
    for signed, _ in _read(connection):
        try:
            keys.follow(signed)
        except MessageError as error:
            raise _damaged(error) from None
    return keys


def find_key(connection: sqlite3.Connection, folder: Path) -> Path:
    """The file with the secret half of a server's newest key, which a new server has yet to make.

    Raises:
        StateError: the folder lacks that key.
    """
    hand_overs = _read(connection)
    if not hand_overs:
        if not (folder / KEY).exists() and _has_begun(connection):
            raise StateError(
                "state.key-missing",
                f"{folder / KEY} is missing, with which the server signs its job; restore it from a backup",
            )
        return folder / KEY
    for file in (folder / KEY, folder / NEXT):
        if file.is_file() and Signer(file).public == hand_overs[-1][1].key:
            return file
    raise StateError(
        "state.other-key",
        f"{folder / KEY} is not the key that the server has changed to; restore the folder from a backup that was made"
        " after the change",
    )


def open_signer(connection: sqlite3.Connection, folder: Path) -> Signer:
    """What signs with a server's newest key, made where it is new; a change that was broken off is completed.

    Raises:
        StateError: the folder lacks that key.
    """
    found = find_key(connection, folder)
    if found.name == NEXT:
        move_into_place(found, folder / KEY)
    return Signer(folder / KEY)


def share_key(connection: ServerFile, folder: Path) -> None:
    """Have a file and its folder have the same secret, where the state is shared: the file's, if it has one.

    Raises:
        StateError: the folder cannot be written, or its key is not the newest.
    """
    row = connection.execute("SELECT CAST(secret AS BLOB) FROM signing").fetchone()
    if row is None:
        key = find_key(connection, folder)
        Signer(key)  # makes it
        with writing(connection, folder) as execute:
            execute("INSERT INTO signing VALUES (1, ?)", (key.read_bytes(),))
    take_key(connection, folder)


def take_key(connection: sqlite3.Connection, folder: Path) -> None:
    """Write the secret that a shared state has into its folder, in place of a former one.

    Raises:
        StateError: the folder has a key that the state does not know and that may be newer, or cannot be written.
    """
    row = connection.execute("SELECT CAST(secret AS BLOB) FROM signing").fetchone()
    if row is None or ((folder / KEY).is_file() and (folder / KEY).read_bytes() == row[0]):
        return
    known = {key for _, change in _read(connection) for key in (change.before, change.key)}
    if (folder / KEY).is_file() and Signer(folder / KEY).public not in known:
        raise StateError(
            "state.unknown-key",
            f"{folder / KEY} is not a key that the database knows: restore a newer copy of the database, or give a new"
            " folder if the key is of another job",
        )
    write_atomically(folder / KEY, row[0], mode=0o600)


def _has_begun(connection: sqlite3.Connection) -> bool:
    """Whether a server's file, which may have no tables yet, has a job or a journal."""
    tables = connection.execute("SELECT name FROM sqlite_master WHERE name IN ('job', 'journal')").fetchall()
    return any(connection.execute(f"SELECT 1 FROM {name}").fetchone() for (name,) in tables)


def _read(connection: sqlite3.Connection) -> list[tuple[bytes, HandOver]]:
    """The hand-overs in a server's file, in their order; a file from before there were any has none."""
    if not connection.execute("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'hand_overs'").fetchone():
        return []
    found = []
    try:
        rows = connection.execute("SELECT CAST(signed AS BLOB) FROM hand_overs ORDER BY number").fetchall()
    except sqlite3.DatabaseError as error:
        raise _damaged(error) from None
    for (signed,) in rows:
        try:
            message = decode(split(signed))
        except MessageError as error:
            raise _damaged(error) from None
        if not isinstance(message, HandOver):
            raise _damaged("it is another message")
        found.append((signed, message))
    return found


def _damaged(why: object) -> StateError:
    return StateError(
        "state.hand-over-damaged",
        f"a record of the server's keys is damaged ({why}); restore the state folder from a backup",
    )
