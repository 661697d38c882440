"""One MQTT connection: messages out, messages in through a queue, and the count of both in bytes.

MQTT 3.1.1 with clean sessions is all that is asked of a broker. Delivery is not trusted: whoever sends a message sends
it again until an application acknowledgement, so this layer only connects and reconnects.
"""

from __future__ import annotations

import queue
import re
import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from device_runtime.errors import BrokerError
from device_runtime.wire import MAX_BYTES

_DEFAULT_PORTS = {"mqtt": 1883, "mqtts": 8883, "ws": 80, "wss": 443}
_KEEPALIVE_S = 30


_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


def valid_id(text: str) -> bool:
    """Whether a text can name a job or a device: a level of a topic at every broker."""
    return _ID.fullmatch(text) is not None


@dataclass(frozen=True)
class Topics:
    """Topic names of one job. A device writes only ``up`` and ``state`` of its own."""

    job: str

    def __post_init__(self) -> None:
        """Raises BrokerError when the job's name cannot stand in a topic."""
        if not valid_id(self.job):
            raise BrokerError(f"'{self.job}' cannot be a job's name; use up to 64 letters, digits, '-' and '_'")

    @property
    def round(self) -> str:
        """Server → all: that it is there, and at which round."""
        return f"fl/v1/{self.job}/round"

    @property
    def result(self) -> str:
        """Server → all: journal entries, and the end of the job."""
        return f"fl/v1/{self.job}/result"

    def up(self, device: str) -> str:
        """Device → server."""
        return f"fl/v1/{self.job}/up/{device}"

    def down(self, device: str) -> str:
        """Server → device: plans, acknowledgements, entries that it missed."""
        return f"fl/v1/{self.job}/down/{device}"

    def state(self, device: str) -> str:
        """Retained presence of a device."""
        return f"fl/v1/{self.job}/state/{device}"


@dataclass(frozen=True)
class Connected:
    """The connection stands (again) and every subscription is granted."""


@dataclass(frozen=True)
class Received:
    """A message arrived."""

    topic: str
    payload: bytes


@dataclass(frozen=True)
class Will:
    """What the broker publishes, retained, when the connection breaks."""

    topic: str
    payload: bytes


class Link:
    """A connection that reconnects by itself.

    Attributes:
        events: what happened, in order; other threads of the owner may put events of their own.
        bytes_up, bytes_down: payload bytes published and received.
    """

    def __init__(self, url: str, client_id: str, subscriptions: Sequence[str], will: Will | None = None) -> None:
        """Prepare a connection.

        Args:
            url: ``mqtt://[user:password@]host[:port]``, or with ``mqtts``, ``ws``, ``wss``.
            client_id: unique at the broker.
            subscriptions: topic filters, subscribed at every connect.
            will: for the broker to publish.

        Raises:
            BrokerError: the URL is not one of a broker.
        """
        self.url = url
        self.events: queue.Queue[Any] = queue.Queue()
        self.bytes_up = 0
        self.bytes_down = 0
        self._subscriptions = list(subscriptions)
        self._connected = threading.Event()
        self._refusal = ""
        self._unsent: list[mqtt.MQTTMessageInfo] = []
        try:
            parts = urlsplit(url)
            port = parts.port or _DEFAULT_PORTS[parts.scheme]
            host = (parts.hostname or "localhost").encode("idna").decode()
        except (KeyError, ValueError):
            raise BrokerError(f"'{url}' is not a broker's URL; write one as mqtt://host:1883") from None
        self._address = (host, port)
        transport: Literal["tcp", "websockets"] = "websockets" if parts.scheme.startswith("ws") else "tcp"
        self._client = mqtt.Client(
            CallbackAPIVersion.VERSION2,
            client_id=client_id,
            clean_session=True,
            protocol=mqtt.MQTTv311,
            transport=transport,
        )
        if parts.scheme in ("mqtts", "wss"):
            self._client.tls_set()
        if parts.username is not None:
            self._client.username_pw_set(unquote(parts.username), unquote(parts.password or ""))
        if will is not None:
            self._client.will_set(will.topic, will.payload, qos=1, retain=True)
        self._client.reconnect_delay_set(1, 30)
        self._client.on_socket_open = _disable_nagle
        self._client.on_connect = self._on_connect
        self._client.on_subscribe = self._on_subscribe
        self._client.on_message = self._on_message

    def connect(self, timeout: float = 15.0) -> None:
        """Connect and subscribe; from then on the link reconnects by itself.

        Raises:
            BrokerError: nobody answers within ``timeout`` seconds, or the broker refuses.
        """
        self._client.connect_async(*self._address, keepalive=_KEEPALIVE_S)
        self._client.loop_start()
        end = time.monotonic() + timeout
        while not self._connected.wait(0.05):
            if self._refusal or time.monotonic() > end:
                self._client.loop_stop()
                reason = f"refuses: {self._refusal}" if self._refusal else f"does not answer within {timeout:g} s"
                cure = "check user name and password" if self._refusal else "start it, or check the URL"
                raise BrokerError(f"the broker at {self._place} {reason}; {cure}")

    def publish(self, topic: str, payload: bytes, retain: bool = False) -> None:
        """Send a message, unless the connection is down: whoever needs it sent sends it again."""
        if self._client.is_connected():
            self._unsent = [message for message in self._unsent if not message.is_published()]
            self._unsent.append(self._client.publish(topic, payload, qos=1, retain=retain))
            self.bytes_up += len(payload)

    def next(self, timeout: float) -> Any | None:
        """The next event, or None when there is none for ``timeout`` seconds."""
        try:
            return self.events.get(timeout=max(timeout, 0.0))
        except queue.Empty:
            return None

    def close(self, timeout: float = 5.0) -> None:
        """Wait until the broker has what was sent (for ``timeout`` seconds at most) and disconnect."""
        end = time.monotonic() + timeout
        while self._client.is_connected() and time.monotonic() < end:
            if all(message.is_published() for message in self._unsent):
                break
            time.sleep(0.01)
        self._client.disconnect()
        self._client.loop_stop()

    @property
    def _place(self) -> str:
        return f"{urlsplit(self.url).scheme}://{self._address[0]}:{self._address[1]}"

    def _on_connect(self, client: mqtt.Client, userdata: Any, flags: Any, reason: Any, properties: Any) -> None:
        if reason.is_failure:
            self._refusal = str(reason)
        else:
            client.subscribe([(topic, 1) for topic in self._subscriptions])

    def _on_subscribe(self, client: mqtt.Client, userdata: Any, mid: int, reasons: Any, properties: Any) -> None:
        if any(reason.is_failure for reason in reasons):
            self._refusal = "it does not grant the subscriptions"
            return
        self._refusal = ""
        self._connected.set()
        self.events.put(Connected())

    def _on_message(self, client: mqtt.Client, userdata: Any, message: mqtt.MQTTMessage) -> None:
        self.bytes_down += len(message.payload)
        if len(message.payload) <= MAX_BYTES:
            self.events.put(Received(message.topic, bytes(message.payload)))


def _disable_nagle(client: mqtt.Client, userdata: Any, connection: Any) -> None:
    """Small packets leave at once: Nagle's algorithm costs 40 ms a round trip."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
