"""What the console shows of one job: its state folder, and its running server where there is one."""

from __future__ import annotations

import json
import shutil
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fedspzo.broker.privacy.accounting import Spent
from fedspzo.broker.rounds.job import Job
from fedspzo.broker.rounds.private import NO_PRIVACY
from fedspzo.broker.server.backup import last_backup
from fedspzo.broker.server.console.curves import read_curves
from fedspzo.broker.server.console.device_rows import Known, Search, read_devices, read_names
from fedspzo.broker.server.console.enrolling import enrolment_stamp, read_enrolment
from fedspzo.broker.server.console.running import Running
from fedspzo.broker.server.controls import CHANGES, LAST_CHANGES, read_changes, read_settings, run_state
from fedspzo.broker.server.device_changes import read_device_changes
from fedspzo.broker.server.enrolment.invitations import read_askers
from fedspzo.broker.server.evaluation import Evaluated
from fedspzo.broker.server.held_out import best_of, read_evaluations
from fedspzo.broker.server.labels import read_labels
from fedspzo.broker.server.state_folder import DATABASE, SNAPSHOTS, list_snapshots, open_to_read, unreadable
from fedspzo.broker.server.upkeep import certificate_end
from fedspzo.device_runtime.privacy.budget import epsilon
from fedspzo.device_runtime.protocol.codec import decode
from fedspzo.device_runtime.protocol.enrolment import ASKED
from fedspzo.device_runtime.protocol.entry import Entry

#: Devices that are named because something about them is unusual.
NAMED = 100


