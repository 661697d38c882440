"""What happens on a connection, in the order in which its owner takes it."""

from __future__ import annotations

import queue
from dataclasses import dataclass
from typing import Any

#: Bytes received and not yet taken, beyond which messages are dropped: their senders send them again.
MOST_WAITING = 1 << 26


@dataclass(frozen=True)
class Connected:
    """The connection stands (again) and every subscription is granted."""


@dataclass(frozen=True)
class Received:
    """A message arrived."""

    topic: str
    payload: bytes

    @property
    def size(self) -> int:
        """Bytes of memory, roughly, that it takes while it waits."""
        return len(self.payload) + len(self.topic) + 200


class Events:
    """A queue of what happened. The network's thread and the owner's other threads add to it, and the owner takes."""

    def __init__(self) -> None:
        self._queue: queue.Queue[Any] = queue.Queue()
        self._added = self._taken = 0  # bytes, each counted by one thread

    def put(self, event: object) -> None:
        """Add what an owner's thread has to say; any thread may call this."""
        self._queue.put(event)

    def receive(self, message: Received) -> None:
        """Add a message, or drop it where too many wait; the network's thread calls this."""
        if self._added - self._taken + message.size <= MOST_WAITING:
            self._added += message.size
            self._queue.put(message)

    def take(self, timeout: float, most: int) -> list[Any]:
        """What has happened, at most ``most`` events; waits up to ``timeout`` seconds for the first."""
        events: list[Any] = []
        try:
            events.append(self._queue.get(timeout=max(timeout, 0.0)))
            while len(events) < most:
                events.append(self._queue.get_nowait())
        except queue.Empty:
            pass
        self._taken += sum(event.size for event in events if isinstance(event, Received))
        return events

    def empty(self) -> bool:
        """Whether nothing waits."""
        return self._queue.empty()
