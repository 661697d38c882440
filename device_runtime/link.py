"""One MQTT connection: messages out, messages in through a queue, and the count of both in bytes.

MQTT 3.1.1 is all that is asked of a broker, with clean sessions unless the URL says otherwise. Delivery is not trusted:
whoever sends a message sends it again until an application acknowledgement, so this layer only connects and reconnects.
"""

from __future__ import annotations

import functools
import logging
import queue
import random
import socket
import ssl
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from device_runtime.access import Access
from device_runtime.errors import BrokerError
from device_runtime.trust import MAX_SIGNED_BYTES

log = logging.getLogger(__name__)

_KEEPALIVE_S = 30
#: The wait before the n-th attempt in a row to connect is drawn from 0 to 2ⁿ seconds, with n up to this.
_MAX_BACKOFF = 5

#: Seconds that a broker has to acknowledge a message.
_UNACKNOWLEDGED_S = 30.0
#: Most seconds after which subscriptions that were not granted are asked for again, where that is not final.
_RESUBSCRIBE_S = 5.0
#: Bytes received and not yet taken, beyond which messages are dropped: their senders send them again.
_MOST_WAITING = 1 << 26


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

    def __init__(
        self, access: Access | str, client_id: str, subscriptions: Sequence[str], will: Will | None = None
    ) -> None:
        """Prepare a connection.

        Args:
            access: the broker and the login, or a URL as :meth:`Access.parse` takes it.
            client_id: unique at the broker.
            subscriptions: topic filters, subscribed at every connect.
            will: for the broker to publish.

        Raises:
            BrokerError: the URL is not one of a broker, or the authority not a certificate.
        """
        self.access = access = Access.parse(access) if isinstance(access, str) else access
        self.events: queue.Queue[Any] = queue.Queue()
        self.bytes_up = 0
        self.bytes_down = 0
        self._queued = self._taken = 0  # bytes, each counted by one thread
        self._subscriptions = list(subscriptions)
        self._connected = threading.Event()
        self._refusal = ""
        self._failure = ""
        self._attempts = 0
        self._granted_at = 0.0
        self._unacknowledged: deque[tuple[float, mqtt.MQTTMessageInfo]] = deque()  # since when
        self._client = mqtt.Client(
            CallbackAPIVersion.VERSION2,
            client_id=client_id,
            clean_session=not access.keeps_session,
            protocol=mqtt.MQTTv311,
            transport="websockets" if access.websockets else "tcp",
        )
        self._client.max_inflight_messages_set(0)  # no limit: one lost acknowledgement in twenty would be the end
        if access.websockets:
            self._client.ws_set_options(path=access.path)
        if access.tls:
            self._client.tls_set_context(_tls_context(access))
        if access.user:
            self._client.username_pw_set(access.user, access.password)
        if will is not None:
            self._client.will_set(will.topic, will.payload, qos=1, retain=True)
        self._client.on_socket_open = _guarded(_disable_nagle)
        self._client.on_connect = _guarded(self._on_connect)
        self._client.on_connect_fail = _guarded(self._on_connect_fail)
        self._client.on_disconnect = _guarded(self._on_disconnect)
        self._client.on_subscribe = _guarded(self._on_subscribe)
        self._client.on_message = _guarded(self._on_message)

    def connect(self, timeout: float = 15.0) -> None:
        """Connect and subscribe; from then on the link reconnects by itself.

        Raises:
            BrokerError: nobody answers within ``timeout`` seconds, the broker refuses, or its certificate is not good.
        """
        self._client.connect_async(self.access.host, self.access.port, keepalive=_KEEPALIVE_S)
        self._client.loop_start()
        end = time.monotonic() + timeout
        while not self._connected.wait(0.05):
            if self._refusal or time.monotonic() > end:
                self._client.loop_stop()
                failure = f" ({self._failure})" if self._failure else ""
                silence = f"does not answer within {timeout:g} s{failure}; start it, or check the URL"
                raise BrokerError(f"the broker at {self.access.place} {self._refusal or silence}")

    def publish(self, topic: str, payload: bytes, retain: bool = False) -> None:
        """Send a message, unless the connection is down: whoever needs it sent sends it again."""
        if self._client.is_connected():
            self._watch_acknowledgements()
            message = self._client.publish(topic, payload, qos=1, retain=retain)
            if message.rc == mqtt.MQTT_ERR_SUCCESS:  # or else the connection has just broken
                self._unacknowledged.append((time.monotonic(), message))
                self.bytes_up += len(payload)

    def _watch_acknowledgements(self) -> None:
        """Connect anew when the broker owes an acknowledgement for too long: it has lost messages, or its way."""
        waiting = self._unacknowledged
        while waiting and waiting[0][1].is_published():
            waiting.popleft()
        if waiting and time.monotonic() > max(waiting[0][0], self._granted_at) + _UNACKNOWLEDGED_S:
            waiting.clear()
            log.warning("the broker at %s leaves messages unacknowledged; connecting anew", self.access.place)
            connection = self._client.socket()
            if isinstance(connection, socket.socket):  # a websocket is none, and ends by its keepalive
                with suppress(OSError):  # it may be gone already
                    connection.shutdown(socket.SHUT_RDWR)

    def next(self, timeout: float) -> Any | None:
        """The next event, or None when there is none for ``timeout`` seconds."""
        events = self.take(timeout, 1)
        return events[0] if events else None

    def take(self, timeout: float, most: int) -> list[Any]:
        """What has happened, at most so many events; waits up to ``timeout`` seconds for the first."""
        events: list[Any] = []
        try:
            events.append(self.events.get(timeout=max(timeout, 0.0)))
            while len(events) < most:
                events.append(self.events.get_nowait())
        except queue.Empty:
            pass
        self._taken += sum(_size(event) for event in events if isinstance(event, Received))
        return events

    def close(self, timeout: float = 5.0) -> None:
        """Wait until the broker has what was sent (for ``timeout`` seconds at most) and disconnect."""
        end = time.monotonic() + timeout
        while self._client.is_connected() and time.monotonic() < end:
            if all(message.is_published() for _, message in self._unacknowledged):
                break
            time.sleep(0.01)
        self._client.disconnect()
        self._client.loop_stop()

    def _on_connect(self, client: mqtt.Client, userdata: Any, flags: Any, reason: Any, properties: Any) -> None:
        if not reason.is_failure:
            self._subscribe()
        elif reason == "Server unavailable":  # a node of a cluster that has lost the others, say
            self._failure = str(reason)
        else:
            self._refuse(f"refuses: {reason}; check user name and password")

    def _subscribe(self) -> None:
        self._client.subscribe([(topic, 1) for topic in self._subscriptions])

    def _on_connect_fail(self, client: mqtt.Client, userdata: Any) -> None:
        error = sys.exc_info()[1]  # paho calls from where it handles the exception, and does not pass it on
        if isinstance(error, ssl.SSLCertVerificationError):
            reason = error.verify_message.rstrip(".")
            self._refuse(
                f"shows a certificate that cannot be trusted: {reason}; use this broker's own access file, a host name "
                "in its certificate and a right clock"
            )
        elif isinstance(error, OSError):
            self._failure = error.strerror or str(error)
        self._back_off()

    def _on_disconnect(self, client: mqtt.Client, userdata: Any, flags: Any, reason: Any, properties: Any) -> None:
        if self._granted_at and time.monotonic() - self._granted_at > _KEEPALIVE_S:
            self._attempts = 0
        self._granted_at = 0.0
        self._back_off()

    def _on_subscribe(self, client: mqtt.Client, userdata: Any, mid: int, reasons: Any, properties: Any) -> None:
        if any(reason.is_failure for reason in reasons):
            self._refuse("refuses: it does not grant the subscriptions; check the rights of this user")
            again = threading.Timer(random.uniform(1, _RESUBSCRIBE_S), self._subscribe)
            again.daemon = True
            again.start()
            return
        self._refusal = ""
        self._granted_at = time.monotonic()
        self._connected.set()
        self.events.put(Connected())

    def _refuse(self, refusal: str) -> None:
        """What :meth:`connect` raises; once it has returned, people are told and the link tries again."""
        self._refusal = refusal
        if self._connected.is_set():
            log.warning("the broker at %s %s", self.access.place, refusal)

    def _back_off(self) -> None:
        """Draw the wait before the next attempt at random, so that many devices do not come back in step."""
        self._attempts = min(self._attempts + 1, _MAX_BACKOFF)
        wait = random.uniform(0, 2**self._attempts)
        self._client.reconnect_delay_set(wait, wait)  # type: ignore[arg-type]  # it takes fractions as well

    def _on_message(self, client: mqtt.Client, userdata: Any, message: mqtt.MQTTMessage) -> None:
        self.bytes_down += len(message.payload)
        size = _size(message)
        if len(message.payload) <= MAX_SIGNED_BYTES and self._queued - self._taken + size <= _MOST_WAITING:
            self._queued += size
            self.events.put(Received(message.topic, bytes(message.payload)))


def _size(message: Received | mqtt.MQTTMessage) -> int:
    """Bytes of memory, roughly, that a message takes while it waits."""
    return len(message.payload) + len(message.topic) + 200


def _disable_nagle(client: mqtt.Client, userdata: Any, connection: Any) -> None:
    """Small packets leave at once: Nagle's algorithm costs 40 ms a round trip."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _guarded(callback: Callable[..., None]) -> Callable[..., None]:
    """A callback that tells of an exception, which would end paho's thread without a word."""

    @functools.wraps(callback)
    def guarded(*arguments: Any) -> None:
        try:
            callback(*arguments)
        except Exception:
            log.exception("the connection to the broker met an error of the program")

    return guarded


def _tls_context(access: Access) -> ssl.SSLContext:
    """Trusts the access's authority and nobody else, or without one those of the system; checks the host's name."""
    try:
        context = ssl.create_default_context(cadata=access.authority or None)
    except (ssl.SSLError, ValueError, TypeError):
        raise BrokerError(
            f"the authority in the access to {access.place} is not a certificate; make the access file anew"
        ) from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context
