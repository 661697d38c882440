"""The link over real brokers that speak MQTT 5, or only 3.1.1, and what it makes of 5."""

from __future__ import annotations

import logging
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import paho.mqtt.client as mqtt
import pytest
from patience import PATIENCE_S, wait_until
from plain_mosquitto import plain_mosquitto
from refusals import raises

from fedspzo.broker.mqtt.embedded import spawn_broker
from fedspzo.broker.mqtt.mosquitto import ManagedBroker
from fedspzo.broker.mqtt.mosquitto_program import installed
from fedspzo.device_runtime.errors import BrokerError
from fedspzo.device_runtime.link.access import Access
from fedspzo.device_runtime.link.client import Will
from fedspzo.device_runtime.link.connection import Link
from fedspzo.device_runtime.link.events import Connected, Received

needs_mosquitto = pytest.mark.skipif(not installed(), reason="mosquitto is not installed")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@contextmanager
def linked(access: Access | str, topic: str, will: Will | None = None) -> Iterator[Link]:
    link = Link(access, access.user if isinstance(access, Access) else "a", [topic], will)
    link.connect(PATIENCE_S)
    try:
        assert link.next(PATIENCE_S) == Connected()
        yield link
    finally:
        link.close()


def assert_delivers(link: Link, topic: str) -> None:
    link.publish(topic, b"there and back", useful=60)
    assert link.next(PATIENCE_S) == Received(topic, b"there and back")


def let_in(broker: ManagedBroker, *names: str) -> list[Access]:
    """New users, once the running broker knows them."""
    accesses = broker.add_users(names)
    for access in accesses:
        wait_until(lambda: lets_in(access))  # noqa: B023
    return accesses


def lets_in(access: Access) -> bool:
    with suppress(BrokerError), linked(access, f"fl/v1/j/down/{access.user}"):
        return True
    return False


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ManagedBroker]:
    with ManagedBroker(tmp_path_factory.mktemp("broker"), port=free_port()) as running:
        yield running


def test_the_embedded_broker_is_spoken_to_in_3_1_1() -> None:
    for will in (None, Will("state", b"gone")):
        with spawn_broker() as broker, linked(broker.url, "topic", will=will) as link:
            assert link.version == mqtt.MQTTv311
            assert_delivers(link, "topic")


def hang_up(connection: socket.socket) -> None:
    """What RabbitMQ 3.10 does."""


def say_nothing(connection: socket.socket) -> None:
    """What amqtt 0.12 does, given a will."""
    connection.recv(1)


def take_little(connection: socket.socket) -> None:
    """Accept the connection and a subscription, and end it at the first message: receive maximum exceeded."""
    connection.sendall(b"\x20\x03\x00\x00\x00")
    connection.sendall(b"\x90\x04" + connection.recv(4096)[2:4] + b"\x00\x01")
    connection.recv(4096)
    connection.sendall(b"\xe0\x01\x93")


WEBSOCKETS = """
import asyncio, sys
from amqtt.broker import Broker

async def serve():
    anyone = {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}}
    listeners = {"default": {"type": "ws", "bind": f"127.0.0.1:{sys.argv[1]}"}}
    await Broker({"listeners": listeners, "plugins": anyone}).start()
    print("there", flush=True)
    await asyncio.sleep(600)

asyncio.run(serve())
"""


