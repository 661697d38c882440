"""The embedded broker, seen by real paho clients."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Empty, Queue
from threading import Event

import pytest
from patience import PATIENCE_S, wait_until
from refusals import raises

pytest.importorskip("amqtt")
mqtt = pytest.importorskip("paho.mqtt.client")

from fedspzo.broker.mqtt.embedded import HOST, EmbeddedBroker, run, spawn_broker  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]

RUN = "from fedspzo.broker.mqtt.embedded import run; run(0, lambda port: print(port, flush=True))"

SPAWN = "import fedspzo; b = fedspzo.spawn_broker(); print(b.port, b.pid, flush=True); input()"

CLIENT_WITH_WILL = """
import sys
import paho.mqtt.client as mqtt
client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv311)
client.will_set("state/d1", b"gone", qos=1, retain=True)
client.on_connect = lambda *_: print("connected", flush=True)
client.connect("127.0.0.1", int(sys.argv[1]))
client.loop_forever()
"""


class Client:
    """A connected paho client with its received (topic, payload, retain) in a queue."""

    def __init__(self, port: int, *filters: str) -> None:
        self.received: Queue[tuple[str, bytes, bool]] = Queue()
        ready = Event()
        self.paho = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv311)
        self.paho.on_message = lambda _client, _data, m: self.received.put((m.topic, m.payload, m.retain))
        self.paho.on_connect = lambda *_: self.paho.subscribe([(name, 1) for name in filters or ("none",)])
        self.paho.on_subscribe = lambda *_: ready.set()
        self.paho.connect(HOST, port)
        self.paho.loop_start()
        assert ready.wait(PATIENCE_S), "no SUBACK"

    def publish(self, topic: str, payload: bytes, retain: bool = False) -> None:
        self.paho.publish(topic, payload, qos=1, retain=retain).wait_for_publish(PATIENCE_S)

    def next(self) -> tuple[str, bytes, bool]:
        return self.received.get(timeout=PATIENCE_S)

    def close(self) -> None:
        self.paho.disconnect()
        self.paho.loop_stop()


@contextmanager
def clients(port: int) -> Iterator[Callable[..., Client]]:
    """A function that connects clients with the filters given to it; all are closed at the end."""
    opened: list[Client] = []

    def connect(*filters: str) -> Client:
        opened.append(Client(port, *filters))
        return opened[-1]

    try:
        yield connect
    finally:
        for client in opened:
            client.close()


@contextmanager
def python(code: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    command, pipe = [sys.executable, "-c", code, *arguments], subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def accepts(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((HOST, port)) == 0


@pytest.fixture(scope="module")
def broker() -> Iterator[EmbeddedBroker]:
    with spawn_broker() as running:
        yield running


@pytest.fixture
def connect(broker: EmbeddedBroker) -> Iterator[Callable[..., Client]]:
    with clients(broker.port) as function:
        yield function


@pytest.mark.parametrize("size", [0, 300, 64 * 1024])
def test_round_trip(connect: Callable[..., Client], size: int) -> None:
    subscriber, publisher = connect("down/+"), connect()
    publisher.publish("down/d1", bytes(size))
    assert subscriber.next() == ("down/d1", bytes(size), False)


def test_url_names_the_port(broker: EmbeddedBroker) -> None:
    assert broker.url == f"mqtt://127.0.0.1:{broker.port}"
    assert accepts(broker.port)


def test_retained_message_until_cleared(connect: Callable[..., Client]) -> None:
    publisher = connect()
    publisher.publish("round/now", b"7", retain=True)
    assert connect("round/+").next() == ("round/now", b"7", True)
    publisher.publish("round/now", b"", retain=True)
    latecomer = connect("round/+")
    publisher.publish("round/other", b"x")
    assert latecomer.next() == ("round/other", b"x", False)


def test_retained_messages_reach_subscribers_only(connect: Callable[..., Client]) -> None:
    watcher, publisher = connect("birth/+"), connect()
    publisher.publish("birth/d1", b"up", retain=True)
    assert watcher.next() == ("birth/d1", b"up", False)
    other = connect("down/d2")
    publisher.publish("down/d2", b"x")
    assert other.next() == ("down/d2", b"x", False)
    with pytest.raises(Empty):
        other.received.get_nowait()


def test_will_after_kill(broker: EmbeddedBroker, connect: Callable[..., Client]) -> None:
    watcher = connect("state/+")
    with python(CLIENT_WITH_WILL, str(broker.port)) as doomed:
        assert first_line(doomed) == "connected"
        doomed.kill()
        assert watcher.next() == ("state/d1", b"gone", False)
    assert connect("state/+").next() == ("state/d1", b"gone", True)


def test_sigterm_and_sigint_end_it_cleanly_and_quietly() -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        with python(RUN) as process:
            with clients(int(first_line(process))) as connect:
                connect("down/d1").publish("down/d1", b"x")
                process.send_signal(number)
                output, errors = process.communicate(timeout=PATIENCE_S)
            assert (process.returncode, output, errors) == (0, "", "")


def test_close_stops_it_and_may_be_repeated() -> None:
    with spawn_broker() as running:
        running.close()
        assert not accepts(running.port)
        assert running.process.returncode == 0


def test_ends_with_its_parent() -> None:
    with python(SPAWN) as parent:
        port, pid = map(int, first_line(parent).split())
        assert accepts(port)
        parent.kill()
        wait_until(lambda: not accepts(port), lambda: f"process {pid} outlives its parent")


def test_port_taken(broker: EmbeddedBroker) -> None:
    with raises(
        "broker.embedded-not-started", f"127.0.0.1:{broker.port}", "Address already in use", "choose another port"
    ):
        spawn_broker(broker.port)


def test_slow_start_is_an_error() -> None:
    with raises("broker.embedded-not-started", "0.01 s"):
        spawn_broker(timeout_s=0.01)


def test_amqtt_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "amqtt.broker", None)
    with raises("broker.library-missing", "amqtt", "[server]"):
        run()
