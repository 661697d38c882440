"""A RabbitMQ cluster of three nodes for tests, and plain MQTT clients for it.

A test that takes the fixture `cluster` finds all nodes running; it may kill some.
"""

from __future__ import annotations

import shlex
import subprocess
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
import pytest
from patience import PATIENCE_S, wait_until

from fedspzo.broker.mqtt.logins import new_password
from fedspzo.broker.mqtt.rabbitmq import RabbitMQ

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "rabbitmq-cluster"
INSTALLED = Path("/usr/lib/rabbitmq/bin/rabbitmq-server").exists()
NODES = (1, 2, 3)


class Cluster:
    """The nodes 1, 2 and 3; a user that this cluster made is known to it by its name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.passwords: dict[str, str] = {}
        self._dead: set[int] = set()
        self._run("local", folder, len(NODES))
        self.ports = dict(zip(NODES, map(int, (folder / "ports").read_text().split()), strict=True))

    def url(self, node: int, user: str) -> str:
        """Where a user finds a node, with its password."""
        return f"mqtt://{user}:{self.passwords[user]}@127.0.0.1:{self.ports[node]}"

    def urls(self, user: str) -> list[str]:
        return [self.url(node, user) for node in NODES]

    def rabbitmq(self) -> RabbitMQ:
        """The users, over a node that runs."""
        node = next(node for node in NODES if node not in self._dead)
        return RabbitMQ((str(SCRIPT), "ctl", str(self.folder), str(node)))

    @property
    def enroll_option(self) -> list[str]:
        """What has a command make or take away logins here."""
        return ["--rabbitmq", shlex.join(self.rabbitmq().command)]

    def ctl(self, *arguments: str) -> str:
        """The output of rabbitmqctl."""
        return subprocess.run(
            [*self.rabbitmq().command, *arguments], check=True, capture_output=True, text=True, timeout=PATIENCE_S
        ).stdout

    def add_user(self, name: str, jobs: Sequence[str] = ()) -> None:
        """Make a device's user, or with the name 'server' the server's."""
        self.passwords[name] = new_password()
        self.rabbitmq().set_passwords({name: self.passwords[name]}, jobs)

    def add_observer(self) -> None:
        """A user 'observer' that may read every topic there is."""
        self.passwords["observer"] = "observer"
        self.ctl("add_user", "observer", "observer")
        self.ctl("set_permissions", "observer", ".*", ".*", ".*")

    def pid(self, node: int) -> int:
        return int((self.folder / f"node{node}" / "pid").read_text())

    def kill(self, node: int) -> None:
        """Kill a node with SIGKILL."""
        self._run("kill", self.folder, node)
        self._dead.add(node)

    def start(self, node: int) -> None:
        """Start a killed node and wait until it serves."""
        self._run("start", self.folder, node)
        self._dead.discard(node)

    def revive(self) -> None:
        """Start whatever was killed."""
        for node in sorted(self._dead):
            self.start(node)

    def stop(self) -> None:
        self._run("stop", self.folder)

    def _run(self, *arguments: object) -> None:
        done = subprocess.run([SCRIPT, *map(str, arguments)], capture_output=True, text=True, timeout=PATIENCE_S)
        assert done.returncode == 0, done.stderr


@pytest.fixture(scope="session")
def running_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if not INSTALLED:
        pytest.skip("rabbitmq-server is not installed")
    running = Cluster(tmp_path_factory.mktemp("rabbitmq") / "cluster")
    yield running
    running.stop()


@pytest.fixture
def cluster(running_cluster: Cluster) -> Cluster:
    running_cluster.revive()
    return running_cluster


class Client:
    """One connection, without reconnecting; what it received and how the broker answered.

    Attributes:
        received: (topic, payload) of every message.
        refusal: why the broker refused the connection, or empty.
        ended: set once the broker has ended the connection.
    """

    def __init__(
        self,
        port: int,
        client_id: str,
        user: str | None,
        password: str | None,
        clean: bool = True,
        will: tuple[str, bytes] | None = None,
    ) -> None:
        self.received: list[tuple[str, bytes]] = []
        self.refusal = ""
        self.session_present = False
        self.ended = threading.Event()
        self._answered = threading.Event()
        self._granted = threading.Event()
        self._client = mqtt.Client(
            mqtt.CallbackAPIVersion.VERSION2, client_id, clean, protocol=mqtt.MQTTv311, reconnect_on_failure=False
        )
        # The checks of a decent client: an attacker's has none.
        vars(self._client)["_raise_for_invalid_topic"] = lambda topic: None
        vars(self._client)["_filter_wildcard_len_check"] = lambda topic: mqtt.MQTT_ERR_SUCCESS
        self._client.on_connect = self._on_connect
        self._client.on_subscribe = lambda _c, _u, _m, reasons, _p: (
            any(r.is_failure for r in reasons) or (self._granted.set())
        )
        self._client.on_message = lambda _c, _u, message: self.received.append((message.topic, message.payload))
        self._client.on_disconnect = lambda *_: self.ended.set()
        if user is not None:
            self._client.username_pw_set(user, password)
        if will is not None:
            self._client.will_set(*will, qos=1, retain=True)
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()
        assert self._answered.wait(PATIENCE_S) or self.ended.is_set()

    def _on_connect(self, _client: mqtt.Client, _userdata: Any, flags: Any, reason: Any, _properties: Any) -> None:
        self.refusal = str(reason) if reason.is_failure else ""
        self.session_present = flags.session_present
        self._answered.set()

    def subscribe(self, *filters: str, qos: int = 1) -> bool:
        """Whether the broker grants all of them."""
        self._granted.clear()
        self._client.subscribe([(topic, qos) for topic in filters])
        wait_until(lambda: self._granted.is_set() or self.ended.is_set())
        return self._granted.is_set()

    def publish(self, topic: str, payload: bytes, retain: bool = False) -> bool:
        """Whether the broker acknowledges a message at QoS 1."""
        message = self._client.publish(topic, payload, qos=1, retain=retain)
        if message.rc == mqtt.MQTT_ERR_SUCCESS:
            wait_until(lambda: message.is_published() or self.ended.is_set())
        return message.rc == mqtt.MQTT_ERR_SUCCESS and message.is_published()

    def payloads(self) -> list[bytes]:
        return [payload for _, payload in list(self.received)]

    def drop(self) -> None:
        """End the connection without DISCONNECT, so that the broker publishes the will."""
        connection = self._client.socket()
        assert connection is not None
        connection.shutdown(2)
        self._client.loop_stop()

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


class Roamer:
    """A subscriber with a persistent session that goes to the next node when its own is gone."""

    def __init__(self, ports: Sequence[int], client_id: str, user: str, password: str, *filters: str) -> None:
        self.received: list[bytes] = []
        self.connections: list[tuple[int, bool]] = []
        self.subscribed = threading.Event()
        self._ports = list(ports)
        self._filters = [(topic, 1) for topic in filters]
        self._stop = threading.Event()
        self._client = mqtt.Client(
            mqtt.CallbackAPIVersion.VERSION2, client_id, False, protocol=mqtt.MQTTv311, reconnect_on_failure=False
        )
        self._client.username_pw_set(user, password)
        self._client.on_connect = self._on_connect
        self._client.on_subscribe = lambda *_: self.subscribed.set()
        self._client.on_message = lambda _c, _u, message: self.received.append(message.payload)
        self._thread = threading.Thread(target=self._roam, daemon=True)
        self._thread.start()

    def _roam(self) -> None:
        while not self._stop.is_set():
            try:
                self._client.connect("127.0.0.1", self._ports[0])
                self._client.loop_forever()
            except OSError:
                self._stop.wait(0.2)
            self._ports.append(self._ports.pop(0))

    def _on_connect(self, client: mqtt.Client, _userdata: Any, flags: Any, reason: Any, _properties: Any) -> None:
        if not reason.is_failure:
            self.connections.append((self._ports[0], flags.session_present))
            client.subscribe(self._filters)

    def close(self) -> None:
        self._stop.set()
        self._client.disconnect()
        self._thread.join(10)
