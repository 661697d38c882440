"""One MQTT connection: messages out, messages in through a queue, and the count of both in bytes.

It speaks MQTT 5 where the broker does, else 3.1.1, with clean sessions unless the URL says otherwise. Delivery is not
trusted: whoever sends a message sends it again until an application acknowledgement, so this layer only connects and
reconnects.
"""

from __future__ import annotations

import functools
import logging
import random
import socket
import ssl
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import paho.mqtt.client as mqtt
from paho.mqtt.enums import MQTTProtocolVersion

from fedspzo.device_runtime.errors import BrokerError
from fedspzo.device_runtime.link.access import Access
from fedspzo.device_runtime.link.client import (
    Will,
    check_certificate,
    expiring,
    guarded,
    hang_up,
    make_client,
    raw_socket,
    start,
)
from fedspzo.device_runtime.link.events import Connected, Events, Received
from fedspzo.device_runtime.link.packets import PacketLimit
from fedspzo.device_runtime.protocol.signing import MAX_SIGNED_BYTES

log = logging.getLogger(__name__)

#: The wait before the n-th attempt in a row to connect is drawn from 0 to 2ⁿ seconds, with n up to this.
_MAX_BACKOFF = 5
#: Seconds of a connection after which the next wait is a short one again.
_STEADY_S = 30.0
#: Seconds that a broker has to answer a CONNECT of MQTT 5, and how often one that has spoken it may let them pass.
_ANSWER_S, _SILENCES = 5.0, 3
#: Seconds that a broker has to acknowledge a message.
_UNACKNOWLEDGED_S = 30.0
#: Connections in a row that ended sooner than a copy of this client waits at most, after which there seems to be one.
_SHORTS, _SHORT_S = 3, 40.0
#: Most seconds after which subscriptions that were not granted are asked for again, where that is not final.
_RESUBSCRIBE_S = 5.0
#: Refusals that pass: of a node of a cluster that has lost the others, say.
_PASSING = frozenset({"Server unavailable", "Server busy", "Quota exceeded", "Connection rate exceeded"})


