"""paho's MQTT client for an access, in either version: what a connection needs of the broker, and how it may end."""

from __future__ import annotations

import functools
import logging
import math
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, cast

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from fedspzo.device_runtime.errors import BrokerError
from fedspzo.device_runtime.link.access import Access

log = logging.getLogger(__name__)

_KEEPALIVE_S = 30
#: Seconds that a broker keeps a session (MQTT 5), where the URL asks for it.
_SESSION_S = 86_400
#: Most seconds that MQTT can say.
_LONGEST_S = (1 << 32) - 1


@dataclass(frozen=True)
class Will:
    """What the broker publishes, retained, when the connection breaks."""

    topic: str
    payload: bytes


class _Tls:
    """Stands for a TLS context in paho's client, which takes one for good, while the authority may change."""

    check_hostname = True

    def __init__(self, current: Callable[[], Access]) -> None:
        self._current = current
        _tls_context(current())  # raises where the authority is no certificate

    def wrap_socket(self, *arguments: Any, **named: Any) -> ssl.SSLSocket:
        return _tls_context(self._current()).wrap_socket(*arguments, **named)


def make_client(
    current: Callable[[], Access], client_id: str, will: Will | None, version: MQTTProtocolVersion
) -> mqtt.Client:
    """A client that is yet to be started.

    Args:
        current: the access as it is when a connection is made; only its authority may change.

    Raises:
        BrokerError: the access's authority is not a certificate.
    """
    access = current()
    client = mqtt.Client(
        CallbackAPIVersion.VERSION2,
        client_id=client_id,
        clean_session=None if version == mqtt.MQTTv5 else not access.keeps_session,
        protocol=version,
        transport="websockets" if access.websockets else "tcp",
    )
    client.max_inflight_messages_set(0)  # no limit: one lost acknowledgement in twenty would be the end
    if access.websockets:
        client.ws_set_options(path=access.path)
    if access.tls:
        client.tls_set_context(cast("ssl.SSLContext", _Tls(current)))
    if access.user:
        client.username_pw_set(access.user, access.password)
    if will is not None:
        client.will_set(will.topic, will.payload, qos=1, retain=True)
    return client


def start(client: mqtt.Client, access: Access) -> None:
    """Connect in a thread of the client's own, again and again until it is told to disconnect."""
    if client.protocol != mqtt.MQTTv5:
        client.connect_async(access.host, access.port, _KEEPALIVE_S)
    else:
        properties = Properties(PacketTypes.CONNECT)
        if access.keeps_session:
            properties.SessionExpiryInterval = _SESSION_S
        clean = not access.keeps_session
        client.connect_async(access.host, access.port, _KEEPALIVE_S, clean_start=clean, properties=properties)
    client.loop_start()


@functools.lru_cache(maxsize=64)
def expiring(seconds: float) -> Properties:
    """Has the broker drop a message (MQTT 5) that it could not deliver within ``seconds``."""
    properties = Properties(PacketTypes.PUBLISH)
    properties.MessageExpiryInterval = min(math.ceil(seconds), _LONGEST_S)
    return properties


def _tls_context(access: Access) -> ssl.SSLContext:
    """Trusts the access's authority and nobody else, or without one those of the system; checks the host's name."""
    try:
        context = ssl.create_default_context(cadata=access.authority or None)
    except (ssl.SSLError, ValueError, TypeError):
        raise BrokerError(
            "access.authority",
            f"the authority in the access to {access.place} is not a certificate; make the access file again",
        ) from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def check_certificate(access: Access, timeout: float) -> None:
    """Raise BrokerError unless the broker shows a certificate by an access's authority within some seconds."""
    context = _tls_context(access)
    try:
        with (
            socket.create_connection((access.host, access.port), timeout) as plain,
            context.wrap_socket(plain, server_hostname=access.host),
        ):
            pass
    except OSError as error:
        raise BrokerError(
            "access.authority-not-shown",
            f"the broker at {access.place} shows no certificate by the authorities that the server names"
            f" ({error}), so those before stay trusted; take the steps of fedspzo broker rotate in their order",
        ) from None


def hang_up(connection: Any) -> None:
    """End a connection without a word; the client notices and connects again."""
    if connection is not None:
        with suppress(OSError):  # it may be gone already
            raw_socket(connection).shutdown(socket.SHUT_RDWR)


def raw_socket(connection: Any) -> socket.socket:
    """The socket below a connection of paho's; that over websockets is wrapped."""
    below: socket.socket = connection if isinstance(connection, socket.socket) else connection._socket
    return below


def guarded(callback: Callable[..., None]) -> Callable[..., None]:
    """A callback that tells of an exception, which would end paho's thread without a word."""

    @functools.wraps(callback)
    def guarded(*arguments: Any) -> None:
        try:
            callback(*arguments)
        except Exception:
            log.exception("the connection to the broker met an error of the program")

    return guarded
