"""Flower's grid as a server's connection: what is said to devices goes to nodes, and their answers are heard.

A node answers one message at a time, and its device is there for that time only. So what is said to it waits until the
node is free and something of it needs an answer; and a node that was not heard for a while is greeted.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from flwr.app import Message
from flwr.serverapp import Grid

from fedspzo.broker.server.evaluation import Failed
from fedspzo.device_runtime.errors import BrokerError, MessageError
from fedspzo.device_runtime.link.client import Will
from fedspzo.device_runtime.link.events import Connected, Events, Received
from fedspzo.device_runtime.link.packets import PacketLimit
from fedspzo.device_runtime.log import RateLimitedLog, printable
from fedspzo.device_runtime.protocol.entry import Entry
from fedspzo.device_runtime.protocol.glance import glance
from fedspzo.device_runtime.protocol.messages import Ack, Dismissal, Keep
from fedspzo.device_runtime.protocol.signing import split
from fedspzo.device_runtime.protocol.topics import Topics
from fedspzo.flower.content import MOST, pack, unpack

log = logging.getLogger(__name__)

#: Messages that can wait for another one: a device needs them, but has nothing to say to them.
_UNANSWERED = (Entry, Ack, Keep, Dismissal)
#: Seconds between looks for answers, and for nodes that have come or gone.
_PULL_S, _LOOK_S = 0.1, 1.0
#: Seconds without a word of a node, and after a failure of one, until it is greeted: a server takes it for gone after
#: ``broker.server.devices.LEASE_S``.
_QUIET_S, _RETRY_S = 60.0, 10.0


class GridTransport:
    """The way from a server to the devices of a job on Flower's nodes."""

    user = authority = ""
    place = "Flower's grid"
    packet_bytes = 0

    def __init__(self, grid: Grid, job: str) -> None:
        self._grid, self._topics = grid, Topics(job)

    def link(
        self, client_id: str, subscriptions: Sequence[str], will: Will | None = None, events: Events | None = None
    ) -> GridConnection:
        """See :class:`fedspzo.device_runtime.link.transport.Transport`; all that devices say is heard."""
        return GridConnection(self._grid, self._topics, PacketLimit(self), events or Events())


@dataclass
class _Node:
    """A node of the grid.

    Attributes:
        due: when to greet it, by the monotonic clock.
        device: that it says it is; "" before it has. Several may say the same: signatures tell whose messages count.
        waiting: signed messages for it.
        asked: those that it was sent last, and has not answered.
        message: of Flower, that these are in; "" for none.
    """

    due: float
    device: str = ""
    waiting: deque[bytes] = field(default_factory=lambda: deque(maxlen=MOST))
    asked: tuple[bytes, ...] = ()
    message: str = ""

    def add(self, signed: bytes) -> None:
        """Say something to it, unless it is on its way."""
        if signed not in self.waiting and signed not in self.asked:
            self.waiting.append(signed)

    @property
    def ready(self) -> bool:
        """Whether it is free, and something needs an answer."""
        return not self.message and any(glance(split(signed))[0] not in _UNANSWERED for signed in self.waiting)


