"""A server that is stopped changes its key: the old one signs which is the new one, and devices follow."""

from __future__ import annotations

import sqlite3
from contextlib import suppress
from pathlib import Path

from fedspzo.broker.server.member_tables import read_blocked, read_conduct
from fedspzo.broker.server.recovery import open_stopped
from fedspzo.broker.server.signing_key import NEXT
from fedspzo.broker.server.state_folder import has_moved
from fedspzo.device_runtime.errors import StateError
from fedspzo.device_runtime.log import list_some
from fedspzo.device_runtime.protocol.codec import encode
from fedspzo.device_runtime.protocol.messages import KEYS, HandOver
from fedspzo.device_runtime.protocol.signing import Scope, Signer


def change_key(folder: Path) -> HandOver:
    """Give a server another key, with which it signs from the next round's entry on, and all else at once.

    Raises:
        StateError: not a server's folder, or its server runs; the folder was restored or copied, and its server has not
            run since; or a device could not follow.
    """
    with open_stopped(folder) as own:
        if has_moved(own.connection, folder):
            raise StateError(
                "server.key-change-in-doubt",
                f"{folder} was restored or copied, so its journal may not be the newest; start the server until it"
                " continues, and stop it again",
            )
        if behind := _cannot_follow(own.connection):
            raise StateError(
                "server.key-change-too-early",
                f"{list_some(behind)}: not known to follow to another key; update these devices to this version and let"
                " them connect, or strike those that will not come back with fedspzo forget",
            )
        (folder / NEXT).unlink(missing_ok=True)  # of a change that was broken off before it counted
        new = Signer(folder / NEXT)
        message = HandOver(own.keys.newest, new.public, own.journal.last_round + 1)
        signed = own.signer.sign(encode(message), Scope(own.name, own.bundle))
        own.connection.execute("INSERT INTO hand_overs (signed) VALUES (?)", (signed,))
        own.connection.execute("UPDATE signing SET secret = ?", ((folder / NEXT).read_bytes(),))
    with suppress(StateError), open_stopped(folder):  # which gives the new key its place, as the server's start does
        pass
    return message


def _cannot_follow(connection: sqlite3.Connection) -> list[str]:
    """Devices that take part by a version that knows one key only."""
    conducts, blocked = read_conduct(connection), read_blocked(connection)
    names = [name for (name,) in connection.execute("SELECT name FROM devices ORDER BY name")]
    return [
        name
        for name in names
        if name not in blocked and (name not in conducts or KEYS not in conducts[name].can.split())
    ]
