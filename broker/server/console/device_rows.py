"""A page of a job's devices, found, ordered and cut by SQLite, so that a job may have 100,000 of them."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping
from typing import Any

from fedspzo.broker.rounds.anomalies import Record

#: Devices of a page.
PAGE = 50
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
#: What devices can be chosen by → how SQLite says it.
CHOICES = {
    "all": "1",
    "behind": "MAX(devices.round, served) < :round",
    "unusual": "large + contrary + grouped > 0 OR expelled > 0 OR copies > 0 OR floods > 0",
    "charging": "charging",
    "on battery": "NOT charging",
}


def read_devices(
    connection: sqlite3.Connection,
    round: int,
    now: float,
    match: str = "",
    choice: str = "all",
    order: str = "name",
    descending: bool = False,
    page: int = 0,
    state: Callable[[str], str | None] = lambda name: None,
) -> dict[str, Any]:
    """Devices whose name or version has ``match`` in it.

    Args:
        connection: gives rows as :class:`sqlite3.Row`.
        round: the last closed one.
        now: Unix time.
        choice: one of :data:`CHOICES`.
        order: one of :data:`ORDERS`.
        page: its number, from 0.
        state: what a device is doing; None where nobody knows.

    Returns:
        found: how many there are on all pages.
        page, pages: the page's number, and how many there are.
        devices: a record for each of the page.
    """
    tables = (
        "FROM devices LEFT JOIN conduct ON conduct.device = devices.name"
        " LEFT JOIN records ON records.device = devices.name"
        f" WHERE ({CHOICES[choice]})"
    )
    if match:
        tables += " AND (INSTR(LOWER(devices.name), :match) OR INSTR(LOWER(COALESCE(version, '')), :match))"
    values = {"match": match.lower(), "round": round}
    found = connection.execute(f"SELECT COUNT(*) {tables}", values).fetchone()[0]
    pages = max(1, -(-found // PAGE))
    page = min(max(page, 0), pages - 1)
    nulls = "" if order == "name" else "NULLS LAST"  # or SQLite would not go along the names' index
    way = "DESC" if descending != (order in _REVERSED) else "ASC"
    rows = connection.execute(
        f"SELECT devices.*, version, can, copies, floods, cut_off, large, contrary, noted, against, accused, expelled,"
        f" grouped {tables} ORDER BY {ORDERS[order]} {way} {nulls}, devices.name LIMIT {PAGE} OFFSET {page * PAGE}",
        values,
    ).fetchall()
    return {
        "found": found,
        "page": page,
        "pages": pages,
        "devices": [{**_describe(row, round, now), "state": state(row["name"])} for row in rows],
    }


def _describe(row: Mapping[str, Any], round: int, now: float) -> dict[str, Any]:
    stands = max(row["round"], row["served"])
    joules = row["measured_joules"] + row["estimated_joules"]
    return {
        "name": row["name"],
        "version": row["version"] or None,
        "can": (row["can"] or "").split(),
        "round": stands,
        "lag": round - stands,
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
