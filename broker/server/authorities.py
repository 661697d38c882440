"""The authorities that a server trusts at its broker, by its access file; its devices are told to trust the same."""

from __future__ import annotations

import logging
import ssl
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from fedspzo.broker.server.devices import Member, Roster
from fedspzo.broker.server.member_tables import read_authorities
from fedspzo.broker.server.outbox import Outbox
from fedspzo.broker.server.state_folder import reading
from fedspzo.broker.server.store import ServerStore
from fedspzo.device_runtime.errors import BrokerError, StateError
from fedspzo.device_runtime.link.authorities import fingerprint, read_certificates
from fedspzo.device_runtime.link.transport import Connection
from fedspzo.device_runtime.log import list_some
from fedspzo.device_runtime.protocol.messages import KEYS
from fedspzo.device_runtime.protocol.messages import Authorities as Message

log = logging.getLogger(__name__)

#: Seconds between looks at the access file.
LOOK_S = 1.0
#: What a device says that trusts its system's authorities, or needs none.
_NONE = fingerprint(())


def check_trust(folders: Sequence[Path], devices: Collection[str], wanted: bytes) -> None:
    """Raise StateError unless servers and devices trust the authorities with a fingerprint, by the servers' folders."""
    trusting: set[str] = set()
    waiting = []
    for folder in folders:
        with reading(folder) as connection:
            found = read_authorities(connection)
        if found.pop("", b"") != wanted:
            waiting.append(f"the server of {folder}")
        trusting |= {device for device, fingerprint in found.items() if fingerprint in (wanted, _NONE)}
    waiting += [f"'{name}'" for name in devices if name not in trusting]
    if waiting:
        raise StateError(
            "broker.authority-not-trusted",
            f"{list_some(waiting)}: not known to trust the new authority yet; start them, and try again when they have"
            " connected, or take the logins of devices that will not come back away with fedspzo enroll --remove",
        )


class Authorities:
    """Keeps the server's link and the devices at one set of authorities.

    Attributes:
        end: Unix time at which the first of their certificates ends; None without certificates.
    """

    def __init__(
        self, store: ServerStore, roster: Roster, outbox: Outbox, link: Connection, read: Callable[[], str]
    ) -> None:
        """Begin with those of the link.

        Args:
            read: the authority that counts by now (PEM text). Raises BrokerError where that cannot be read.
        """
        self._store, self._roster, self._outbox, self._link, self._read = store, roster, outbox, link, read
        self._seen = self._refused = ""
        self._message: Message | None = None
        self._fingerprint = b""
        self._looked_at = -LOOK_S
        self._set(read())

    def look(self) -> None:
        """Follow the access file where it has changed, and tell the devices that are there."""
        now = time.monotonic()
        if now < self._looked_at + LOOK_S:
            return
        self._looked_at = now
        try:
            authority = self._read()
            if authority == self._seen:
                return
            self._link.trust(authority)
        except BrokerError as error:
            if str(error) != self._refused:
                self._refused = str(error)
                log.warning("%s", error, extra={"kind": error.kind})
            return
        self._set(authority)
        log.info("other authorities are trusted at the broker from now on; devices are told")
        for name in self._roster.there(now):
            if (member := self._roster.get(name)) is not None:
                self.tell(member)

    def tell(self, member: Member) -> None:
        """Tell a device, unless it has said that it trusts these, or none."""
        if self._message and KEYS in member.can and member.authorities not in (self._fingerprint, _NONE):
            self._outbox.send(member.name, self._message)

    def _set(self, authority: str) -> None:
        try:
            certificates = read_certificates(authority)
            found = ssl.create_default_context(cadata=authority).get_ca_certs() if certificates else []
        except (ValueError, ssl.SSLError):  # the link says so where it needs one
            certificates, found = (), []
        self._seen, self._refused = authority, ""
        self._message, self._fingerprint = Message(certificates) if certificates else None, fingerprint(certificates)
        self._store.save_authorities(self._fingerprint)
        self.end = min((ssl.cert_time_to_seconds(str(each["notAfter"])) for each in found), default=None)
