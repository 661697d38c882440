"""Invitations for many devices, and who asks to take part by one: what an operator makes, looks at and decides.

All of it is in the server's file, so that a backup has it; of a token only the hash. The server may run meanwhile. It
takes devices' requests in :mod:`fedspzo.broker.server.enrolment.requests`.
"""

from __future__ import annotations

import secrets
import sqlite3
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedspzo.broker.server.device_changes import note, note_invitation
from fedspzo.broker.server.devices import MAX_DEVICES
from fedspzo.broker.server.state_folder import BUNDLE, changing, open_database, reading
from fedspzo.device_runtime.device.enrolment import check_place
from fedspzo.device_runtime.errors import EnrolmentError, StateError
from fedspzo.device_runtime.link.access import Access
from fedspzo.device_runtime.link.invitation import Invitation
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.protocol.enrolment import ADMITTED, ASKED, digest
from fedspzo.device_runtime.protocol.topics import valid_id

#: A device that the operator has refused.
REFUSED = "refused"
#: Seconds that an invitation may last.
LONGEST_S = 366 * 86400.0
#: Whose doing it is where nobody has logged in.
INVITE, ADMIT = "fedspzo invite", "fedspzo admit"


@dataclass(frozen=True)
class Offer:
    """An invitation for many, as the server has it.

    Attributes:
        name: by which the operator knows it.
        uses, used: devices that may ask by it, and that have.
        expires: Unix time.
        group: that its devices get, "" for none.
        waits: whether a person admits each device.
        broker: state folder of the broker, where the server makes the logins.
    """

    name: str
    uses: int
    used: int
    expires: float
    group: str
    waits: bool
    broker: Path


@dataclass(frozen=True)
class Asker:
    """A device that has asked by an invitation.

    Attributes:
        name, key: its id and its public key.
        invitation, group: by which, and what group that gives.
        state: ``ASKED``, ``ADMITTED`` or ``REFUSED``.
        asked: when it asked first, as Unix time.
    """

    name: str
    key: bytes
    invitation: str
    group: str
    state: str
    asked: float


def job_of(folder: Path) -> tuple[str, bool]:
    """The job of a server's state folder, and whether its bundle names an enrolment key.

    Raises:
        StateError: not a server's folder, or its server has never run.
        BundleError: its bundle cannot be read.
    """
    with open_database(folder) as connection:
        row = connection.execute("SELECT name FROM job").fetchone()
    if row is None:
        raise StateError("state.no-job", f"{folder} has no job yet; start its server first")
    return row[0], bool(Bundle(folder / BUNDLE).manifest.enrolment_key) if (folder / BUNDLE).exists() else False


def invite(
    folder: Path,
    name: str,
    uses: int,
    seconds: float,
    broker: Path,
    group: str = "",
    waits: bool = False,
    who: str = INVITE,
) -> str:
    """Make an invitation in a server's state folder; returns its token, which nobody can read there.

    Args:
        who: whose doing it is; the others are those of :class:`Offer`.

    Raises:
        StateError: not a server's folder, or the disk refuses.
        EnrolmentError: the name is taken, or something is out of range.
    """
    for what, given in (("name", name), ("group", group or "none")):
        if not valid_id(given):
            raise EnrolmentError(
                "enrolment.invitation-name",
                f"'{given}' cannot be an invitation's {what}; use up to 64 letters, digits, '-' and '_'",
            )
    if not (1 <= uses <= MAX_DEVICES and 0 < seconds <= LONGEST_S):
        raise EnrolmentError(
            "enrolment.invitation-range",
            f"an invitation is for 1 to {MAX_DEVICES:,} devices, and for a year at most; give less",
        )
    token = secrets.token_urlsafe(32)
    with changing(folder) as execute:
        if execute("SELECT 1 FROM invitations WHERE name = ?", (name,)).fetchone():
            raise EnrolmentError(
                "enrolment.invitation-taken",
                f"there is an invitation '{name}' already; choose another name, or take it back with fedspzo invite"
                f" {folder} {name} --remove",
            )
        execute(
            "INSERT INTO invitations VALUES (?, ?, ?, 0, ?, ?, ?, ?)",
            (name, digest(token), uses, time.time() + seconds, group, waits, str(broker.resolve())),
        )
        note_invitation(execute, who, None, name)
    return token


