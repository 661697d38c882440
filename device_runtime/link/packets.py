"""The largest packet that a broker takes. A larger one is not sent.

Brokers end the connection for one, and the client would send it again on each new connection, forever.
"""

from __future__ import annotations

import logging
from typing import Any

from fedspzo.device_runtime.errors import BrokerError
from fedspzo.device_runtime.link.transport import Transport
from fedspzo.device_runtime.protocol.signing import MAX_SIGNED_BYTES

log = logging.getLogger(__name__)

#: Most bytes of a PUBLISH without topic and payload: its type and length, the topic's length, a number, an expiry.
_PUBLISH_BYTES = 16


class PacketLimit:
    """What a broker says of its packets in MQTT 5, and what the URL says; the smaller holds.

    Attributes:
        bytes: of the largest packet; 0 where nobody says.
    """

    def __init__(self, access: Transport) -> None:
        self._access = access
        self._told = 0  # the smallest message that was told of
        self.bytes = access.packet_bytes

    def learn(self, properties: Any) -> None:
        """Take in what a broker says when it accepts a connection."""
        said = getattr(properties, "MaximumPacketSize", 0)
        self.bytes = min(filter(None, (said, self._access.packet_bytes)), default=0)

    def room(self, topic: str) -> int:
        """Bytes of the largest message on a topic."""
        packet = self.bytes - len(topic.encode()) - _PUBLISH_BYTES
        return min(max(packet, 0), MAX_SIGNED_BYTES) if self.bytes else MAX_SIGNED_BYTES

    def check(self, topic: str, size: int) -> None:
        """Raise BrokerError when a message is too large."""
        if size > self.room(topic):
            raise BrokerError(
                "broker.packet-too-large",
                f"the broker at {self._access.place} takes packets of at most {self.bytes} bytes, and a message on"
                f" {topic} needs {size}; raise its limit to 70000 (mosquitto: max_packet_size)",
            )

    def allows(self, topic: str, size: int) -> bool:
        """Whether a message can be sent; people are told of one that cannot, and not of larger ones after it."""
        try:
            self.check(topic, size)
        except BrokerError as error:
            if not self._told or size < self._told:
                self._told = size
                log.warning("%s; it is not sent", error, extra={"kind": error.kind})
            return False
        return True
