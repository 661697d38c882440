"""The keys that a device shares with others of its job: agreed on once with each, and kept in its state folder."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from fedspzo.device_runtime.errors import MessageError, StateError
from fedspzo.device_runtime.files import make_private, sync_folder
from fedspzo.device_runtime.privacy.certificates import is_certified, read_certificate
from fedspzo.device_runtime.privacy.masks import PSEUDONYM_BYTES, pair_key, pseudonym
from fedspzo.device_runtime.privacy.partners import check_partner, sign_partner
from fedspzo.device_runtime.protocol.agreement import key_agreement
from fedspzo.device_runtime.protocol.masked import Partner
from fedspzo.device_runtime.protocol.signing import KEY_BYTES, read_secret
from fedspzo.device_runtime.replica.state import DeviceState

log = logging.getLogger(__name__)

AGREEMENT = "agreement.key"
#: Keys that are kept at most: a server can send without end what nobody asked for. No group has as many members.
MOST_PAIRS = 1 << 14


class Pairs:
    """A device's own keys in a job, and those that it shares.

    Attributes:
        own: the device's pseudonym in the job.
        card: its public keys, signed.
        certified: others can take its keys: they are certified, where the bundle asks for that.
    """

    def __init__(self, job: str, state: DeviceState) -> None:
        """Read them, or make the device's own the first time.

        Raises:
            StateError: the state folder cannot be used.
        """
        bundle, key = state.replica.bundle, state.signer.public
        self._job, self._bundle, self._enrolment = job, bundle.identity, bytes.fromhex(bundle.manifest.enrolment_key)
        self._private = read_secret(state.folder / AGREEMENT, key_agreement().private_key)
        self.own = pseudonym(job, self._bundle, key, self._private.public)
        certificate = read_certificate(state.folder, key) if self._enrolment else b""
        self.certified = not self._enrolment or is_certified(key, certificate, self._enrolment)
        self.card = sign_partner(state.signer, self._private.public, job, self._bundle, certificate)
        self._file = state.folder / f"pairs-{self.own.hex()[:16]}"
        self._keys = _read(self._file)

    @property
    def certifies(self) -> bool:
        """Whether the bundle names a key that certifies devices."""
        return bool(self._enrolment)

    def unknown(self, members: Sequence[bytes]) -> list[bytes]:
        """Members whose keys are not known."""
        return [member for member in members if member != self.own and member not in self._keys]

    def keys(self, members: Sequence[bytes]) -> dict[bytes, bytes]:
        """Member → the key that is shared with it, of all but the device itself."""
        return {member: self._keys[member] for member in members if member != self.own}

    def learn(self, partners: Iterable[Partner]) -> bool:
        """Agree on keys with other devices; tells whether there was a new one.

        Raises:
            StateError: the disk refuses.
        """
        fresh = {}
        for partner in partners:
            name = pseudonym(self._job, self._bundle, partner.key, partner.agreement)
            if name in self._keys or name == self.own:
                continue
            try:
                check_partner(partner, self._job, self._bundle, self._enrolment)
                fresh[name] = pair_key(self._private, partner.agreement)
            except (MessageError, ValueError) as error:
                log.warning("a device's keys were refused: %s", error)
        if fresh:
            self._keep(fresh)
            self._keys.update(fresh)
        return bool(fresh)

    def _keep(self, fresh: dict[bytes, bytes]) -> None:
        """Append to the file, or begin it again. What is missing, also after a cut, is agreed on again."""
        try:
            if len(self._keys) + len(fresh) > MOST_PAIRS:
                self._file.unlink(missing_ok=True)
                self._keys.clear()
            make_private(self._file)
            with self._file.open("ab") as file:
                file.write(b"".join(name + key for name, key in fresh.items()))
                file.flush()
                os.fsync(file.fileno())
            sync_folder(self._file.parent)
        except OSError as error:
            raise StateError(
                "state.unusable", f"{self._file.parent} cannot be used ({error}); choose another folder"
            ) from None


def _read(file: Path) -> dict[bytes, bytes]:
    try:
        content = file.read_bytes() if file.exists() else b""
        whole = len(content) - len(content) % (PSEUDONYM_BYTES + KEY_BYTES)
        if whole < len(content):
            with file.open("r+b") as torn:
                torn.truncate(whole)
    except OSError as error:
        raise StateError("state.unusable", f"{file.parent} cannot be used ({error}); choose another folder") from None
    rows = [
        content[start : start + PSEUDONYM_BYTES + KEY_BYTES] for start in range(0, whole, PSEUDONYM_BYTES + KEY_BYTES)
    ]
    return {row[:PSEUDONYM_BYTES]: row[PSEUDONYM_BYTES:] for row in rows}