class JobView:
    """Reads one job; all methods may be called by any thread.

    Attributes:
        folder: its state folder.
        running: its server; None where the folder alone is shown.
    """

    def __init__(self, folder: Path, running: Running | None = None) -> None:
        """Raises StateError when the folder is not a server's or a simulation's."""
        self.folder, self.running = folder, running
        self._file = folder / DATABASE
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._inode = 0
        self._journal_bytes = self._summed_to = 0
        self._spent: Spent | None = None
        self._spent_to = 0
        self._best_of: tuple[str, Evaluated | None] = ("", None)
        self._treated_to: tuple[int | None, Mapping[str, Any]] = (None, {"device_changes": [], "labels": []})
        with self._connected() as connection:
            row = connection.execute("SELECT name FROM job").fetchone()
        self.name: str = row[0] if row else "default"

    def summary(self) -> dict[str, Any]:
        """The job in one line."""
        with self._connected() as connection:
            last = connection.execute("SELECT round, loss, closed FROM history ORDER BY round DESC LIMIT 1").fetchone()
            job, changes, best = read_settings(connection.execute), read_changes(connection), self._best(connection)
        round, loss, closed = last or (0, None, None)
        return {
            "name": self.name,
            "folder": str(self.folder),
            "live": self.running is not None,
            "round": round,
            "rounds": job.rounds if job else None,
            "loss": loss,
            "closed": closed,
            "state": run_state(changes),
            "best": best.record() if best else None,
        }

    def state(self, after: int) -> dict[str, Any]:
        """Everything but the devices; curves of the rounds after one. Raises StateError when the disk refuses."""
        now, running = time.time(), self.running
        live = running.window.round_now() if running else None
        with self._connected() as connection:
            connection.execute("BEGIN")  # all of it as it is at one moment
            job, changes = read_settings(connection.execute), read_changes(connection)
            last = _last_round(connection)
            best = self._best(connection)
            return {
                "name": self.name,
                "folder": str(self.folder),
                "time": now,
                "live": live is not None,
                "round": last,
                "rounds": job.rounds if job else None,
                "state": run_state(changes),
                "now": asdict(live) if live else self._open_round(connection),
                "curves": read_curves(connection, after and after + 1, last),
                "best": best.record() if best else None,
                "evaluations": _stamp(connection),
                "counts": dict(connection.execute("SELECT name, count FROM counts").fetchall()),
                "fleet": self._fleet(connection),
                "privacy": self._privacy(connection, job),
                "disk": self._disk(connection),
                "certificate_end": certificate_end(running.certificate) if running and running.certificate else None,
                "backup": asdict(found) if (found := last_backup(connection)) else None,
                "backing_up": running.backups.now() if running else None,
                "cuts_off": running.devices.cuts_off if running else False,
                "groups": running.window.groups() if running else [],
                "log": running.log.stamp if running else None,
                "enrolment": enrolment_stamp(connection),
                "settings": _in_force(job, changes),
                "changes": [asdict(change) for change in changes[: -LAST_CHANGES - 1 : -1]],
                **self._treated(connection),
            }

    def curves(self, first: int, last: int) -> dict[str, Any]:
        """See :func:`fedspzo.broker.server.console.curves.read_curves`."""
        with self._connected() as connection:
            return read_curves(connection, first, last)

    def devices(self, **asked: Any) -> dict[str, Any]:
        """See :func:`fedspzo.broker.server.console.device_rows.read_devices`."""
        with self._connected() as connection:
            return read_devices(connection, self._known(connection), time.time(), **asked)

    def names(self, search: Search) -> list[str]:
        """See :func:`fedspzo.broker.server.console.device_rows.read_names`."""
        with self._connected() as connection:
            return read_names(connection, self._known(connection), search)

    def enrolment(self) -> dict[str, Any]:
        """See :func:`fedspzo.broker.server.console.enrolling.read_enrolment`."""
        with self._connected() as connection:
            return read_enrolment(connection)

    def askers(self) -> list[str]:
        """The names of all devices that ask to take part."""
        with self._connected() as connection:
            return [asker.name for asker in read_askers(connection, ASKED)]

    def log(self) -> list[dict[str, Any]] | None:
        """The last lines of the server's log; None where no server runs."""
        return self.running.log.lines() if self.running else None

    def _known(self, connection: sqlite3.Connection) -> Known:
        last = _last_round(connection)
        window = self.running.window if self.running else None
        return Known(last, window.device_state, window.group_of) if window else Known(last)

    @contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        """The file, for one thread at a time; it stays open, since SQLite reads the schema whenever it opens one."""
        try:
            with self._lock:
                if self._connection is None or self._file.stat().st_ino != self._inode:
                    self._connection, self._inode = open_to_read(self.folder), self._file.stat().st_ino
                try:
                    yield self._connection
                finally:
                    self._connection.rollback()  # a reader would keep the journal of SQLite from being cut
        except (sqlite3.Error, OSError) as error:
            raise unreadable(self._file, error) from None

    def _best(self, connection: sqlite3.Connection) -> Evaluated | None:
        """The best evaluation, looked for again where some came or went."""
        if (stamp := _stamp(connection)) != self._best_of[0]:
            self._best_of = stamp, best_of(read_evaluations(connection))
        return self._best_of[1]

    def _treated(self, connection: sqlite3.Connection) -> Mapping[str, Any]:
        """The last changes of devices, and the labels that there are, read again where a change came."""
        last = connection.execute("SELECT MAX(number) FROM device_changes").fetchone()[0]
        if last != self._treated_to[0]:
            changes = [asdict(change) for change in read_device_changes(connection, LAST_CHANGES)]
            self._treated_to = last, {"device_changes": changes, "labels": read_labels(connection)}
        return self._treated_to[1]

    def _open_round(self, connection: sqlite3.Connection) -> dict[str, Any] | None:
        """The open round as the file has it: who declined is not written down."""
        row = connection.execute("SELECT round, cohort FROM open_round").fetchone()
        if row is None:
            return None
        answered = {name for (name,) in connection.execute("SELECT device FROM results WHERE round = ?", row[:1])}
        waiting = [device for device in row[1].split() if device not in answered]
        return {
            "round": row[0], "asked": len(row[1].split()), "answered": len(answered), "waiting": len(waiting),
            "waiting_for": waiting[:NAMED],
        }  # fmt: skip

    def _fleet(self, connection: sqlite3.Connection) -> dict[str, Any]:
        """Sums over all devices."""
        known, up, down, measured, estimated = connection.execute(
            "SELECT COUNT(*), TOTAL(bytes_up), TOTAL(bytes_down), TOTAL(measured_joules), TOTAL(estimated_joules)"
            " FROM devices"
        ).fetchone()
        return {"known": known, "up": up, "down": down, "measured": measured, "estimated": estimated}

    def _privacy(self, connection: sqlite3.Connection, job: Job | None) -> dict[str, Any] | None:
        """What the rounds so far have cost of the job's privacy budget; None where it has none."""
        if job is None or job.privacy == NO_PRIVACY:
            return None
        if self._spent is None or self._spent.unit != job.privacy:
            self._spent, self._spent_to = Spent(job, ()), 0
        rows = connection.execute(
            "SELECT round, CAST(entry AS BLOB) FROM journal WHERE round > ? ORDER BY round", (self._spent_to,)
        )
        for number, encoded in rows:
            entry = decode(encoded)
            if isinstance(entry, Entry):
                self._spent.follow(entry)
            self._spent_to = number
        return {
            "epsilon": epsilon(self._spent.rho, job.delta),
            "budget": job.privacy_budget,
            "delta": job.delta,
            "open_rounds": self._spent.open_rounds,
        }

    def _disk(self, connection: sqlite3.Connection) -> dict[str, Any]:
        """Bytes of the journal's entries, of files, and of the disk."""
        more, last = connection.execute(
            "SELECT TOTAL(LENGTH(entry)), MAX(round) FROM journal WHERE round > ?", (self._summed_to,)
        ).fetchone()
        self._journal_bytes, self._summed_to = self._journal_bytes + int(more), last or self._summed_to
        usage = shutil.disk_usage(self.folder)
        files = [self.folder / name for name in (DATABASE, f"{DATABASE}-wal")]
        return {
            "journal": self._journal_bytes,
            "database": sum(_size(file) for file in files),
            "snapshots": sum(_size(file) for file in list_snapshots(self.folder / SNAPSHOTS)),
            "free": usage.free,
            "total": usage.total,
        }


def _in_force(job: Job | None, changes: Any) -> Mapping[str, Any] | None:
    """The settings that can be changed, as the next plan has them."""
    if job is None:
        return None
    found = {name: getattr(job, name) for name in CHANGES}
    found.update({change.name: json.loads(change.new) for change in changes if change.name in CHANGES})
    return found


def _last_round(connection: sqlite3.Connection) -> int:
    """The last closed round. A run by backpropagation has no journal."""
    rounds = (connection.execute(f"SELECT MAX(round) FROM {table}").fetchone()[0] for table in ("journal", "history"))
    return max(found or 0 for found in rounds)


def _stamp(connection: sqlite3.Connection) -> str:
    """What changes with the evaluations."""
    return "{} {} {}".format(
        *connection.execute("SELECT COUNT(*), MAX(round), TOTAL(loss) FROM evaluations").fetchone()
    )


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except FileNotFoundError:  # between listing and looking
        return 0
