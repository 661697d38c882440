"""Devices enrol by an invitation for many: a running server takes their requests, and makes their logins at the broker.

What arrives together is done together, on a thread of its own: one transaction, one change of the broker's files. A row
of the server's file comes first, then the login, then the answer. If the server is killed in between, the device asks
again and gets the same: its row is there, and its password follows from its key. Nothing must be put right at a start.
"""

from __future__ import annotations

import hmac
import logging
import queue
import sqlite3
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Protocol

from fedspzo.broker.server.admission import Admission
from fedspzo.broker.server.enrolment.invitations import REFUSED, Offer, read_offers
from fedspzo.broker.server.enrolment.tokens import Tries, find_offer
from fedspzo.broker.server.schema import writing
from fedspzo.broker.server.shared.file import open_file
from fedspzo.broker.server.state_folder import DATABASE
from fedspzo.device_runtime.errors import BrokerError, EnrolmentError, FedSPZOError
from fedspzo.device_runtime.link.access import Access
from fedspzo.device_runtime.log import RateLimitedLog, printable
from fedspzo.device_runtime.protocol.enrolment import ADMITTED, ASKED, Request, digest
from fedspzo.device_runtime.protocol.topics import valid_id

log = logging.getLogger(__name__)

#: Requests that are done together, and that wait at most.
TOGETHER, MOST_WAITING = 256, 1024


class BrokerLogins(Protocol):
    """Makes devices' logins at brokers, which are known by their state folders."""

    def access(self, broker: Path) -> Access:
        """How devices reach a broker, without a login. Raises BrokerError where there is no broker."""

    def check(self, name: str) -> None:
        """Raise BrokerError when no device can have a name."""

    def known(self, broker: Path) -> Collection[str]:
        """Names that have a login."""

    def give(self, broker: Path, passwords: Mapping[str, str], job: str) -> None:
        """Have a broker know devices by their passwords, for a job's topics alone. Raises BrokerError if it cannot."""


@dataclass(frozen=True)
class _Asked:
    """A request on its way, and where its answer goes."""

    request: Request
    address: str
    answer: Future[str] = field(default_factory=Future)


@dataclass(frozen=True)
class _Row:
    """What the server's file has of a device that has asked."""

    name: str
    state: str
    broker: Path
    login: bytes | None


