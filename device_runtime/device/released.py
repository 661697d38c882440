"""The last answer with noise, on the disk before it is sent: who was killed gives the same answer again.

Another draw of noise on the same measurement would tell more than the round's promise, and than was accounted for.
"""

from __future__ import annotations

import hashlib

from fedspzo.device_runtime.errors import MessageError, StateError
from fedspzo.device_runtime.files import write_atomically
from fedspzo.device_runtime.protocol.codec import decode, encode
from fedspzo.device_runtime.protocol.messages import Result
from fedspzo.device_runtime.protocol.plan import Plan
from fedspzo.device_runtime.replica.state import DeviceState

_KEY_BYTES = 32


class Released:
    """Keeps it in a device's state folder, where ``--afresh`` leaves it."""

    def __init__(self, state: DeviceState) -> None:
        self._state, self._file = state, state.folder / "released"

    def known(self, plan: Plan) -> Result | None:
        """What was answered to a plan at the replica's place in the journal; None where it was another, or nothing.

        Raises:
            StateError: the file cannot be read, or is damaged.
        """
        try:
            content = self._file.read_bytes() if self._file.exists() else b""
            if content[:_KEY_BYTES] != self._key(plan):
                return None
            found = decode(content[_KEY_BYTES:])
        except (OSError, MessageError) as error:
            raise StateError(
                "state.released-damaged",
                f"{self._file}, which has the last answer with noise, cannot be read ({error}); restore it, or remove"
                " it: the next answer may then tell more than was promised",
            ) from None
        assert isinstance(found, Result)
        return found

    def keep(self, plan: Plan, result: Result) -> None:
        """Keep an answer; it may be sent afterwards. Raises StateError where the disk refuses."""
        try:
            write_atomically(self._file, self._key(plan) + encode(result))
        except OSError as error:
            raise StateError(
                "state.unusable", f"{self._file.parent} cannot be used ({error}); choose another folder"
            ) from None

    def _key(self, plan: Plan) -> bytes:
        return hashlib.blake2b(self._state.replica.head + encode(plan), digest_size=_KEY_BYTES).digest()
