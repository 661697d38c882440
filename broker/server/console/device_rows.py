"""A page of a job's devices, found, ordered and cut by SQLite, so that a job may have 100,000 of them."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from fedspzo.broker.rounds.anomalies import Record
from fedspzo.broker.server.window import STATES

#: Devices of a page.
PAGE = 50
#: What a device is that may not take part.
BLOCKED = "blocked"
#: What devices can be ordered by → how SQLite says it.
ORDERS = {
    "name": "devices.name",
    "version": "version",
    "lag": "MAX(devices.round, served)",
    "seen": "seen",
    "results": "results",
    "examples": "examples",
    "battery": "battery",
    "bytes": "bytes_up + bytes_down",
    "joules": "CASE WHEN joules_results THEN (measured_joules + estimated_joules) / joules_results END",
    "anomalies": "large + contrary + grouped",
}
#: Larger numbers of these come with smaller ones of what SQLite orders by.
_REVERSED = ("lag", "seen")
_IS_BLOCKED = "devices.name IN (SELECT name FROM blocked)"
#: What devices can be chosen by → how SQLite says it.
CHOICES = {
    "all": "1",
    "behind": "MAX(devices.round, served) < :round",
    "unusual": "large + contrary + grouped > 0 OR expelled > 0 OR copies > 0 OR floods > 0",
    "charging": "charging",
    "on battery": "NOT charging",
    **{state: f"STATE_OF(devices.name) = '{state}' AND NOT {_IS_BLOCKED}" for state in STATES},
    BLOCKED: _IS_BLOCKED,
}


@dataclass(frozen=True)
class Search:
    """Which devices.

    Attributes:
        match: is in the name or the version.
        choice: one of :data:`CHOICES`.
        group, label: theirs; "" for any.
    """

    match: str = ""
    choice: str = "all"
    group: str = ""
    label: str = ""


@dataclass(frozen=True)
class Known:
    """What is known of devices apart from the file; the functions take a device's name.

    Attributes:
        round: the last closed one.
        state: one of :data:`fedspzo.broker.server.window.STATES`; None where nobody knows.
        group: "" for none.
    """

    round: int
    state: Callable[[str], str | None] = lambda name: None
    group: Callable[[str], str] = lambda name: ""


def read_devices(
    connection: sqlite3.Connection,
    known: Known,
    now: float,
    search: Search = Search(),
    order: str = "name",
    descending: bool = False,
    page: int = 0,
) -> dict[str, Any]:
    """A page of devices.

    Args:
        connection: gives rows as :class:`sqlite3.Row`.
        now: Unix time.
        order: one of :data:`ORDERS`.
        page: its number, from 0.

    Returns:
        found: how many there are on all pages.
        page, pages: the page's number, and how many there are.
        devices: a record for each of the page.
    """
    tables, values = _find(connection, known, search)
    found = connection.execute(f"SELECT COUNT(*) {tables}", values).fetchone()[0]
    pages = max(1, -(-found // PAGE))
    page = min(max(page, 0), pages - 1)
    nulls = "" if order == "name" else "NULLS LAST"  # or SQLite would not go along the names' index
    way = "DESC" if descending != (order in _REVERSED) else "ASC"
    rows = connection.execute(
        f"SELECT devices.*, version, can, copies, floods, cut_off, large, contrary, noted, against, accused, expelled,"
        f" grouped, {_IS_BLOCKED} AS blocked,"
        " (SELECT GROUP_CONCAT(label, ' ') FROM labels WHERE labels.device = devices.name) AS labels"
        f" {tables} ORDER BY {ORDERS[order]} {way} {nulls}, devices.name LIMIT {PAGE} OFFSET {page * PAGE}",
        values,
    ).fetchall()
    return {
        "found": found,
        "page": page,
        "pages": pages,
        "devices": [_describe(row, known, now) for row in rows],
    }


def read_names(connection: sqlite3.Connection, known: Known, search: Search) -> list[str]:
    """The names of all devices that a search finds."""
    tables, values = _find(connection, known, search)
    return [row[0] for row in connection.execute(f"SELECT devices.name {tables} ORDER BY devices.name", values)]


def _find(connection: sqlite3.Connection, known: Known, search: Search) -> tuple[str, dict[str, Any]]:
    """The devices of a search, as SQLite says it, and the values in that."""
    connection.create_function("STATE_OF", 1, known.state)
    connection.create_function("GROUP_OF", 1, known.group)
    tables = (
        "FROM devices LEFT JOIN conduct ON conduct.device = devices.name"
        " LEFT JOIN records ON records.device = devices.name"
        f" WHERE ({CHOICES[search.choice]})"
    )
    if search.match:
        tables += " AND (INSTR(LOWER(devices.name), :match) OR INSTR(LOWER(COALESCE(version, '')), :match))"
    if search.group:
        tables += " AND GROUP_OF(devices.name) = :group"
    if search.label:
        tables += " AND EXISTS (SELECT 1 FROM labels WHERE labels.device = devices.name AND label = :label)"
    return tables, {**asdict(search), "match": search.match.lower(), "round": known.round}


def _describe(row: Mapping[str, Any], known: Known, now: float) -> dict[str, Any]:
    stands = max(row["round"], row["served"])
    joules = row["measured_joules"] + row["estimated_joules"]
    return {
        "name": row["name"],
        "state": BLOCKED if row["blocked"] else known.state(row["name"]),
        "group": known.group(row["name"]) or None,
        "labels": (row["labels"] or "").split(),
        "version": row["version"] or None,
        "can": (row["can"] or "").split(),
        "round": stands,
        "lag": known.round - stands,
        "seen": now - row["seen"],
        "results": row["results"],
        "examples": row["examples"],
        "battery": row["battery"],
        "charging": bool(row["charging"]),
        "up": row["bytes_up"],
        "down": row["bytes_down"],
        "joules": joules / row["joules_results"] if row["joules_results"] else None,
        "estimated": row["estimated_joules"] > 0,
        "unusual": _unusual(row),
    }


def _unusual(row: Mapping[str, Any]) -> str:
    """What there is to know of a device's conduct, in words; "" where it is as others."""
    record = Record(
        *(row[name] or 0 for name in ("large", "contrary", "noted", "against", "accused", "expelled", "grouped"))
    )
    found = [
        f"sent away after round {record.expelled}" * (record.expelled > 0),
        record.reason,
        f"ran in two processes ({row['copies']} times seen)" if row["copies"] else "",
        f"sent far more than it needs to ({row['floods']} times)" if row["floods"] else "",
        "its login was taken away" if row["cut_off"] else "",
    ]
    return "; ".join(filter(None, found))
