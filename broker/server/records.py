"""What a server's file has of unusual results, for the server and for whoever reads its folder."""

from __future__ import annotations

import sqlite3

from fedspzo.broker.rounds.anomalies import Record


def read_records(connection: sqlite3.Connection) -> dict[str, Record]:
    """Device → what was unusual in its results; a file from before that was kept has none."""
    known = connection.execute("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'records'")
    if not known.fetchone():
        return {}
    return {device: Record(*values) for device, *values in connection.execute("SELECT * FROM records").fetchall()}
