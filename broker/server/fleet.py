"""The devices of a job whose server is stopped, as places that may keep entries which it lost."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

from fedspzo.broker.server.devices import Roster
from fedspzo.broker.server.inbox import Heard, Inbox, sender
from fedspzo.broker.server.recovery import Own
from fedspzo.device_runtime.errors import BrokerError, MessageError
from fedspzo.device_runtime.link.access import Access
from fedspzo.device_runtime.link.connection import Link
from fedspzo.device_runtime.link.events import Received
from fedspzo.device_runtime.protocol.codec import encode
from fedspzo.device_runtime.protocol.messages import EntryBatch, Hello, Message, Sync, Wanted
from fedspzo.device_runtime.protocol.signing import Scope
from fedspzo.device_runtime.protocol.topics import Topics

log = logging.getLogger(__name__)

#: Seconds in which a device answers that is there.
ANSWER_S = 10.0


class _Line:
    """The server's connection, while there is no server."""

    def __init__(self, access: Access, own: Own) -> None:
        self.own, self.topics, self.roster = own, Topics(own.name), Roster(iter(()))
        self.inbox = Inbox(self.topics, own.bundle, self.roster)
        self.link = Link(access, access.user or f"server-{own.name}", [self.topics.up("+")])

    def say(self, topic: str, message: Message, device: str = "") -> None:
        scope = Scope(self.own.name, self.own.bundle, device)
        self.link.publish(topic, self.own.signer.sign(encode(message), scope), useful=ANSWER_S)

    def hear(self, seconds: float) -> Iterator[Heard]:
        """What devices say, for some seconds; who syncs is known from then on."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            event = self.link.next(left)
            if not isinstance(event, Received):
                continue
            try:
                heard = self.inbox.read(event.topic, event.payload)
            except MessageError as error:
                log.debug("a message of '%s' is ignored: %s", sender(event.topic), error)
                continue
            if heard is not None:
                if isinstance(heard.message, Sync):
                    self.roster.admit(heard.device, heard.message.key)
                yield heard


class DeviceSource:
    """A device that is connected, see :class:`fedspzo.broker.server.recovery.Source`.

    Attributes:
        name: "device" and its id.
        round: that it stands at.
    """

    def __init__(self, line: _Line, device: str, round: int) -> None:
        self.name, self.round = f"device '{device}'", round
        self._line, self._device = line, device

    def entries(self, after: int) -> tuple[bytes, ...]:
        """What it answers; nothing where it stands before that round, or does not answer."""
        if self.round <= after:
            return ()
        self._line.say(self._line.topics.down(self._device), Wanted(after), self._device)
        for heard in self._line.hear(ANSWER_S):
            if heard.device == self._device and isinstance(heard.message, EntryBatch):
                return heard.message.entries
        return ()


@contextmanager
def reach_devices(access: Access, own: Own, seconds: float) -> Iterator[list[DeviceSource]]:
    """The devices that say within some seconds that they are there, the farthest first.

    Raises:
        BrokerError: the broker cannot be reached, or refuses; or no device was heard.
    """
    line = _Line(access, own)
    try:
        line.link.connect()
        line.say(line.topics.round, Hello())
        found: dict[str, DeviceSource] = {}
        for heard in line.hear(seconds):
            if isinstance(heard.message, Sync) and heard.message.bundle == own.bundle:
                found[heard.device] = DeviceSource(line, heard.device, heard.message.round)
        if not found:
            raise BrokerError(
                "server.no-device-heard",
                f"no device was heard: none of job '{own.name}' answered at {access.url} within {seconds:g} s; give the"
                " server's own access file, start the devices, or wait longer with --wait",
            )
        yield sorted(found.values(), key=lambda source: -source.round)
    finally:
        line.link.close()
