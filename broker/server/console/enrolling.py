"""Invitations for many devices on the console, and the devices that ask to take part by one."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from fedspzo.broker.server.enrolment.invitations import (
    decide,
    invite,
    read_askers,
    read_offers,
    take_back,
    write_invitation,
)
from fedspzo.broker.server.enrolment.requests import BrokerLogins
from fedspzo.device_runtime.errors import EnrolmentError
from fedspzo.device_runtime.log import several
from fedspzo.device_runtime.protocol.enrolment import ASKED

log = logging.getLogger(__name__)

#: Devices that are listed of those that ask.
LISTED = 50


class Enrolling:
    """Makes invitations, takes them back, and decides which devices they let in; any thread may call."""

    def __init__(self, folder: Path, logins: BrokerLogins | None, broker: Path | None, url: Callable[[], str]) -> None:
        """Describe what there is to invite to.

        Args:
            logins, broker: see :class:`fedspzo.broker.server.server.Server`.
            url: how devices reach the server's HTTP endpoint.
        """
        self._folder, self._logins, self._broker, self._url = folder, logins, broker, url

    @property
    def lacks(self) -> str:
        """Options that the server must be started with before it can make invitations; "" where it can."""
        wanted = []
        if self._logins is None or self._broker is None:
            wanted.append("--cut-off and the state folder of the broker, on the broker's machine")
        if not self._url().startswith("https://"):
            wanted.append("--http-certificate and --http-key, so that nobody else can read what devices send")
        return "; and with ".join(wanted)

    def invite(self, who: str, name: str, uses: int, seconds: float, group: str, waits: bool) -> dict[str, Any]:
        """Make an invitation, see :func:`fedspzo.broker.server.enrolment.invitations.invite`.

        Returns:
            text: what its file has; it can be had only now.
            certified: whether its devices need certificates too, before their results are summed.

        Raises:
            FedSPZOError: something is wrong with it, or the server cannot make any; then nothing is changed.
        """
        options = self.lacks
        if options or self._logins is None or self._broker is None:
            raise EnrolmentError(
                "enrolment.cannot-invite", f"this server cannot make invitations; start it with {options}"
            )
        access = self._logins.access(self._broker)
        make = partial(invite, self._folder, name, uses, seconds, self._broker, group, waits, who)
        text, certified = write_invitation(self._folder, access, self._url(), make)
        log.info("'%s' has made the invitation '%s' for %s", who, name, several(uses, "device"))
        return {"text": f"{text}\n", "certified": certified}

    def take_back(self, who: str, name: str) -> None:
        """End an invitation. Raises FedSPZOError where there is no such invitation."""
        take_back(self._folder, name, who)
        log.info("'%s' has taken the invitation '%s' back", who, name)

    def decide(self, who: str, names: Sequence[str], admit: bool) -> None:
        """Admit devices that ask, or refuse them. Raises FedSPZOError where one does not ask; then nothing changes."""
        decide(self._folder, names, admit, who)
        log.info("'%s' %s %s", who, "admits" if admit else "refuses", several(len(names), "device"))


def enrolment_stamp(connection: sqlite3.Connection) -> str:
    """What changes with the invitations, and with the devices that ask: who asks uses one."""
    (used,) = connection.execute("SELECT TOTAL(used) FROM invitations").fetchone()
    (changes,) = connection.execute("SELECT MAX(number) FROM device_changes").fetchone()
    return f"{used} {changes}"


def read_enrolment(connection: sqlite3.Connection) -> dict[str, Any]:
    """The invitations that there are, how many devices ask to take part, and the first of these."""
    (asking,) = connection.execute("SELECT COUNT(*) FROM enrolled WHERE state = ?", (ASKED,)).fetchone()
    return {
        "invitations": [
            {name: value for name, value in asdict(offer).items() if name != "broker"}
            for _, offer in read_offers(connection)
        ],
        "asking": asking,
        "askers": [{**asdict(asker), "key": asker.key.hex()} for asker in read_askers(connection, ASKED, LISTED)],
    }