def write_invitation(folder: Path, access: Access, url: str, make: Callable[[], str]) -> tuple[str, bool]:
    """Make an invitation as devices take it: a line of text, which can be had only now.

    Args:
        access: how devices reach the broker, without a login.
        url: how devices reach the server's HTTP endpoint.
        make: gives the token, see :func:`invite`; called once all else is right.

    Returns:
        The line, and whether the bundle names an enrolment key, so that devices need certificates, too.

    Raises:
        DownloadError: the URL or the authority is of no use.
        StateError, BundleError, EnrolmentError: as :func:`job_of`, or the token could be read on its way.
    """
    job, certified = job_of(folder)
    check_place(Invitation(access, job, url, "none yet"))
    return Invitation(access, job, url, make()).text(), certified


def take_back(folder: Path, name: str, who: str = INVITE) -> None:
    """End an invitation; the devices that it has let in stay.

    Raises:
        StateError: not a server's folder, or the disk refuses.
        EnrolmentError: there is no such invitation.
    """
    with changing(folder) as execute:
        if not execute("DELETE FROM invitations WHERE name = ?", (name,)).rowcount:
            raise EnrolmentError(
                "enrolment.no-invitation", f"there is no invitation '{name}'; fedspzo invite {folder} lists them"
            )
        note_invitation(execute, who, name, None)


def list_offers(folder: Path) -> list[Offer]:
    """All invitations by their names. Raises StateError for a folder that is not a server's."""
    with reading(folder) as connection:
        return [offer for _, offer in read_offers(connection)]


def list_askers(folder: Path, state: str = ASKED) -> list[Asker]:
    """Devices that have asked and are in a state, the first one first. Raises StateError as :func:`list_offers`."""
    with reading(folder) as connection:
        return read_askers(connection, state)


def decide(folder: Path, names: Sequence[str], admit: bool, who: str = ADMIT) -> None:
    """Admit devices that have asked, or refuse them; each hears of it when it asks again, within half a minute.

    One that was refused can be admitted later. One that is in can only be blocked.

    Raises:
        StateError: not a server's folder, or the disk refuses.
        EnrolmentError: a name is not of a device that this can be decided of; then nothing has changed.
    """
    state = ADMITTED if admit else REFUSED
    changed: defaultdict[str, list[str]] = defaultdict(list)
    with changing(folder) as execute:
        for name in names:
            row = execute("SELECT state FROM enrolled WHERE name = ?", (name,)).fetchone()
            if row is None:
                raise EnrolmentError(
                    "enrolment.not-asking",
                    f"'{name}' has not asked to take part; fedspzo admit {folder} lists those that have",
                )
            if row[0] == ADMITTED and not admit:
                raise EnrolmentError(
                    "enrolment.takes-part",
                    f"'{name}' takes part already; send it away with fedspzo block {folder} {name}",
                )
            if row[0] != state:
                execute("UPDATE enrolled SET state = ? WHERE name = ?", (state, name))
                changed[row[0]].append(name)
        for old, devices in changed.items():
            note(execute, who, "request", old, state, devices)


def read_offers(connection: sqlite3.Connection) -> list[tuple[bytes, Offer]]:
    """All invitations of a server's file by their names, each after the hash of its token."""
    rows = connection.execute(
        'SELECT hash, name, uses, used, expires, "group", waits, broker FROM invitations ORDER BY name'
    ).fetchall()
    return [
        (hashed, Offer(name, uses, used, expires, group, bool(waits), Path(broker)))
        for hashed, name, uses, used, expires, group, waits, broker in rows
    ]


def read_askers(connection: sqlite3.Connection, state: str, most: int = -1) -> list[Asker]:
    """Devices of a server's file that have asked and are in a state, the first one first; ``most`` of them, or all."""
    columns = 'name, key, invitation, "group", state, asked'
    rows = connection.execute(
        f"SELECT {columns} FROM enrolled WHERE state = ? ORDER BY asked, name LIMIT ?", (state, most)
    )
    return [Asker(*row) for row in rows]
