"""What a server's file has of its devices: where they stand, what they took, and how they behaved."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from fedspzo.broker.server.devices import Member


@dataclass(frozen=True)
class Conduct:
    """What is known of a device, apart from its results.

    Attributes:
        version: of its program, as it says.
        can: what of the protocol it understands, as it says, separated by spaces.
        copies: how often two processes had its id or its key.
        floods: how often it sent far more than it needs to.
        cut_off: whether its login was taken away for that.
    """

    version: str = ""
    can: str = ""
    copies: int = 0
    floods: int = 0
    cut_off: bool = False


def save_members(execute: Callable[..., sqlite3.Cursor], members: Iterable[Member]) -> None:
    """Keep what is known of some devices."""
    for m in members:
        execute(
            f"INSERT OR REPLACE INTO devices VALUES ({', '.join('?' * 15)})",
            (m.name, m.key, m.round, m.examples, m.battery, m.charging, m.served, m.results, m.bytes_up,
             m.bytes_down, time.time() - (time.monotonic() - m.seen), m.measured_joules, m.estimated_joules,
             m.joules_uncertainty, m.joules_results),
        )  # fmt: skip
        execute(
            "INSERT OR REPLACE INTO conduct VALUES (?, ?, ?, ?, ?, ?)",
            (m.name, m.version, " ".join(sorted(m.can)), m.copies, m.floods, m.cut_off),
        )
        if m.authorities:
            execute("INSERT OR REPLACE INTO authorities VALUES (?, ?)", (m.name, m.authorities))


def load_members(connection: sqlite3.Connection) -> Iterator[Member]:
    """The devices that are known; none of them is there yet."""
    conducts, authorities = read_conduct(connection), read_authorities(connection)
    for row in connection.execute("SELECT * FROM devices ORDER BY name").fetchall():
        name, key, round, examples, battery, charging, served, results, up, down, seen, *joules = row
        ago, conduct = time.time() - seen, conducts.get(name, Conduct())
        yield Member(
            name, key, round=round, examples=examples, battery=battery, charging=bool(charging), served=served,
            results=results, bytes_up=up, bytes_down=down, seen=time.monotonic() - ago, measured_joules=joules[0],
            estimated_joules=joules[1], joules_uncertainty=joules[2], joules_results=joules[3],
            version=conduct.version, can=frozenset(conduct.can.split()), copies=conduct.copies, floods=conduct.floods,
            cut_off=conduct.cut_off, authorities=authorities.get(name, b""),
        )  # fmt: skip


def read_blocked(connection: sqlite3.Connection) -> list[str]:
    """Devices that are blocked."""
    return [name for (name,) in connection.execute("SELECT name FROM blocked ORDER BY name")]


def read_authorities(connection: sqlite3.Connection) -> dict[str, bytes]:
    """Device → fingerprint of the authorities that it trusts at the broker; "" → those of the server."""
    return dict(connection.execute("SELECT device, CAST(fingerprint AS BLOB) FROM authorities").fetchall())


def read_conduct(connection: sqlite3.Connection) -> dict[str, Conduct]:
    """Device → its conduct; a file from before that was kept has none."""
    if not connection.execute("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'conduct'").fetchone():
        return {}
    return {
        device: Conduct(version, can, copies, floods, bool(cut_off))
        for device, version, can, copies, floods, cut_off in connection.execute("SELECT * FROM conduct").fetchall()
    }
