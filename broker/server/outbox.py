"""What the server says: signed, held until what it rests on is on disk, then sent."""

from __future__ import annotations

from fedspzo.broker.server.devices import Roster
from fedspzo.device_runtime.link.connection import Link
from fedspzo.device_runtime.protocol.messages import Message, encode
from fedspzo.device_runtime.protocol.plan import Plan
from fedspzo.device_runtime.protocol.signing import Scope, Signer
from fedspzo.device_runtime.protocol.topics import Topics

#: Seconds in which an answer is of use; whoever still misses one then has asked again, or will.
ANSWER_S = 60.0


class Outbox:
    """Messages that wait to be sent."""

    def __init__(self, link: Link, topics: Topics, signer: Signer, bundle: bytes, roster: Roster) -> None:
        self._link = link
        self._topics = topics
        self._signer = signer
        self._roster = roster
        self._bundle = bundle
        self._waiting: list[tuple[str, bytes, float]] = []  # topic, message, seconds in which it is of use

    def sign(self, message: Message, device: str = "", head: bytes = b"", bundle: bytes | None = None) -> bytes:
        """A message as it travels, for a scope; the bundle is the job's, if none is named."""
        scope = Scope(self._topics.job, self._bundle if bundle is None else bundle, device, head)
        return self._signer.sign(encode(message), scope)

    def send(self, device: str, message: Message, head: bytes = b"", bundle: bytes | None = None) -> None:
        """A message to one device."""
        useful = message.deadline if isinstance(message, Plan) else ANSWER_S
        self.relay(device, self.sign(message, device, head, bundle), useful)

    def relay(self, device: str, signed: bytes, useful: float = ANSWER_S) -> None:
        """What is signed already, to one device."""
        member = self._roster.edit(device)
        if member is not None:
            member.bytes_down += len(signed)
        self._waiting.append((self._topics.down(device), signed, useful))

    def greet(self, message: Message) -> None:
        """A message to all that are there."""
        self._waiting.append((self._topics.round, self.sign(message), ANSWER_S))

    def publish(self, signed: bytes) -> None:
        """A journal entry, or the end of the job, to all."""
        self._waiting.append((self._topics.result, signed, 0.0))

    def flush(self) -> None:
        """Send what waits."""
        waiting, self._waiting = self._waiting, []
        for topic, signed, useful in waiting:
            self._link.publish(topic, signed, useful=useful)
