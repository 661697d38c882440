"""The authorities that a device trusts at its broker: those of its access, or those that its server has named since."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import cbor2

from fedspzo.device_runtime.errors import MessageError, StateError
from fedspzo.device_runtime.files import cure, write_atomically
from fedspzo.device_runtime.link.access import Access
from fedspzo.device_runtime.link.authorities import fingerprint, read_certificates, write_certificates
from fedspzo.device_runtime.link.transport import Connection, Transport
from fedspzo.device_runtime.protocol.plain_cbor import loads

#: File of a state folder: a hash of the authority in the access that the device was given, and the certificates since.
AUTHORITIES = "authorities"


class Trust:
    """Keeps the authorities that the server has named, in a device's state folder.

    An access that is given later with another authority than before counts again by itself.

    Attributes:
        access: by which the device connects.
        told: whether the server has named authorities since :meth:`forget_server`.
    """

    def __init__(self, folder: Path, given: Transport) -> None:
        """What the folder has, or else the access."""
        self._file = folder / AUTHORITIES
        self._given = hashlib.sha256(given.authority.encode()).digest()
        self.access, self.told = given, False
        if (kept := self._read()) and isinstance(given, Access):
            self.access = replace(given, authority=write_certificates(kept))

    @property
    def fingerprint(self) -> bytes:
        """What the server is told: which authorities these are; empty before it has named any itself."""
        return fingerprint(read_certificates(self.access.authority)) if self.told else b""

    def forget_server(self) -> None:
        """The server may be another program by now, which knows nothing of authorities."""
        self.told = False

    def take(self, certificates: Sequence[bytes], link: Connection) -> None:
        """Trust the authorities that the server names, where the broker shows a certificate by one of them.

        A device that was given no authority continues to trust those of its system.

        Raises:
            BrokerError: the broker does not show such a certificate now; all is as before.
            StateError: the disk refuses.
        """
        access = self.access
        known = fingerprint(read_certificates(access.authority))
        if isinstance(access, Access) and access.authority and certificates and fingerprint(certificates) != known:
            changed = replace(access, authority=write_certificates(certificates))
            link.trust(changed.authority)
            self._write(certificates)
            self.access = changed
        self.told = True

    def _read(self) -> tuple[bytes, ...]:
        try:
            found = loads(self._file.read_bytes())
            given, certificates = found
            return tuple(certificates) if given == self._given else ()
        except (OSError, MessageError, ValueError, TypeError):
            return ()

    def _write(self, certificates: Sequence[bytes]) -> None:
        try:
            write_atomically(self._file, cbor2.dumps([self._given, list(certificates)]))
        except OSError as error:
            raise StateError(
                "state.unusable", f"{self._file.parent} cannot be used ({error.strerror}); {cure(error)}"
            ) from None
