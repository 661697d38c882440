"""A job's rounds and evaluations as columns of numbers, thinned where there are more of them than a page shows."""

from __future__ import annotations

import json
import math
import sqlite3
from typing import Any

#: Points of a curve at most.
POINTS = 1000


def read_curves(connection: sqlite3.Connection, first: int, last: int) -> dict[str, Any]:
    """Rounds ``first`` to ``last`` of a server's file.

    Of more than :data:`POINTS` rounds every n-th one is left, with its own numbers, and the last.

    Returns:
        step: n.
        rounds: round, loss, results, seconds, closed (Unix time) and joules (of a device, None where none said), a list
            of equal length each.
        evaluations: round, loss, and for each score a list, with None where an evaluation has no such score.
    """
    low, high, count = connection.execute(
        "SELECT MIN(round), MAX(round), COUNT(*) FROM history WHERE round BETWEEN ? AND ?", (first, last)
    ).fetchone()
    step = max(1, math.ceil(count / POINTS))
    rows = connection.execute(
        "SELECT round, loss, devices, seconds, closed, joules, joules_devices FROM history"
        " WHERE round BETWEEN ? AND ? AND (round % ? = 0 OR round = ?) ORDER BY round",
        (first, last, step, high),
    ).fetchall()
    return {
        "step": step,
        "first": low,
        "last": high,
        "rounds": {
            "round": [row[0] for row in rows],
            "loss": [row[1] for row in rows],
            "results": [len(row[2].split()) for row in rows],
            "seconds": [row[3] for row in rows],
            "closed": [row[4] for row in rows],
            "joules": [row[5] / row[6] if row[6] else None for row in rows],
        },
        "evaluations": _evaluations(connection, first, last),
    }


def _evaluations(connection: sqlite3.Connection, first: int, last: int) -> dict[str, Any]:
    rows = connection.execute(
        "SELECT round, loss, scores FROM evaluations WHERE round BETWEEN ? AND ? ORDER BY round", (first, last)
    ).fetchall()
    step = max(1, math.ceil(len(rows) / POINTS))
    rows = [row for number, row in enumerate(rows, 1) if number % step == 0 or number == len(rows)]
    scores = [json.loads(row[2]) for row in rows]
    return {
        "round": [row[0] for row in rows],
        "loss": [row[1] for row in rows],
        "scores": {
            name: [each.get(name) for each in scores] for name in sorted({name for each in scores for name in each})
        },
    }
