"""The keys by which a server is believed: the first one, and those that it has handed over to since.

A hand-over is signed with the key before. So whoever knows the first key follows to the newest, one after the other.
"""

from __future__ import annotations

from fedspzo.device_runtime.errors import MessageError
from fedspzo.device_runtime.protocol.codec import decode
from fedspzo.device_runtime.protocol.entry import Entry
from fedspzo.device_runtime.protocol.glance import glance
from fedspzo.device_runtime.protocol.messages import HandOver
from fedspzo.device_runtime.protocol.signing import KEY_BYTES, Scope, check, split


class ServerKeys:
    """Checks what the server of a job has signed.

    Attributes:
        hand_overs: those that led here from the first key, as they were signed.
    """

    def __init__(self, first: bytes, bundle: bytes, job: str) -> None:
        """Begin with the first key of a job's server, for the bundle with an identity."""
        self._keys, self._bundle, self._job = [(0, first)], bundle, job
        self.hand_overs: tuple[bytes, ...] = ()

    @property
    def newest(self) -> bytes:
        """The key in force."""
        return self._keys[-1][1]

    def at(self, round: int) -> bytes:
        """The key that signs a round's entry."""
        return next(key for first, key in reversed(self._keys) if first <= round)

    def check(self, signed: bytes, to: str = "", head: bytes = b"") -> None:
        """Raise MessageError unless the server has signed this, for the device that it is for, after this journal.

        An entry is signed with the key of its round, all else with the newest.
        """
        kind, round = glance(split(signed))
        check(signed, Scope(self._job, self._bundle, to, head), self.at(round) if kind is Entry else self.newest)

    def check_entry(self, signed: bytes, head: bytes) -> None:
        """As :meth:`check`, of an entry."""
        self.check(signed, head=head)

    def read(self, signed: bytes) -> HandOver:
        """The next hand-over. Raises MessageError unless the key in force has signed it, for this job."""
        self.check(signed)
        message = decode(split(signed))
        if (
            not isinstance(message, HandOver)
            or message.before != self.newest
            or len(message.key) != KEY_BYTES
            or message.key in (key for _, key in self._keys)
            or message.round < self._keys[-1][0]
        ):
            raise MessageError("message.hand-over", "it does not hand over from the server's key to a new one")
        return message

    def follow(self, signed: bytes) -> None:
        """Believe the key that the next hand-over names. Raises as :meth:`read`."""
        message = self.read(signed)
        self._keys.append((message.round, message.key))
        self.hand_overs += (signed,)