class GridConnection:
    """A :class:`fedspzo.device_runtime.link.transport.Connection`; a thread of its own speaks with the grid.

    Attributes:
        events, bytes_up, bytes_down, packets: see there.
        connected: always; the grid itself connects again where it must.
    """

    connected = True

    def __init__(self, grid: Grid, topics: Topics, packets: PacketLimit, events: Events) -> None:
        self.events, self.packets = events, packets
        self.bytes_up = self.bytes_down = 0
        self._grid, self._topics = grid, topics
        self._nodes: dict[int, _Node] = {}
        self._lock = threading.Lock()  # of the nodes
        self._hello = b""
        self._looked_at = -_LOOK_S
        self._warnings = RateLimitedLog(log)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="grid", daemon=True)

    def connect(self, timeout: float = 15.0, stopped: Callable[[], bool] = lambda: False) -> None:
        """Begin to speak with the grid."""
        self._thread.start()
        self.events.put(Connected())

    def publish(self, topic: str, payload: bytes, retain: bool = False, useful: float = 0.0) -> None:
        """Have a message wait for the nodes that it is for."""
        with self._lock:
            if topic == self._topics.round:
                self._hello = payload
            to_all = topic in (self._topics.round, self._topics.result)
            for node in self._nodes.values():
                if to_all or (node.device and topic == self._topics.down(node.device)):
                    node.add(payload)

    def next(self, timeout: float) -> object | None:
        """The next event, or None when ``timeout`` seconds pass without one."""
        events = self.events.take(timeout, 1)
        return events[0] if events else None

    def certificate_end(self) -> None:
        """Not known: it is Flower's."""

    def trust(self, authority: str) -> None:
        """Nothing: the authorities are Flower's."""

    def close(self, timeout: float = 5.0) -> None:
        """Speak with the grid no more."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join(timeout)

    def _run(self) -> None:
        try:
            while not self._over.wait(_PULL_S):
                now = time.monotonic()
                if now >= self._looked_at + _LOOK_S:
                    self._looked_at = now
                    self._look(set(self._grid.get_node_ids()), now)
                self._pull(now)
                self._push(now)
        except Exception as error:  # whatever Flower raises: the server ends, and continues when it is started again
            log.debug("the grid failed", exc_info=True)
            reason = printable(f"{type(error).__name__}: {error}")
            failure = BrokerError("flower.grid", f"Flower's grid failed ({reason}); start the run again")
            self.events.put(Failed(failure))

    def _look(self, there: set[int], now: float) -> None:
        """Note which nodes have come and gone, and greet those that are due."""
        with self._lock:
            for number in self._nodes.keys() - there:
                self._part(self._nodes.pop(number))
            for number in there - self._nodes.keys():
                self._nodes[number] = _Node(due=now)
            for node in self._nodes.values():
                if now >= node.due and self._hello and not node.message:
                    node.due = now + _QUIET_S
                    node.add(self._hello)

    def _pull(self, now: float) -> None:
        """Take answers in."""
        with self._lock:
            asked = {node.message: number for number, node in self._nodes.items() if node.message}
        for reply in self._grid.pull_messages(list(asked)) if asked else ():
            number = asked[reply.metadata.reply_to_message_id]
            with self._lock:
                node = self._nodes[number]
                node.message, node.asked, node.due = "", (), now + _QUIET_S
                try:
                    self._hear(node, reply, now)
                except MessageError as error:
                    self._warn(number, f"an answer of node {number} was dropped: {error}", error.kind)

    def _hear(self, node: _Node, reply: Message, now: float) -> None:
        """Take in what a node says. Raises MessageError where it is no answer."""
        if reply.has_error():
            node.due = now + _RETRY_S
            self._part(node)
            raise MessageError("flower.node-failed", f"its program failed: {printable(reply.error.reason or '')}")
        device, messages = unpack(reply.content)
        node.device = device or node.device
        for signed in messages if node.device else ():
            self.bytes_down += len(signed)
            self.events.receive(Received(self._topics.up(node.device), signed))

    def _push(self, now: float) -> None:
        """Send what waits for nodes that are free."""
        with self._lock:
            ready = {number: node for number, node in self._nodes.items() if node.ready}
            for node in ready.values():
                node.asked, node.due = tuple(node.waiting), now + _QUIET_S
                node.waiting.clear()
        messages = [Message(pack(node.asked), number, "train") for number, node in ready.items()]
        pushed = list(self._grid.push_messages(messages)) if messages else []
        with self._lock:
            for number, message in zip(ready, pushed or [None] * len(ready), strict=True):
                node = ready[number]
                node.message = message or ""
                self.bytes_up += sum(map(len, node.asked)) if message else 0
                if not message:
                    node.asked, node.due = (), now + _RETRY_S
                    self._warn(number, f"Flower takes no message for node {number}", "flower.not-pushed")

    def _part(self, node: _Node) -> None:
        """Say that a node's device is not there: its presence is taken away, as brokers do it."""
        if node.device and not any(other.device == node.device for other in self._nodes.values() if other is not node):
            self.events.receive(Received(self._topics.state(node.device), b""))

    def _warn(self, number: int, text: str, kind: str) -> None:
        self._warnings.warn(str(number), text, kind)
