"""What the server sends: signed, held until what it depends on is on disk, then sent. It receives nothing."""

from __future__ import annotations

from collections.abc import Iterable

from fedspzo.broker.rounds.job import Job
from fedspzo.broker.rounds.sizes import largest_message
from fedspzo.broker.server.devices import Roster
from fedspzo.broker.server.store import ServerStore
from fedspzo.device_runtime.link.transport import Connection
from fedspzo.device_runtime.protocol.codec import encode
from fedspzo.device_runtime.protocol.messages import Finish, Hello, Message
from fedspzo.device_runtime.protocol.plan import Plan
from fedspzo.device_runtime.protocol.signing import SIGNATURE_BYTES, Scope
from fedspzo.device_runtime.protocol.topics import Topics
from fedspzo.device_runtime.replica.chain import EMPTY

#: Seconds in which an answer is of use; whoever still misses one then has asked again, or will.
ANSWER_S = 60.0


class Outbox:
    """Messages that wait to be sent."""

    def __init__(self, link: Connection, topics: Topics, store: ServerStore, roster: Roster) -> None:
        self._link = link
        self._topics = topics
        self._store = store
        self._roster = roster
        self._waiting: list[tuple[str, bytes, float]] = []  # topic, message, seconds in which it is of use

    def greet(self) -> None:
        """The server is there, perhaps with another key than before: to all."""
        for signed in self._store.keys.hand_overs[-1:]:
            self._waiting.append((self._topics.round, signed, ANSWER_S))
        self._waiting.append((self._topics.round, self._sign(Hello()), ANSWER_S))

    def hand_over(self, device: str, known: int) -> None:
        """The server's newest keys, to one device that knows of some hand-overs."""
        for signed in self._store.keys.hand_overs[known:]:
            self._send(device, signed, ANSWER_S)

    def ask(self, device: str, plan: Plan) -> None:
        """A plan to one device."""
        signed = self._sign(plan, device, self._head(plan.round - 1))
        self._send(device, signed, plan.deadline)

    def send(self, device: str, message: Message, bundle: bytes | None = None) -> None:
        """A message to one device, whose bundle is the job's if none is named."""
        self._send(device, self._sign(message, device, bundle=bundle), ANSWER_S)

    def send_to_all(self, devices: Iterable[str], message: Message) -> None:
        """A message to several devices, signed once for all."""
        signed = self._sign(message)
        for device in devices:
            self._send(device, signed, ANSWER_S)

    def room(self, device: str) -> int:
        """Bytes of the largest message to a device, without its signature."""
        return self._link.packets.room(self._topics.down(device)) - SIGNATURE_BYTES

    def check_room(self, job: Job) -> None:
        """Raise BrokerError when the broker does not take what a job's rounds send."""
        self._link.packets.check(self._topics.down("d" * 64), largest_message(job) + SIGNATURE_BYTES)

    def send_after(self, device: str, message: Message, round: int) -> None:
        """A message to one device, good for who stands at a round."""
        self._send(device, self._sign(message, device, self._head(round)), ANSWER_S)

    def finish(self, device: str = "") -> None:
        """The end of the job, to one device or all; it is signed for all."""
        last = self._store.journal.last_round
        signed = self._sign(Finish(last), head=self._head(last))
        if device:
            self._send(device, signed, ANSWER_S)
        else:
            self._waiting.append((self._topics.result, signed, 0.0))

    def publish(self, entry: bytes) -> None:
        """A journal entry, as the store has signed it, to all."""
        self._waiting.append((self._topics.result, entry, 0.0))

    def flush(self) -> None:
        """Send what waits."""
        waiting, self._waiting = self._waiting, []
        for topic, signed, useful in waiting:
            self._link.publish(topic, signed, useful=useful)

    def _send(self, device: str, signed: bytes, useful: float) -> None:
        member = self._roster.edit(device)
        if member is not None:
            member.bytes_down += len(signed)
        self._waiting.append((self._topics.down(device), signed, useful))

    def _sign(self, message: Message, device: str = "", head: bytes = b"", bundle: bytes | None = None) -> bytes:
        scope = Scope(self._topics.job, self._store.bundle if bundle is None else bundle, device, head)
        return self._store.signer.sign(encode(message), scope)

    def _head(self, round: int) -> bytes:
        return self._store.journal.head(round) or EMPTY