class Link:
    """A connection that reconnects by itself.

    Attributes:
        events: what happened, in order; other threads of the owner may put events of their own.
        bytes_up, bytes_down: payload bytes published and received.
        version: of MQTT, as it is spoken or tried now.
        packets: how large they may be.
    """

    def __init__(
        self,
        access: Access | str,
        client_id: str,
        subscriptions: Sequence[str],
        will: Will | None = None,
        events: Events | None = None,
    ) -> None:
        """Prepare a connection.

        Args:
            access: the broker and the login, or a URL as :meth:`Access.parse` takes it.
            client_id: unique at the broker.
            subscriptions: topic filters, subscribed at every connect.
            will: for the broker to publish.
            events: where messages wait; by default in the order of their arrival.

        Raises:
            BrokerError: the URL is not one of a broker, or the authority not a certificate.
        """
        self.access = access = Access.parse(access) if isinstance(access, str) else access
        self.events = events or Events()
        self.bytes_up = 0
        self.bytes_down = 0
        self._subscriptions = list(subscriptions)
        self._connected = threading.Event()
        self._refusal = ""
        self._failure = ""
        self._denied = False
        self.packets = PacketLimit(access)
        self._id, self._short, self._copy_told = client_id, 0, False
        self._attempts = 0
        self._granted_at = 0.0
        self._unacknowledged: deque[tuple[float, mqtt.MQTTMessageInfo]] = deque()  # since when
        self._silences = _SILENCES - 1  # a broker that never spoke MQTT 5 gets one chance
        self._answered = self._ended = False
        self._make_client = functools.partial(make_client, lambda: self.access, client_id, will)
        self._client = self._new_client(mqtt.MQTTv5)

    def certificate_end(self) -> float | None:
        """When the certificate that the broker showed ends, as Unix time; None without TLS, or while not connected."""
        connection = self._client.socket()
        try:
            shown = connection.getpeercert() if isinstance(connection, ssl.SSLSocket) else None
        except (OSError, ValueError):  # it has just ended
            return None
        return ssl.cert_time_to_seconds(str(shown["notAfter"])) if shown else None

    def trust(self, authority: str) -> None:
        """Trust other authorities (PEM text) from the next time on that it connects.

        Raises:
            BrokerError: the broker shows no certificate by one of them now; all is as before.
        """
        access = replace(self.access, authority=authority)
        if access.tls:
            check_certificate(access, _ANSWER_S)
        self.access = access

    def _new_client(self, version: MQTTProtocolVersion) -> mqtt.Client:
        self.version = version
        client = self._make_client(version)
        client.on_socket_open = guarded(self._on_socket_open)
        client.on_connect = guarded(self._on_connect)
        client.on_connect_fail = guarded(self._on_connect_fail)
        client.on_disconnect = guarded(self._on_disconnect)
        client.on_subscribe = guarded(self._on_subscribe)
        client.on_publish = guarded(self._on_publish)
        client.on_message = guarded(self._on_message)
        return client

    def connect(self, timeout: float = 15.0, stopped: Callable[[], bool] = lambda: False) -> None:
        """Connect and subscribe; from then on the link reconnects by itself.

        Args:
            stopped: asked again and again; once it holds, nobody waits for the broker any more.

        Raises:
            BrokerError: nobody answers within ``timeout`` seconds, the broker refuses, or its certificate is not good.
        """
        start(self._client, self.access)
        end = time.monotonic() + timeout
        while not (self._connected.wait(0.05) or stopped()):
            if self._refusal or time.monotonic() > end:
                self._ended = True
                self._client.loop_stop()
                if self._refusal:
                    raise BrokerError("broker.refused", f"the broker at {self.access.place} {self._refusal}")
                failure = f" ({self._failure})" if self._failure else ""
                raise BrokerError(
                    "broker.no-answer",
                    f"the broker at {self.access.place} does not answer within {timeout:g} s{failure}; start it, or"
                    " check the URL",
                )

    @property
    def connected(self) -> bool:
        """Whether the connection stands and the subscriptions are granted."""
        return self._granted_at > 0

    def publish(self, topic: str, payload: bytes, retain: bool = False, useful: float = 0.0) -> None:
        """Send a message, unless the connection is down, or it is too large: whoever needs it sent sends it again.

        Args:
            useful: seconds after which the broker may drop it undelivered, where it can; 0 for never.
        """
        client = self._client
        log.debug("%s %d bytes to %s", "sends" if client.is_connected() else "cannot send", len(payload), topic)
        if client.is_connected() and self.packets.allows(topic, len(payload)):
            self._watch_acknowledgements()
            properties = expiring(useful) if useful and client.protocol == mqtt.MQTTv5 else None
            message = client.publish(topic, payload, qos=1, retain=retain, properties=properties)
            if message.rc == mqtt.MQTT_ERR_SUCCESS:  # or else the connection has just broken
                self._unacknowledged.append((time.monotonic(), message))
                self.bytes_up += len(payload)

    def _watch_acknowledgements(self) -> None:
        """Connect again when the broker owes an acknowledgement for too long: it has lost messages, or its way."""
        waiting = self._unacknowledged
        while waiting and waiting[0][1].is_published():
            waiting.popleft()
        if waiting and time.monotonic() > max(waiting[0][0], self._granted_at) + _UNACKNOWLEDGED_S:
            waiting.clear()
            log.warning("the broker at %s leaves messages unacknowledged; connecting again", self.access.place)
            hang_up(self._client.socket())

    def next(self, timeout: float) -> Any | None:
        """The next event, or None when ``timeout`` seconds pass without one."""
        events = self.events.take(timeout, 1)
        return events[0] if events else None

    def close(self, timeout: float = 5.0) -> None:
        """Wait until the broker has what was sent (for ``timeout`` seconds at most) and disconnect."""
        self._ended = True
        end = time.monotonic() + timeout
        while self._client.is_connected() and time.monotonic() < end:
            if all(message.is_published() for _, message in self._unacknowledged):
                break
            time.sleep(0.01)
        self._client.disconnect()
        self._client.loop_stop()
        self._granted_at = 0.0

    def _on_socket_open(self, client: mqtt.Client, userdata: Any, connection: Any) -> None:
        self._answered = False
        # Small packets leave at once: Nagle's algorithm costs 40 ms a round trip.
        raw_socket(connection).setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if client.protocol == mqtt.MQTTv5:
            watch = threading.Timer(_ANSWER_S, self._end_silence, [connection])
            watch.daemon = True
            watch.start()

    def _end_silence(self, connection: Any) -> None:
        if not self._answered:
            hang_up(connection)

    def _on_connect(self, client: mqtt.Client, userdata: Any, flags: Any, reason: Any, properties: Any) -> None:
        if reason == "Unsupported protocol version":
            self._silences = _SILENCES
            return
        self._answered = True
        if not reason.is_failure:
            self.packets.learn(properties)
            if client.protocol == mqtt.MQTTv5:
                self._silences = 0
            self._subscribe()
        elif str(reason) in _PASSING:
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
        if self._granted_at and not self._ended:
            log.info("the connection to the broker at %s is lost (%s); trying again", self.access.place, reason)
        if self._granted_at and not self._ended:
            self._watch_copies(str(reason), time.monotonic() - self._granted_at)
        if self._granted_at and time.monotonic() - self._granted_at > _STEADY_S:
            self._attempts = 0
        self._granted_at = 0.0
        if reason == "Receive maximum exceeded":  # more at once than this broker takes; 3.1.1 has no such limit
            self._silences = _SILENCES
        elif not self._answered:
            self._silences += 1
        if client.protocol == mqtt.MQTTv5 and self._silences >= _SILENCES and not self._ended:
            self._step_down(client)
        else:
            self._back_off()

    def _watch_copies(self, reason: str, lasted: float) -> None:
        """Tell of another client with this one's id: a broker has one connection for an id, and ends the older one."""
        self._short = self._short + 1 if lasted < _SHORT_S else 0
        if not self._copy_told and (reason == "Session taken over" or self._short >= _SHORTS):
            self._copy_told = True
            log.warning(
                "the broker at %s ends the connection of '%s' again and again: another client seems to use the same id;"
                " if this state folder was copied, stop one of the two, and give it a folder and an id of its own",
                *(self.access.place, self._id),
                extra={"kind": "device.copied"},
            )

    def _step_down(self, client: mqtt.Client) -> None:
        """Go on in MQTT 3.1.1, at once."""
        client.loop_stop()  # its thread, which this is, ends when it returns
        self._unacknowledged = deque()
        self._client = self._new_client(mqtt.MQTTv311)
        start(self._client, self.access)

    def _on_subscribe(self, client: mqtt.Client, userdata: Any, mid: int, reasons: Any, properties: Any) -> None:
        if any(reason.is_failure for reason in reasons):
            self._refuse("refuses: it does not grant the subscriptions; check the rights of this user")
            again = threading.Timer(random.uniform(1, _RESUBSCRIBE_S), self._subscribe)
            again.daemon = True
            again.start()
            return
        self._refusal = ""
        self._granted_at = time.monotonic()
        log.info("connected to the broker at %s", self.access.place)
        self._connected.set()
        self.events.put(Connected())

    def _on_publish(self, client: mqtt.Client, userdata: Any, mid: int, reason: Any, properties: Any) -> None:
        if reason.is_failure and not self._denied:
            self._denied = True
            user = f"user '{self.access.user}'" if self.access.user else "clients without a name"
            log.warning(
                "the broker at %s refuses a message: %s; check what %s may write", self.access.place, reason, user
            )

    def _refuse(self, refusal: str) -> None:
        """What :meth:`connect` raises; once it has returned, people are told and the link tries again."""
        self._refusal = refusal
        if self._connected.is_set():
            log.warning("the broker at %s %s", self.access.place, refusal)

    def _back_off(self) -> None:
        """Draw the wait before the next attempt at random, so that many devices do not come back in step."""
        self._attempts = min(self._attempts + 1, _MAX_BACKOFF)
        wait = random.uniform(0, 2**self._attempts)
        self._client.reconnect_delay_set(wait, wait)  # type: ignore[arg-type]  # annotated as whole seconds, used as any

    def _on_message(self, client: mqtt.Client, userdata: Any, message: mqtt.MQTTMessage) -> None:
        self.bytes_down += len(message.payload)
        log.debug("received %d bytes on %s", len(message.payload), message.topic)
        if len(message.payload) <= MAX_SIGNED_BYTES:
            self.events.receive(Received(message.topic, bytes(message.payload)))