class Enrolment:
    """Takes requests for one job; a context manager. Any thread may call :meth:`submit`."""

    def __init__(self, folder: Path, job: str, logins: BrokerLogins, admission: Admission | None = None) -> None:
        """Start the thread.

        Args:
            folder: the server's state folder.
            logins: makes the devices' logins, on this thread.
            admission: the operator's list, whose names belong to the keys there.

        Raises:
            StateError: the folder's file cannot be used.
        """
        self._file, self._job, self._logins, self._admission = folder / DATABASE, job, logins, admission
        self._tries = Tries()
        self._warnings = RateLimitedLog(log)
        self._waiting: queue.Queue[_Asked | None] = queue.Queue(MOST_WAITING)
        self._connection = open_file(self._file)
        self._thread = threading.Thread(target=self._run, name="enrolment", daemon=True)
        self._thread.start()

    def __enter__(self) -> Enrolment:
        return self

    def __exit__(self, *_: object) -> None:
        self._waiting.put(None)
        self._thread.join()

    def submit(self, body: bytes, address: str) -> Future[str]:
        """Take an address's request; the future has ``ADMITTED`` or ``ASKED``, or raises EnrolmentError.

        Raises:
            EnrolmentError: it is no request, or too many wait.
        """
        asked = _Asked(Request.parse(body), address)
        try:
            self._waiting.put_nowait(asked)
        except queue.Full:
            raise EnrolmentError(
                "enrolment.busy", "too many devices ask at this moment; ask again in a minute"
            ) from None
        return asked.answer

    def _run(self) -> None:
        with closing(self._connection):
            while (first := self._waiting.get()) is not None:
                batch = [first]
                while len(batch) < TOGETHER and not self._waiting.empty():
                    if (asked := self._waiting.get()) is None:
                        self._waiting.put(None)  # after these
                        break
                    batch.append(asked)
                batch = [asked for asked in batch if asked.answer.set_running_or_notify_cancel()]
                try:
                    self._serve(batch)
                except Exception as error:
                    self._fail([asked for asked in batch if not asked.answer.done()], error)

    def _fail(self, batch: Sequence[_Asked], error: Exception) -> None:
        """Answer requests that cannot be served: whatever it is, each device has to hear something."""
        known = isinstance(error, (FedSPZOError, OSError, sqlite3.Error))
        log.error(
            "devices cannot be enrolled: %s", error, exc_info=None if known else error,
            extra={"kind": getattr(error, "kind", "")},
        )  # fmt: skip
        refusal = EnrolmentError(
            "enrolment.unable",
            "the server cannot enrol devices at this moment, and its log says why; tell its operator, and ask again",
        )
        for asked in batch:
            asked.answer.set_exception(refusal)

    def _serve(self, batch: Sequence[_Asked]) -> None:
        """Answer requests that have come together."""
        offers, known = read_offers(self._connection), cache(self._logins.known)
        invited = [(asked, offer) for asked in batch if (offer := self._authenticate(asked, offers)) is not None]
        entered: list[tuple[_Asked, _Row]] = []
        with closing(self._connection.cursor()) as cursor, writing(self._connection, self._file):
            for asked, offer in invited:
                try:
                    entered.append((asked, self._enter(cursor, asked.request, offer, known)))
                except EnrolmentError as error:
                    self._refuse(asked, error)
                except (OSError, sqlite3.Error):
                    raise  # it is no request's fault
                except Exception as error:
                    self._fail([asked], error)
        self._make_logins([(asked.request, row) for asked, row in entered])
        for asked, row in entered:
            asked.answer.set_result(row.state)

    def _authenticate(self, asked: _Asked, offers: Sequence[tuple[bytes, Offer]]) -> Offer | None:
        """The invitation that a request has shown; None where it is refused: for its token, or for its signature."""
        offer = find_offer(offers, asked.request.token)
        try:
            self._tries.note(asked.address, right=offer is not None)
            if offer is None:
                raise EnrolmentError(
                    "enrolment.token", "this server has no such invitation, or it was taken back; ask for a new one"
                )
            asked.request.check(self._job)
        except EnrolmentError as error:
            self._refuse(asked, error)
            return None
        except Exception as error:
            self._fail([asked], error)
            return None
        return offer

    def _refuse(self, asked: _Asked, error: EnrolmentError) -> None:
        said = f"a request of {asked.address} to enrol '{printable(asked.request.name, 64)}' was refused: {error}"
        self._warnings.warn(asked.address, said, error.kind)
        asked.answer.set_exception(error)

    def _enter(
        self, cursor: sqlite3.Cursor, request: Request, offer: Offer, known: Callable[[Path], Collection[str]]
    ) -> _Row:
        """The row of a request's device, made where it is new. Raises EnrolmentError where it is refused."""
        if cursor.execute("SELECT 1 FROM blocked WHERE name = ? OR key = ?", (request.name, request.key)).fetchone():
            raise EnrolmentError("enrolment.blocked", "the operator has blocked this device; ask the operator")
        row = _find(cursor, request)
        if row is not None:
            if row.login is not None and row.name not in known(row.broker):
                raise EnrolmentError(
                    "enrolment.no-login",
                    f"the login of '{row.name}' was taken away; have the operator make a new one: fedspzo enroll",
                )
            return row
        found = cursor.execute("SELECT used FROM invitations WHERE name = ?", (offer.name,)).fetchone()
        if found is None or offer.expires <= time.time():
            raise EnrolmentError("enrolment.expired", "the invitation has expired; ask for a new one")
        if found[0] >= offer.uses:
            raise EnrolmentError(
                "enrolment.used-up", f"the invitation is used up by {offer.uses} devices; ask for a new one"
            )
        self._check_free(cursor, request, known(offer.broker))
        state = ASKED if offer.waits else ADMITTED
        cursor.execute(
            "INSERT INTO enrolled VALUES (?, ?, ?, ?, ?, ?, ?, NULL)",
            (request.name, request.key, offer.name, offer.group, state, time.time(), str(offer.broker)),
        )
        cursor.execute("UPDATE invitations SET used = used + 1 WHERE name = ?", (offer.name,))
        log.info("device '%s' %s by the invitation '%s'", request.name, _SAID[state], offer.name)
        return _Row(request.name, state, offer.broker, None)

    def _check_free(self, cursor: sqlite3.Cursor, request: Request, logins: Collection[str]) -> None:
        """Raise EnrolmentError unless a new device can have its name."""
        if not valid_id(request.name):
            raise EnrolmentError(
                "enrolment.name",
                f"'{printable(request.name, 64)}' cannot be a device's id; use up to 64 letters, digits, '-' and '_'",
            )
        try:
            self._logins.check(request.name)
        except BrokerError as error:
            raise EnrolmentError(error.kind, str(error)) from None
        owner = cursor.execute(
            "SELECT name FROM devices WHERE key = ? AND name != ?", (request.key, request.name)
        ).fetchone()
        if owner:
            raise _other_name(owner[0])
        listed = self._admission.key(request.name) if self._admission else None
        taken = listed not in (None, request.key) or request.name in logins
        taken = taken or bool(
            cursor.execute("SELECT 1 FROM enrolled WHERE name = ?", (request.name,)).fetchone()
            or cursor.execute(
                "SELECT 1 FROM devices WHERE name = ? AND key != ?", (request.name, request.key)
            ).fetchone()
        )
        if taken:
            raise EnrolmentError(
                "enrolment.name-taken",
                f"the id '{request.name}' is another device's; give this one a new state folder with another --id, or"
                " have the operator free it: fedspzo forget, and fedspzo enroll --remove",
            )

    def _make_logins(self, entered: Sequence[tuple[Request, _Row]]) -> None:
        """Have the brokers know those who are admitted and have no login yet, all at once."""
        wanted: dict[Path, dict[str, str]] = defaultdict(dict)
        for request, row in entered:
            if row.state == ADMITTED and row.login is None:
                wanted[row.broker][row.name] = request.password
        for folder, passwords in wanted.items():
            self._logins.give(folder, passwords, self._job)
            with writing(self._connection, self._file):
                self._connection.executemany(
                    "UPDATE enrolled SET login = ? WHERE name = ?",
                    [(digest(password), name) for name, password in passwords.items()],
                )


_SAID = {ADMITTED: "is admitted", ASKED: "asks to take part"}


def _find(cursor: sqlite3.Cursor, request: Request) -> _Row | None:
    """The row of a device that has asked before; None for a new one. Raises EnrolmentError where it is refused."""
    found = cursor.execute("SELECT name, state, broker, login FROM enrolled WHERE key = ?", (request.key,)).fetchone()
    if found is None:
        return None
    row = _Row(found[0], found[1], Path(found[2]), found[3])
    if row.name != request.name:
        raise _other_name(row.name)
    if row.state == REFUSED:
        raise EnrolmentError("enrolment.refused", "the operator has refused this device; ask the operator")
    if row.login is not None and not hmac.compare_digest(row.login, digest(request.password)):
        raise EnrolmentError(
            "enrolment.other-password",
            f"'{row.name}' has its login already, with another password; use the access file that it got",
        )
    return row


def _other_name(name: str) -> EnrolmentError:
    return EnrolmentError(
        "enrolment.other-name", f"this key is that of device '{name}'; give each device a state folder of its own"
    )
