"""What each fault of the proxy does to real clients of a real broker."""

from __future__ import annotations

import datetime
import ipaddress
import logging
import os
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from faulty_proxy import ALL, HOST, FaultyProxy
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from patience import PATIENCE_S, wait_until

MOSQUITTO = shutil.which("mosquitto", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")
QUIET_S = 0.3

pytestmark = [pytest.mark.slow, pytest.mark.skipif(MOSQUITTO is None, reason="mosquitto is not installed")]


class Mosquitto:
    """A broker on a fixed port of loopback that can be killed and started again; its log says what it received."""

    def __init__(self, folder: Path, certificate: tuple[Path, Path] | None = None) -> None:
        with socket.create_server((HOST, 0)) as probe:
            self.port: int = probe.getsockname()[1]
        self._log = folder / "mosquitto.log"
        self._config = folder / "mosquitto.conf"
        # Started by root, it would become a user who may not read a test's folder.
        lines = [f"listener {self.port} {HOST}", "allow_anonymous true", "user root"]
        if certificate is not None:
            lines += [f"certfile {certificate[0]}", f"keyfile {certificate[1]}"]
        self._config.write_text("\n".join(lines) + "\n")

    def __enter__(self) -> Mosquitto:
        with self._log.open("a") as log:
            self._process = subprocess.Popen([str(MOSQUITTO), "-v", "-c", self._config], stdout=log, stderr=log)
        wait_until(self._accepts)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    @property
    def log(self) -> str:
        return self._log.read_text()

    def _accepts(self) -> bool:
        assert self._process.poll() is None, self.log
        with suppress(OSError), socket.create_connection((HOST, self.port)):
            return True
        return False


class Client:
    """A client that reconnects at once and remembers what it got."""

    def __init__(
        self,
        port: int,
        name: str,
        *,
        tls: ssl.SSLContext | None = None,
        version: MQTTProtocolVersion = mqtt.MQTTv311,
        **connect: Any,
    ) -> None:
        self.messages: list[mqtt.MQTTMessage] = []
        self.subscriptions = 0
        self.acknowledged: list[int] = []
        self.disconnections = 0
        self.mqtt = mqtt.Client(CallbackAPIVersion.VERSION2, client_id=name, protocol=version)
        if tls is not None:
            self.mqtt.tls_set_context(tls)
        self.mqtt.on_connect = lambda client, *_: client.subscribe(f"to/{name}", qos=1)
        self.mqtt.on_subscribe = self._on_subscribe
        self.mqtt.on_disconnect = self._on_disconnect
        self.mqtt.on_message = lambda _c, _u, message: self.messages.append(message)
        self.mqtt.on_publish = lambda _c, _u, mid, *_: self.acknowledged.append(mid)
        self.mqtt.reconnect_delay_set(1, 1)
        self.mqtt.connect_async("localhost" if tls else HOST, port, **connect)
        self.mqtt.loop_start()

    def __enter__(self) -> Client:
        wait_until(lambda: self.subscriptions > 0)
        return self

    def __exit__(self, *_: object) -> None:
        self.mqtt.disconnect()
        self.mqtt.loop_stop()

    def send(self, name: str, payload: bytes | str, qos: int = 1) -> mqtt.MQTTMessageInfo:
        return self.mqtt.publish(f"to/{name}", payload, qos=qos)

    @property
    def payloads(self) -> list[bytes]:
        return [bytes(message.payload) for message in self.messages]

    def wait_for(self, *payloads: bytes) -> None:
        """Wait until exactly these arrived, and for a while whether more do."""
        wait_until(lambda: len(self.messages) >= len(payloads))
        time.sleep(QUIET_S)
        assert self.payloads == list(payloads)

    def _on_subscribe(self, *_: object) -> None:
        self.subscriptions += 1

    def _on_disconnect(self, *_: object) -> None:
        self.disconnections += 1


@pytest.fixture(autouse=True)
def no_trace(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Whatever happens, asyncio has nothing to complain about and no thread is left."""
    with caplog.at_level(logging.WARNING, "asyncio"):
        yield
    assert not caplog.records
    assert not [thread for thread in threading.enumerate() if thread.name == "faulty proxy"]


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    with Mosquitto(tmp_path) as running:
        yield running


@pytest.fixture
def proxy(broker: Mosquitto) -> Iterator[FaultyProxy]:
    with FaultyProxy(HOST, broker.port) as running:
        yield running


@pytest.fixture
def alice(proxy: FaultyProxy) -> Iterator[Client]:
    """A client behind the proxy, where the faults are."""
    with Client(proxy.port, "alice") as client:
        yield client


@pytest.fixture
def bob(broker: Mosquitto) -> Iterator[Client]:
    """A client of the broker itself."""
    with Client(broker.port, "bob") as client:
        yield client


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for localhost, which is its own authority, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.timezone.utc)
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address(HOST))]
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    paths = folder / "certificate.pem", folder / "key.pem"
    paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    paths[1].write_bytes(key.private_bytes(encoding, form, serialization.NoEncryption()))
    return paths


@pytest.mark.parametrize("version", [mqtt.MQTTv311, mqtt.MQTTv5])
def test_forwards_both_ways_in_order(proxy: FaultyProxy, bob: Client, version: MQTTProtocolVersion) -> None:
    # Remaining lengths of one to four bytes.
    payloads = [b"%d " % size * (size // 2) for size in (2, 200, 20_000, 3_000_000)] + [b"%d" % i for i in range(200)]
    with Client(proxy.port, "alice", version=version) as alice:
        for payload in payloads:
            alice.send("bob", payload)
            bob.send("alice", payload)
        bob.wait_for(*payloads)
        alice.wait_for(*payloads)
        assert alice.disconnections == 0
    wait_until(lambda: proxy.delay(ALL, 0) == 0)  # the connection's end is forwarded too
    assert not proxy.counts


def test_tls_on_both_sides(tmp_path: Path, certificate: tuple[Path, Path]) -> None:
    trusting = ssl.create_default_context(cafile=str(certificate[0]))
    serving = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    serving.load_cert_chain(*certificate)
    with socket.socket() as silent:
        with Mosquitto(tmp_path, certificate) as broker, FaultyProxy(HOST, broker.port, trusting, serving) as proxy:
            with Client(proxy.port, "alice", tls=trusting) as alice, Client(proxy.port, "bob", tls=trusting) as bob:
                alice.send("bob", b"x" * 1_000_000)
                bob.wait_for(b"x" * 1_000_000)
                assert proxy.cut("bob") == 1
                wait_until(lambda: bob.subscriptions == 2)
                proxy.delay("bob", 0.5)
                alice.send("bob", b"late")
                bob.wait_for(b"x" * 1_000_000, b"late")
            # One who does not speak TLS, one who does not trust the certificate and one who says nothing hurt nobody.
            with socket.create_connection((HOST, proxy.port)) as stranger:
                stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
                with suppress(ConnectionResetError):
                    assert stranger.recv(1) == b""
            with socket.create_connection((HOST, proxy.port)) as stranger, pytest.raises(ssl.SSLError):
                ssl.create_default_context().wrap_socket(stranger, server_hostname="localhost")
            silent.connect((HOST, proxy.port))
            with Client(proxy.port, "carol", tls=trusting):
                pass
        assert silent.recv(1) == b""


@pytest.mark.parametrize("version", [mqtt.MQTTv311, mqtt.MQTTv5])
def test_stands_still_after_a_message_of_choice(proxy: FaultyProxy, bob: Client, version: MQTTProtocolVersion) -> None:
    seen: list[tuple[str, bytes]] = []

    def watch(client: str, payload: bytes) -> bool:
        seen.append((client, payload))
        return payload == b"here"

    proxy.watch = watch
    with Client(proxy.port, "alice", version=version) as alice:
        for payload in (b"before", b"here", b"after"):
            alice.send("bob", payload, qos=0)
        bob.wait_for(b"before", b"here")
        bob.send("alice", b"down")
        time.sleep(QUIET_S)
        assert seen == [("alice", b"before"), ("alice", b"here")]
        assert not alice.messages
        proxy.thaw()
        bob.wait_for(b"before", b"here", b"after")
        alice.wait_for(b"down")


def test_cut(proxy: FaultyProxy, alice: Client, bob: Client) -> None:
    assert proxy.cut("nobody") == 0
    assert proxy.cut("alice") == 1
    wait_until(lambda: alice.subscriptions == 2)
    assert alice.disconnections == 1
    bob.send("alice", b"welcome back")
    alice.wait_for(b"welcome back")
    assert proxy.counts == {"cut": 1}


def test_cut_resets_the_connection(proxy: FaultyProxy) -> None:
    with socket.create_connection((HOST, proxy.port)) as client:
        client.sendall(b"\x10\x0f\x00\x04MQTT\x04\x02\x00\x3c\x00\x03raw")
        assert client.recv(4) == b"\x20\x02\x00\x00"
        assert proxy.cut("raw") == 1
        with pytest.raises(ConnectionResetError):
            client.recv(1)


def test_black_hole(broker: Mosquitto, proxy: FaultyProxy, alice: Client, bob: Client) -> None:
    start = time.monotonic()
    assert proxy.black_hole("alice", 2.5) == 1
    alice.send("bob", b"lost", qos=0)
    bob.send("alice", b"lost too")
    wait_until(lambda: alice.disconnections == 1)
    assert time.monotonic() - start >= 2.5
    wait_until(lambda: alice.subscriptions == 2)
    alice.send("bob", b"up")
    bob.send("alice", b"down")
    bob.wait_for(b"up")
    alice.wait_for(b"down")
    assert proxy.counts == {"black_hole": 1}


@pytest.mark.slow
def test_a_black_hole_is_half_open(broker: Mosquitto, proxy: FaultyProxy) -> None:
    """A side that hangs up is not heard on the other: the broker finds out by its keep-alive."""
    with Client(proxy.port, "alice", keepalive=1) as alice:
        assert proxy.black_hole("alice", 30) == 1
    assert alice.disconnections == 1
    wait_until(lambda: "Client alice has exceeded timeout" in broker.log)
    assert proxy.cut("alice") == 1


def test_delay(proxy: FaultyProxy, alice: Client, bob: Client) -> None:
    start = time.monotonic()
    assert proxy.delay("alice", 2.0) == 1
    for number in range(5):
        alice.send("bob", b"%d" % number)
        bob.send("alice", b"%d" % number)
    expected = [b"%d" % number for number in range(5)]
    bob.wait_for(*expected)
    alice.wait_for(*expected)
    # paho notes by the monotonic clock when a message came.
    assert min(message.timestamp for message in (*bob.messages, *alice.messages)) - start >= 2.0
    assert alice.disconnections == 0
    assert proxy.counts == {"delay": 2}


def test_a_delayed_client_that_leaves_loses_nothing(proxy: FaultyProxy, bob: Client) -> None:
    with Client(proxy.port, "alice") as alice:
        proxy.delay("alice", 0.5)
        for number in range(5):
            alice.send("bob", b"%d" % number)
    bob.wait_for(*(b"%d" % number for number in range(5)))


def test_swallowed_acknowledgement_of_the_broker(
    broker: Mosquitto, proxy: FaultyProxy, alice: Client, bob: Client
) -> None:
    assert proxy.swallow_acknowledgements("alice", 1, "down") == 1
    message = alice.send("bob", b"twice")
    bob.wait_for(b"twice")
    wait_until(lambda: proxy.counts == {"swallow_acknowledgements": 1})
    assert not message.is_published()
    proxy.cut("alice")
    bob.wait_for(b"twice", b"twice")
    wait_until(message.is_published)
    wait_until(lambda: "Received PUBLISH from alice (d1, q1" in broker.log)


def test_swallowed_acknowledgement_of_a_client(
    broker: Mosquitto, proxy: FaultyProxy, alice: Client, bob: Client
) -> None:
    assert proxy.swallow_acknowledgements("alice", 2, "up") == 1
    alice.send("bob", b"not concerned").wait_for_publish(PATIENCE_S)
    for number in range(3):
        bob.send("alice", b"%d" % number)
    alice.wait_for(b"0", b"1", b"2")
    wait_until(lambda: broker.log.count("Received PUBACK from alice") == 1)
    assert proxy.counts == {"swallow_acknowledgements": 2}


def test_duplicate_acknowledgements(broker: Mosquitto, proxy: FaultyProxy, alice: Client, bob: Client) -> None:
    assert proxy.duplicate_acknowledgements("alice", 3) == 1
    alice.send("bob", b"up").wait_for_publish(PATIENCE_S)
    for number in range(3):
        bob.send("alice", b"%d" % number)
    alice.wait_for(b"0", b"1", b"2")
    wait_until(lambda: proxy.counts == {"duplicate_acknowledgements": 3})
    # Two acknowledgements of alice are seen twice, and one of the broker's.
    wait_until(lambda: broker.log.count("Received PUBACK from alice") == 5)
    assert alice.disconnections == 0


def test_duplicate_publishes(broker: Mosquitto, proxy: FaultyProxy, alice: Client, bob: Client) -> None:
    assert proxy.duplicate_publishes("alice", 1, "up") == 1
    assert proxy.duplicate_publishes("alice", 1, "down") == 1
    alice.send("bob", b"spared", qos=0)
    for text in (b"twice", b"once"):
        alice.send("bob", text)
        bob.send("alice", text)
    bob.wait_for(b"spared", b"twice", b"twice", b"once")
    alice.wait_for(b"twice", b"twice", b"once")
    assert [message.dup for message in alice.messages] == [False, True, False]
    wait_until(lambda: "Received PUBLISH from alice (d1, q1" in broker.log)
    assert proxy.counts == {"duplicate_publishes": 2}


def test_refuse(proxy: FaultyProxy, alice: Client) -> None:
    start = time.monotonic()
    proxy.refuse(1.5)
    assert proxy.cut("alice") == 1
    wait_until(lambda: alice.subscriptions == 2)
    assert time.monotonic() - start >= 1.5
    assert proxy.counts["refuse"] >= 1


def test_broker_killed_and_restarted(broker: Mosquitto, proxy: FaultyProxy, alice: Client) -> None:
    broker.__exit__()
    wait_until(lambda: alice.disconnections == 1)
    for _ in range(3):
        with socket.create_connection((HOST, proxy.port)) as client:
            assert client.recv(1) == b""
    with broker:
        wait_until(lambda: alice.subscriptions == 2)
        alice.send("alice", b"again")
        alice.wait_for(b"again")


@pytest.mark.parametrize(
    "stream", [b"", b"\x10", b"GET / HTTP/1.1\r\n\r\n", b"\x10\xff\xff\xff\xff\xff", b"\x10\x04\x00\xffMQ", b"\x10\x00"]
)
def test_what_is_not_mqtt_hurts_its_own_connection_only(proxy: FaultyProxy, alice: Client, stream: bytes) -> None:
    with socket.create_connection((HOST, proxy.port)) as client:
        client.sendall(stream)
        client.shutdown(socket.SHUT_WR)
        client.settimeout(PATIENCE_S)
        assert client.recv(100) == b""
    alice.send("alice", b"still here")
    alice.wait_for(b"still here")
    wait_until(lambda: proxy.delay(ALL, 0) == 1)


def test_a_slow_side_slows_the_other() -> None:
    publish = b"\x30\x80\x80\x04" + b"\x00\x01t" + bytes(65_536 - 3)
    with (
        socket.create_server((HOST, 0)) as deaf,
        FaultyProxy(HOST, deaf.getsockname()[1]) as proxy,
        socket.create_connection((HOST, proxy.port), timeout=1.0) as client,
    ):

        def send_64_megabytes() -> None:
            for _ in range(1000):
                client.sendall(publish)

        with pytest.raises(TimeoutError):
            send_64_megabytes()


def test_fifty_clients_and_every_fault(broker: Mosquitto, proxy: FaultyProxy) -> None:
    names = [f"client-{number}" for number in range(50)]
    with ExitStack() as stack:
        clients = [Client(proxy.port, name) for name in names]
        for client in clients:
            stack.enter_context(client)
        strikes = [
            proxy.delay(ALL, 0.5),
            proxy.duplicate_publishes(ALL, 1, "up"),
            proxy.swallow_acknowledgements(ALL, 1, "down"),
        ]
        assert strikes == [50] * 3
        for client, name in zip(clients, names, strict=True):
            client.send(name, name)
        wait_until(lambda: all(len(client.messages) == 2 for client in clients))
        assert [client.payloads for client in clients] == [[name.encode()] * 2 for name in names]
        assert proxy.counts["duplicate_publishes"] == proxy.counts["swallow_acknowledgements"] == 50
        assert proxy.cut(ALL) == 50
        wait_until(lambda: all(client.subscriptions == 2 for client in clients))