def test_a_broker_over_websockets_that_says_nothing_in_5(caplog: pytest.LogCaptureFixture) -> None:
    """amqtt does not answer MQTT 5 with a will, which every device has."""
    port = free_port()
    broker = subprocess.Popen(
        [sys.executable, "-c", WEBSOCKETS, str(port)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        assert broker.stdout is not None
        assert broker.stdout.readline() == "there\n"
        with linked(f"ws://127.0.0.1:{port}", "topic", Will("state", b"gone")) as link:
            assert link.version == mqtt.MQTTv311
            assert_delivers(link, "topic")
    finally:
        broker.kill()
        broker.wait()
    assert not [record for record in caplog.records if record.exc_info]


@pytest.mark.parametrize("manner", [hang_up, say_nothing, take_little])
def test_a_broker_that_cannot_be_used_in_5(manner: Callable[[socket.socket], None]) -> None:
    """An older broker behind a door with a manner of its own for MQTT 5, which is knocked at once."""
    seen: list[int] = []

    def pipe(source: socket.socket, sink: socket.socket) -> None:
        with source, sink, suppress(OSError):
            while data := source.recv(4096):
                sink.sendall(data)

    def serve(listener: socket.socket, port: int) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            data = connection.recv(4096)
            seen.append(data[8])
            if data[8] == mqtt.MQTTv5:
                with connection:
                    manner(connection)
                continue
            inner = socket.create_connection(("127.0.0.1", port))
            inner.sendall(data)
            for way in ((connection, inner), (inner, connection)):
                threading.Thread(target=pipe, args=way, daemon=True).start()

    with spawn_broker() as broker, socket.create_server(("127.0.0.1", 0)) as door:
        threading.Thread(target=serve, args=(door, broker.port), daemon=True).start()
        with linked(f"mqtt://127.0.0.1:{door.getsockname()[1]}", "topic") as link:
            if manner is take_little:
                link.publish("topic", b"too much")
                assert link.next(PATIENCE_S) == Connected()
            assert link.version == mqtt.MQTTv311
            assert_delivers(link, "topic")
            assert link.next(2.0) is None
            assert seen == [mqtt.MQTTv5, mqtt.MQTTv311]


@needs_mosquitto
def test_mosquitto_is_spoken_to_in_5_and_what_comes_after_it_in_3_1_1(tmp_path: Path) -> None:
    port = free_port()
    with ManagedBroker(tmp_path, port=free_port(), plain_port=port) as broker:
        access = replace(let_in(broker, "server")[0], url=f"mqtt://127.0.0.1:{port}", authority="")
        link = Link(access, "server", ["fl/v1/j/round"])
        link.connect(PATIENCE_S)
        assert link.next(PATIENCE_S) == Connected()
        assert link.version == mqtt.MQTTv5
        assert_delivers(link, "fl/v1/j/round")
    with ManagedBroker(tmp_path, port=broker.port, plain_port=port):
        assert link.next(PATIENCE_S) == Connected()
        assert link.version == mqtt.MQTTv5
    with spawn_broker(port):
        assert link.next(PATIENCE_S) == Connected()
        assert link.version == mqtt.MQTTv311
        assert_delivers(link, "fl/v1/j/round")
        link.close()


def kept(access: Access, topic: str, source: Link) -> list[object]:
    """What a broker had for a client that comes back, which comes before or after the connection's own event."""
    link = Link(access, access.user, [topic])
    link.connect(PATIENCE_S)
    source.publish(topic, b"new")
    events = []
    while (event := link.next(PATIENCE_S)) != Received(topic, b"new"):
        events.append(event)
    link.close()
    events.remove(Connected())
    return events


@needs_mosquitto
def test_messages_that_are_useless_when_late_are_not_kept(broker: ManagedBroker) -> None:
    server, device = let_in(broker, "server", "sleeper")
    device = replace(device, url=f"{device.url}?session=keep")
    topic = "fl/v1/j/down/sleeper"
    with linked(device, topic):
        pass
    with linked(server, "fl/v1/j/up/+") as source:
        source.publish(topic, b"too late", useful=1)
        source.publish(topic, b"lasting")
        time.sleep(2.5)
        assert kept(device, topic, source) == [Received(topic, b"lasting")]
    with linked(replace(device, url=broker.url), topic):
        pass  # a clean start ends the session that was kept
    with linked(server, "fl/v1/j/up/+") as source:
        source.publish(topic, b"to nobody")
        assert kept(device, topic, source) == []


@needs_mosquitto
@pytest.mark.parametrize("said", ["", "?packet=1000"])
def test_what_a_broker_does_not_take_is_not_sent(tmp_path: Path, caplog: pytest.LogCaptureFixture, said: str) -> None:
    """The connection stays, and what comes after is delivered; the broker's word and the URL's, the smaller holds."""
    with (
        plain_mosquitto(tmp_path, "max_packet_size 2000") as url,
        caplog.at_level(logging.WARNING),
        linked(url + said, "t") as link,
    ):
        room = link.packets.room("t")
        assert 0 < (1000 if said else 2000) - room < 40
        for size in (5000, room + 1, room + 1, room):
            link.publish("t", b"x" * size)
        assert link.next(PATIENCE_S) == Received("t", b"x" * room)
        assert_delivers(link, "t")
    told = [text for record in caplog.records if "takes packets of at most" in (text := record.getMessage())]
    assert len(told) == 2
    assert all(f"needs {size}; raise its limit" in text for size, text in zip((5000, room + 1), told, strict=True))


def test_a_url_says_how_large_packets_may_be() -> None:
    both = Access("mqtt://h?session=keep&packet=2000")
    assert (both.keeps_session, both.packet_bytes) == (True, 2000)
    assert Access("mqtt://h").packet_bytes == 0
    for query in ("packet=", "packet=99", "packet=x", "session=keep&", "packet=2000&more=1"):
        with raises("access.url", "mqtt://h"):
            Access(f"mqtt://h?{query}")


@needs_mosquitto
@pytest.mark.slow
def test_two_clients_of_one_id_are_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Mosquitto 2.0 gives no reason when it ends the older connection."""
    with plain_mosquitto(tmp_path) as url, caplog.at_level(logging.WARNING):
        links = [Link(url, "twin", ["t"]) for _ in range(2)]
        for link in links:
            link.connect(PATIENCE_S)
        wait_until(lambda: caplog.text.count("another client seems to use the same id") == 2)
        for link in links:
            link.close(1.0)


@needs_mosquitto
def test_a_denied_message_is_told_once(broker: ManagedBroker, caplog: pytest.LogCaptureFixture) -> None:
    (device,) = let_in(broker, "curious")
    with caplog.at_level(logging.WARNING), linked(device, "fl/v1/j/round") as link:
        for _ in range(3):
            link.publish("fl/v1/j/up/another", b"forged")
        link.publish("fl/v1/j/up/curious", b"honest")
    assert caplog.text.count("refuses a message: Not authorized; check what user 'curious' may write") == 1
