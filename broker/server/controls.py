"""What an operator has changed of a job that runs: who, when, from what to what, and from which round on.

Changes are rows of the server's file. The plan of a round follows from the job that the server was started with and the
changes up to that round, so that a server that is started again continues as it stood.
"""

from __future__ import annotations

import json
import logging
import sqlite3
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as TooLate
from dataclasses import asdict, dataclass, field, fields, replace
from functools import lru_cache
from typing import Any

from fedspzo.broker.rounds.job import Job
from fedspzo.broker.server.schema import Execute
from fedspzo.broker.server.store import ServerStore
from fedspzo.device_runtime.errors import FedSPZOError, PlanError
from fedspzo.device_runtime.log import printable

log = logging.getLogger(__name__)

#: Settings of a job that can be changed while it runs.
CHANGES = ("cohort", "deadline", "learning_rates")
#: The name of what is no setting, and what it may be: rounds are opened, or not now, or not any more.
STATE = "state"
STATES = RUNNING, PAUSED, ENDED = ("running", "paused", "ended")
#: Changes that are shown.
LAST_CHANGES = 50
#: Seconds that whoever asks for a change waits for the server.
ANSWER_S = 10.0


@dataclass(frozen=True)
class Change:
    """A change that was made.

    Attributes:
        at: Unix time.
        who: the name of a login.
        name: one of :data:`CHANGES`, or :data:`STATE`.
        old, new: as JSON.
        round: the first whose plan has it.
    """

    at: float
    who: str
    name: str
    old: str
    new: str
    round: int


@dataclass
class Wish:
    """A change that somebody asks for, on the way to the server's thread.

    Attributes:
        done: when it is on disk, or refused.
    """

    who: str
    name: str
    value: object
    done: Future[None] = field(default_factory=Future)

    def wait(self) -> None:
        """Wait until it is on disk.

        Raises:
            FedSPZOError: it was refused, or the server does not answer.
        """
        try:
            self.done.result(ANSWER_S)
        except TooLate:
            raise PlanError(
                "job.change-unanswered",
                f"the server has not answered for {ANSWER_S:g} s; see its log, and look whether it was changed",
            ) from None


class Controls:
    """The changes of one job; the server's thread makes them."""

    def __init__(self, store: ServerStore, job: Job, check: Callable[[Job], Job]) -> None:
        """Read what the store has, and keep the job in it.

        Args:
            job: as the server was started.
            check: raises FedSPZOError for a job that cannot run.

        Raises:
            PlanError: the job and what was changed earlier do not fit.
        """
        self._store, self._job, self._check = store, job, check
        self._changes = store_job(store, job)
        self._answers: list[Callable[[], None]] = []
        if not self._changes:
            return
        try:
            _apply(job, self._changes)
        except PlanError as error:
            raise PlanError(
                "job.changes-do-not-fit",
                f"what was changed on the console does not fit the server's options ({error}); start it with the"
                " options that it had, and change the job on its console",
            ) from None
        kept = {change.name: change.new for change in self._changes}
        log.info("what was changed on the console stays: %s", ", ".join(f"{name} {new}" for name, new in kept.items()))

    def job(self, round: int) -> Job:
        """The job as it is in a round."""
        return _apply(self._job, self._until(round))

    def state(self, round: int) -> str:
        """One of :data:`STATES`, as it is before a round."""
        return run_state(self._until(round))

    def take(self, wish: Wish, round: int) -> None:
        """Write a change down, or refuse it; whoever waits hears of it after :meth:`tell`.

        Args:
            round: the next whose plan is not made yet.
        """
        try:
            change = self._make(wish, round)
        except FedSPZOError as error:
            wish.done.set_exception(error)
            return
        if change is not None:
            with self._store.transaction() as execute:
                execute(
                    "INSERT INTO changes (at, who, name, old, new, round) VALUES (?, ?, ?, ?, ?, ?)",
                    tuple(asdict(change).values()),
                )
            self._changes.append(change)
            log.info("'%s' changes %s from %s to %s", change.who, change.name, change.old, change.new)
        self._answers.append(lambda: wish.done.set_result(None))

    def tell(self) -> None:
        """Tell those who wait that their changes are on disk."""
        while self._answers:
            self._answers.pop()()

    def _make(self, wish: Wish, round: int) -> Change | None:
        """The change that a wish asks for; None where it is so already."""
        who = printable(wish.who, 64)
        if wish.name == STATE:
            old: object = self.state(round)
            new = wish.value
            if new not in STATES:
                raise PlanError("job.unknown-choice", f"state is one of {', '.join(STATES)}, not {new!r}")
        elif wish.name in CHANGES:
            old = getattr(self.job(round), wish.name)
            candidate = Change(0.0, who, wish.name, "", json.dumps(wish.value), round)
            changed = self._check(_apply(self._job, [*self._until(round), candidate]))
            new = getattr(changed, wish.name)
        else:
            names = ", ".join((*CHANGES, STATE))
            raise PlanError("job.cannot-change", f"'{wish.name}' cannot be changed while a job runs; {names} can")
        if new == old:
            return None
        return Change(time.time(), who, wish.name, json.dumps(old), json.dumps(new), round)

    def _until(self, round: int) -> list[Change]:
        return [change for change in self._changes if change.round <= round]


def run_state(changes: Sequence[Change]) -> str:
    """One of :data:`STATES`, as it is after some changes."""
    found = [change.new for change in changes if change.name == STATE]
    return str(json.loads(found[-1])) if found else RUNNING


def store_job(store: ServerStore, job: Job) -> list[Change]:
    """Keep a job's settings in its store, for whoever looks into the folder; returns what was changed of the job."""
    with store.transaction() as execute:
        execute("INSERT OR REPLACE INTO settings VALUES (1, ?)", (json.dumps(asdict(job)),))
        return _rows(execute(_SELECT))


def read_settings(execute: Execute) -> Job | None:
    """The job that a server or simulation was last started with; None where this version cannot read it."""
    row = execute("SELECT job FROM settings").fetchone()
    return _parse_settings(row[0]) if row else None


@lru_cache(maxsize=64)
def _parse_settings(text: str) -> Job | None:
    known = {each.name for each in fields(Job)}
    try:
        return Job(**{name: value for name, value in json.loads(text).items() if name in known})
    except (PlanError, ValueError, AttributeError):
        return None


def read_changes(connection: sqlite3.Connection) -> list[Change]:
    """All changes, the first one first."""
    return _rows(connection.execute(_SELECT))


_SELECT = "SELECT at, who, name, old, new, round FROM changes ORDER BY number"


def _rows(cursor: sqlite3.Cursor) -> list[Change]:
    return [Change(*row) for row in cursor.fetchall()]


def _apply(job: Job, changes: Sequence[Change]) -> Job:
    """A job with changes. Raises PlanError when one does not fit."""
    values: dict[str, Any] = {change.name: json.loads(change.new) for change in changes if change.name in CHANGES}
    if "cohort" in values:
        # What the cohort decides follows it, except the mode: who sees what is no matter of a number.
        values["mode"] = job.runs_as
        if job.quorum == replace(job, quorum=0).quorum:
            values["quorum"] = 0
    return replace(job, **values) if values else job
