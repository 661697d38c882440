"""What the server receives: bytes on a topic, read as a message that its sender has signed. It sends nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias, get_args

from fedspzo.broker.server.devices import Roster
from fedspzo.device_runtime.errors import MessageError
from fedspzo.device_runtime.protocol.codec import decode
from fedspzo.device_runtime.protocol.glance import glance
from fedspzo.device_runtime.protocol.masked import Inquiry, Masked, Ready
from fedspzo.device_runtime.protocol.messages import Decline, EntryBatch, Presence, Report, Result, Sync
from fedspzo.device_runtime.protocol.signing import Scope, check, split
from fedspzo.device_runtime.protocol.topics import Topics, valid_id

#: What devices say on their topics.
Said: TypeAlias = Sync | Result | Decline | Report | EntryBatch | Ready | Masked | Inquiry
ON_UP, ON_STATE = get_args(Said), (Presence,)
#: A Sync is decoded before its signature is checked, so it must be a small one.
MAX_SYNC_BYTES = 2048


@dataclass(frozen=True)
class Heard:
    """A message of a device.

    Attributes:
        device: who says it; its signature was checked against the key of the member of that name, or a Sync's own.
        message: what it says; None where its retained presence was taken away, which needs no signature.
        size: in bytes, with the signature.
    """

    device: str
    message: Said | Presence | None
    size: int


class Inbox:
    """Reads messages of the devices of a job."""

    def __init__(self, topics: Topics, bundle: bytes, roster: Roster) -> None:
        self._topics = topics
        self._bundle = bundle
        self._roster = roster

    def read(self, topic: str, signed: bytes) -> Heard | None:
        """The message that has arrived; None for the birth message of a device that has yet to sync.

        Raises:
            MessageError: it is not a message, or not its sender's, or not for this topic.
        """
        device = sender(topic)
        if topic not in (self._topics.up(device), self._topics.state(device)) or not valid_id(device):
            raise MessageError("message.topic", "its topic is not one of a device")
        on_state = topic == self._topics.state(device)
        if on_state and not signed:
            return Heard(device, None, 0)
        payload = split(signed)
        kind, _ = glance(payload)
        if kind not in (ON_STATE if on_state else ON_UP):
            where = "state" if on_state else "up"
            raise MessageError("message.topic", f"a {kind.__name__} is not for the topic '{where}'")
        member = self._roster.get(device)
        if kind is Sync:  # which brings the key that it is signed with along
            if len(signed) > MAX_SYNC_BYTES:
                raise MessageError("message.too-large", f"a Sync of {len(signed)} bytes exceeds {MAX_SYNC_BYTES}")
            message = decode(payload)
            assert isinstance(message, Sync)
            check(signed, Scope(self._topics.job, message.bundle, device), message.key)
        elif member is not None:
            check(signed, Scope(self._topics.job, self._bundle, device), member.key)
            message = decode(payload)
        elif kind is Presence:
            return None
        else:
            raise MessageError("message.unknown-sender", "its sender has not synced")
        assert isinstance(message, Said | Presence)
        return Heard(device, message, len(signed))


def sender(topic: str) -> str:
    """The device that a topic names."""
    return topic.rpartition("/")[2]
