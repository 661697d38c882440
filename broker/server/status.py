"""The state of a job: as its running server reports it, or as its state folder has it when no server runs."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedspzo.broker.rounds.anomalies import Record
from fedspzo.broker.server.census import Census
from fedspzo.broker.server.controls import read_changes, read_settings, run_state
from fedspzo.broker.server.evaluation import Evaluated
from fedspzo.broker.server.held_out import best_of, read_evaluations
from fedspzo.broker.server.member_tables import Conduct, read_blocked, read_conduct
from fedspzo.broker.server.records import read_records
from fedspzo.broker.server.state_folder import reading
from fedspzo.device_runtime.protocol.enrolment import ASKED

#: Rounds that means are taken over.
RECENT = 20


@dataclass(frozen=True)
class ServerStatus:
    """Where a running server is.

    Attributes:
        round: last closed round.
        results, asked: results that the open round has, and devices that it asked.
        ready, known: devices that can be asked, and that have ever synced.
        counts: what happened how often.
        bytes_sent, bytes_received: payload.
        loss, seconds: of the last closed round; NaN before the first.
        loss_uncertainty: of the same; None where this process did not close it, or it is not known.
        measured_joules, estimated_joules: that results took devices, by their sensors and by estimates.
        records: device → its record, where something was unusual in its results.
        rounds: the job's.
        finished: whether the job's last round is closed, or no other will be opened.
        closed_at: when the last round was closed, as Unix time; before the first, when the server started.
        journal_bytes: of the signed entries.
        census: how the devices are spread.
        evaluated, best: the newest and the best evaluation on the held-out examples, if there are any.
        broker_certificate_end: when the broker's certificate ends, as Unix time; None without one.
        authority_end: the same of the first of the authorities that the server trusts there.
        privacy: the ε that is spent, and the job's budget of it; None for a job without one.
    """

    round: int
    results: int
    asked: int
    ready: int
    known: int
    counts: dict[str, int]
    bytes_sent: int
    bytes_received: int
    loss: float
    loss_uncertainty: float | None
    seconds: float
    measured_joules: float
    estimated_joules: float
    records: Mapping[str, Record] = field(default_factory=dict)
    rounds: int = 0
    finished: bool = False
    closed_at: float = float("nan")
    journal_bytes: int = 0
    census: Census = field(default_factory=Census)
    evaluated: Evaluated | None = None
    best: Evaluated | None = None
    privacy: tuple[float, float] | None = None
    broker_certificate_end: float | None = None
    authority_end: float | None = None


def read_status(folder: Path) -> dict[str, Any]:
    """Rounds, devices and counts, as plain values for people and programs.

    A device's ``round`` is the one that it stood at when it last synced, or its last result counted in; ``heard`` is
    how many seconds ago anything came from it. Its ``version`` is None where it has not said it,
    and ``can`` is what of the protocol it understands.

    Raises:
        StateError: the folder is not a server's.
    """
    with reading(folder) as connection:
        connection.execute("BEGIN")  # all of it as it is at one moment
        return _read(connection, time.time())


def _read(connection: sqlite3.Connection, now: float) -> dict[str, Any]:
    def rows(statement: str, *values: object) -> list[dict[str, Any]]:
        return [dict(row) for row in connection.execute(statement, values)]

    journal = rows("SELECT COALESCE(MAX(round), 0) AS round, COALESCE(SUM(LENGTH(entry)), 0) AS bytes FROM journal")[0]
    last = rows("SELECT * FROM history ORDER BY round DESC LIMIT ?", RECENT)
    opened = rows("SELECT round, cohort FROM open_round")
    answered = rows("SELECT COUNT(*) AS results FROM results")[0]["results"]
    records = read_records(connection)
    conducts = read_conduct(connection)
    devices = [
        {
            "name": row["name"],
            "round": max(row["round"], row["served"]),
            "behind": journal["round"] - max(row["round"], row["served"]),
            "heard": now - row["seen"],
            **{name: row[name] for name in ("results", "examples", "battery", "bytes_up", "bytes_down")},
            "charging": bool(row["charging"]),
            "joules_a_round": (row["measured_joules"] + row["estimated_joules"]) / row["joules_results"]
            if row["joules_results"]
            else None,
            "joules_estimated": row["estimated_joules"] > 0,
            **_conduct(conducts.get(row["name"], Conduct())),
        }
        for row in rows("SELECT * FROM devices ORDER BY name")
    ]
    evaluations = read_evaluations(connection)
    best = best_of(evaluations)
    job, settings = rows("SELECT name FROM job"), read_settings(connection.execute)
    return {
        "job": job[0]["name"] if job else None,
        "round": journal["round"],
        "rounds": settings.rounds if settings else None,
        "journal_bytes": journal["bytes"],
        "state": run_state(read_changes(connection)),
        "open": {
            "round": opened[0]["round"], "asked": len(opened[0]["cohort"].split()), "results": answered,
        } if opened else None,
        "recent": {
            "rounds": len(last),
            "loss": sum(row["loss"] for row in last) / len(last),
            "results": sum(len(row["devices"].split()) for row in last) / len(last),
            "seconds": sum(row["seconds"] for row in last) / len(last),
            "energy": _spending(last),
        } if last else None,
        "evaluated": {
            "best": best.record(), "last": Evaluated(max(evaluations), evaluations[max(evaluations)]).record(),
        } if best else None,
        "closed_ago": now - last[0]["closed"] if last else None,
        "counts": {row["name"]: row["count"] for row in rows("SELECT * FROM counts")},
        "devices": devices,
        "blocked": read_blocked(connection),
        "asking": [row["name"] for row in rows("SELECT name FROM enrolled WHERE state = ? ORDER BY asked", ASKED)],
        "unusual": [
            {"name": device, "reason": record.reason, "large": record.large, "contrary": record.contrary,
             "noted": record.noted, "accused": record.accused, "expelled": record.expelled,
             "grouped": record.grouped}
            for device, record in sorted(records.items()) if record.reason
        ],
    }  # fmt: skip


def _conduct(conduct: Conduct) -> dict[str, Any]:
    return {
        "version": conduct.version or None,
        "can": conduct.can.split(),
        "copies": conduct.copies,
        "floods": conduct.floods,
        "cut_off": conduct.cut_off,
    }


def _spending(rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Joules of a round of a device, on average over those that reported."""
    told = [row for row in rows if row["joules_devices"]]
    if not told:
        return None
    devices = sum(row["joules_devices"] for row in told)
    return {
        "joules_a_device": sum(row["joules"] for row in told) / devices,
        "uncertainty": sum(row["joules_uncertainty"] for row in told) / devices,
        "devices": devices / len(told),
        "estimated": sum(row["joules_estimated"] for row in told) / devices,
    }
