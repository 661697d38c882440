"""What waits for the server's thread: a lane for each sender, served in turn, so that none of them delays the others.

A sender whose lane is full loses messages, and nobody else does. One that is muted is not heard at all: dropping its
messages as they arrive costs neither a signature nor a place in a lane.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, OrderedDict, deque
from typing import Any

from fedspzo.broker.server.inbox import sender
from fedspzo.device_runtime.link.events import MOST_WAITING, Events, Received

#: Messages and bytes that wait for one sender: an honest one has a few.
LANE_MESSAGES, LANE_BYTES = 64, 1 << 18
#: Messages of one sender that are taken at a time.
SHARE = 4


class Lanes(Events):
    """Events of the server itself first, then a message of each sender in turn."""

    def __init__(self) -> None:
        self._own: deque[object] = deque()
        self._lanes: OrderedDict[str, deque[Received]] = OrderedDict()  # in the order of their turns; none is empty
        self._bytes: Counter[str] = Counter()
        self._total = 0
        self._muted: dict[str, float] = {}  # until when
        self._lost: Counter[str] = Counter()
        self._changed = threading.Condition()

    def put(self, event: object) -> None:
        """See :meth:`Events.put`."""
        with self._changed:
            self._own.append(event)
            self._changed.notify()

    def receive(self, message: Received) -> None:
        """Add a message to its sender's lane, or drop it where that is full, or the sender is muted."""
        name = sender(message.topic)
        with self._changed:
            if self.mutes(name):
                return
            lane, size = self._lanes.get(name, ()), message.size
            full = len(lane) >= LANE_MESSAGES or self._bytes[name] + size > LANE_BYTES
            if full or self._total + size > MOST_WAITING:
                if lane:
                    self._lost[name] += 1
                return
            self._lanes.setdefault(name, deque()).append(message)
            self._bytes[name] += size
            self._total += size
            self._changed.notify()

    def take(self, timeout: float, most: int) -> list[Any]:
        """See :meth:`Events.take`; at most :data:`SHARE` messages of each sender."""
        with self._changed:
            self._changed.wait_for(lambda: self._own or self._lanes, max(timeout, 0.0))
            events: list[Any] = [self._own.popleft() for _ in range(min(most, len(self._own)))]
            for _ in range(SHARE):
                for name in list(self._lanes)[: most - len(events)]:
                    events.append(self._next(name))
            return events

    def empty(self) -> bool:
        """See :meth:`Events.empty`."""
        return not (self._own or self._lanes)

    def mute(self, name: str, seconds: float) -> None:
        """Drop what waits of a sender, and what comes of it for some seconds."""
        now = time.monotonic()
        with self._changed:
            self._muted = {other: until for other, until in self._muted.items() if until > now}
            self._muted[name] = now + seconds
            while name in self._lanes:
                self._next(name)

    def mutes(self, name: str) -> bool:
        """Whether a sender is muted."""
        return bool(self._muted) and time.monotonic() < self._muted.get(name, 0.0)

    def lost(self) -> Counter[str]:
        """Sender → how many of its messages were dropped since the last call because its lane was full."""
        if not self._lost:
            return Counter()
        with self._changed:
            lost, self._lost = self._lost, Counter()
        return lost

    def _next(self, name: str) -> Received:
        """Take a sender's next message; its next turn comes after all others'."""
        lane = self._lanes[name]
        message = lane.popleft()
        self._bytes[name] -= message.size
        self._total -= message.size
        if lane:
            self._lanes.move_to_end(name)
        else:
            del self._lanes[name], self._bytes[name]
        return message
