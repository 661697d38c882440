"""The managed mosquitto and the link to it, by real clients: certificates, logins, and who may read and write what."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import paho.mqtt.client as mqtt
import psutil
import pytest
from cryptography import x509
from paho.mqtt.enums import MQTTProtocolVersion
from patience import PATIENCE_S, wait_until
from ports import free_port
from refusals import raises

from fedspzo.broker.mqtt import mosquitto_files
from fedspzo.broker.mqtt.certificates import ensure_certificates
from fedspzo.broker.mqtt.mosquitto import ManagedBroker
from fedspzo.broker.mqtt.mosquitto_program import installed
from fedspzo.cli import main
from fedspzo.device_runtime.errors import BrokerError
from fedspzo.device_runtime.link.access import Access
from fedspzo.device_runtime.link.connection import Link
from fedspzo.device_runtime.link.events import Connected, Received

needs_mosquitto = pytest.mark.skipif(not installed(), reason="mosquitto is not installed")

START = """
import sys, pathlib
from fedspzo.broker.mqtt.mosquitto import ManagedBroker
broker = ManagedBroker(pathlib.Path(sys.argv[1]), port=int(sys.argv[2]))
broker.start()
print(broker.pid, flush=True)
input()
"""


class Client:
    """A connected paho client, with what it received and how often it was disconnected."""

    def __init__(
        self,
        access: Access,
        *filters: str,
        protocol: int = mqtt.MQTTv311,
        client_id: str = "",
        will: str | None = None,
    ) -> None:
        self.received: list[tuple[str, bytes]] = []
        self.losses = 0
        ready, subscribed = threading.Event(), threading.Event()
        self.paho = mqtt.Client(
            mqtt.CallbackAPIVersion.VERSION2, client_id or access.user, protocol=MQTTProtocolVersion(protocol)
        )
        self.paho.username_pw_set(access.user, access.password)
        if access.tls:
            self.paho.tls_set_context(ssl.create_default_context(cadata=access.authority))
        if will:
            self.paho.will_set(will, b"will", qos=1, retain=True)
        self.paho.on_connect = lambda *_: ready.set()
        self.paho.on_subscribe = lambda *_: subscribed.set()
        self.paho.on_message = lambda _client, _data, m: self.received.append((m.topic, m.payload))
        self.paho.on_disconnect = self._on_disconnect
        self.paho.connect(access.host, access.port)
        self.paho.loop_start()
        assert ready.wait(PATIENCE_S)
        if filters:
            self.paho.subscribe([(name, 1) for name in filters])
            assert subscribed.wait(PATIENCE_S)

    def _on_disconnect(self, *_: object) -> None:
        self.losses += 1

    def publish(self, topic: str, payload: bytes, qos: int = 1, retain: bool = False) -> None:
        self.paho.publish(topic, payload, qos, retain).wait_for_publish(PATIENCE_S)

    def wait_for(self, topic: str, payload: bytes) -> None:
        wait_until(lambda: (topic, payload) in self.received)

    def topics(self) -> set[str]:
        return {topic for topic, _ in self.received}

    def close(self) -> None:
        self.paho.disconnect()
        self.paho.loop_stop()

    def vanish(self) -> None:
        """Close the connection without a word, so that the broker publishes the will."""
        self.paho.loop_stop()
        connection = self.paho.socket()
        assert connection is not None
        connection.close()


@contextmanager
def client(access: Access, *filters: str, **options: object) -> Iterator[Client]:
    opened = Client(access, *filters, **options)  # type: ignore[arg-type]
    try:
        yield opened
    finally:
        opened.close()


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ManagedBroker]:
    with ManagedBroker(tmp_path_factory.mktemp("broker"), port=free_port()) as running:
        yield running


@pytest.fixture
def enroll(broker: ManagedBroker) -> Callable[[str], Access]:
    """Adds a user and waits until the running mosquitto knows it."""

    def add(name: str) -> Access:
        access = broker.add_user(name)
        wait_until(lambda: connects(access))
        return access

    return add


def connects(access: Access) -> bool:
    try:
        connect(access)
    except BrokerError:
        return False
    return True


def connect(access: Access) -> None:
    link = Link(access, access.user, [f"fl/v1/j/down/{access.user}"])
    link.connect(PATIENCE_S)
    link.close()


def test_urls() -> None:
    access = Access.parse("mqtts://me:p%40ss%3A@host.example:99")
    assert access == Access("mqtts://host.example:99", "me", "p@ss:")
    assert (access.host, access.port, access.tls, access.websockets) == ("host.example", 99, True, False)
    assert access.place == "mqtts://host.example:99"
    assert "p@ss" not in repr(access)
    ports = {"mqtt": 1883, "mqtts": 8883, "ws": 80, "wss": 443}
    assert {scheme: Access.parse(f"{scheme}://[::1]").port for scheme in ports} == ports
    assert Access.parse("wss://host").path == "/mqtt"
    assert Access.parse("wss://me:x@host/a/b").path == "/a/b"
    for url in ("host", "http://host", "mqtt://[::1", "mqtt://a..b", "mqtt://host:99999", "mqtt://host:x"):
        with raises("access.url", "mqtt://host:1883"):
            Access.parse(url)
    with pytest.raises(BrokerError) as refusal:
        Access("http://me:secret@host")
    assert "secret" not in str(refusal.value)


def test_access_files(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    access = Access("mqtts://host:1", "a", "secret", "PEM")
    access.save(path)
    assert Access.load(path) == access
    assert path.stat().st_mode & 0o777 == 0o600
    for content in ("", "[]", "{}", '{"url": 3}', '{"url": "mqtt://host", "more": ""}', "\xff"):
        path.write_text(content, encoding="latin-1")
        with raises("access.not-an-access-file", "a.json", "fedspzo enroll"):
            Access.load(path)
    with raises("access.unreadable", "missing.json"):
        Access.load(tmp_path / "missing.json")


def serial(folder: Path) -> int:
    return x509.load_pem_x509_certificate((folder / "server.pem").read_bytes()).serial_number


def test_certificates_are_renewed_and_the_authority_stays(tmp_path: Path) -> None:
    assert ensure_certificates(tmp_path, ["a.example", "10.0.0.1"])
    authority, first = (tmp_path / "ca.pem").read_bytes(), serial(tmp_path)
    assert not ensure_certificates(tmp_path, ["10.0.0.1", "a.example"])
    assert serial(tmp_path) == first
    assert ensure_certificates(tmp_path, ["b.example"])
    certificate = x509.load_pem_x509_certificate((tmp_path / "server.pem").read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["b.example", "localhost"]
    assert list(map(str, names.get_values_for_type(x509.IPAddress))) == ["127.0.0.1"]
    end = certificate.not_valid_after_utc
    assert not ensure_certificates(tmp_path, ["b.example"], end - timedelta(days=31))
    assert ensure_certificates(tmp_path, ["b.example"], end - timedelta(days=29))
    assert (tmp_path / "ca.pem").read_bytes() == authority
    assert {(tmp_path / name).stat().st_mode & 0o777 for name in ("ca.key", "server.pem")} == {0o600}
    key = (tmp_path / "ca.key").read_bytes()
    (tmp_path / "ca.key").unlink()
    assert not ensure_certificates(tmp_path, ["b.example"])
    with raises("broker.certificate-missing", "ca.key"):
        ensure_certificates(tmp_path, ["c.example"])
    (tmp_path / "ca.key").write_bytes(key[:100])
    with raises("broker.certificate-damaged", "enroll again"):
        ensure_certificates(tmp_path, ["c.example"])
    with raises("broker.host", "'a b'"):
        ensure_certificates(tmp_path, ["a b"])


@needs_mosquitto
def test_only_the_right_authority_name_and_password(
    broker: ManagedBroker, enroll: Callable[[str], Access], tmp_path: Path
) -> None:
    access = enroll("careful")
    connect(access)
    connect(replace(access, url=f"mqtts://127.0.0.1:{broker.port}"))
    ensure_certificates(tmp_path, [])
    other = (tmp_path / "ca.pem").read_text()
    refusals = {
        replace(access, authority=other): "use this broker's own access file",
        replace(access, authority=""): "certificate that cannot be trusted: ",
        replace(access, url=f"mqtts://127.1:{broker.port}"): "Hostname mismatch, certificate is not valid for '127.1'",
        replace(access, password="guessed"): "refuses: Not authorized; check user name and password",
        replace(access, user="nobody"): "refuses: Not authorized",
        replace(access, user="", password=""): "refuses: Unspecified error; check user name and password",
    }
    for refused, message in refusals.items():
        with raises("broker.refused", message):
            connect(refused)
    with raises("access.authority", "make the access file again"):
        Link(replace(access, authority="other"), "careful", [])


def test_a_refused_subscription_is_an_error() -> None:
    def serve(listener: socket.socket) -> None:
        listener.accept()[0].close()  # that was MQTT 5
        connection, _ = listener.accept()
        with connection:
            connection.recv(1000)
            connection.sendall(b"\x20\x02\x00\x00")
            connection.sendall(b"\x90\x03" + connection.recv(1000)[2:4] + b"\x80")
            connection.recv(1000)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, args=(listener,), daemon=True).start()
        link = Link(f"mqtt://127.0.0.1:{listener.getsockname()[1]}", "a", ["topic"])
        with raises("broker.refused", "check the rights"):
            link.connect(PATIENCE_S)


PROTOCOLS = pytest.mark.parametrize("protocol", [mqtt.MQTTv311, mqtt.MQTTv5], ids=["3.1.1", "5"])


@needs_mosquitto
@PROTOCOLS
def test_a_device_writes_only_its_own_topics(
    broker: ManagedBroker, enroll: Callable[[str], Access], protocol: int
) -> None:
    thief, victim, server = enroll("thief"), enroll("victim"), enroll("server")
    forbidden = [
        "fl/v1/j/up/victim", "fl/v1/j/state/victim", "fl/v1/j/down/victim", "fl/v1/j/down/thief", "fl/v1/j/round",
        "fl/v1/j/result", "fl/v1/j/up/server", "fl/v1/j/up/thief/more", "fl/v1/j/up", "fl/v1/up/thief", "fl/v1/j/new",
        "fl/v2/j/up/thief", "/fl/v1/j/up/thief", "other", "$SYS/broker/version",
    ]  # fmt: skip
    with (
        client(server, "fl/v1/#", protocol=protocol) as observer,
        client(victim, "#", "$SYS/#", protocol=protocol) as witness,
    ):
        for will in ("fl/v1/j/state/victim", "fl/v1/j/round", "fl/v1/j/state/thief"):
            Client(thief, protocol=protocol, will=will).vanish()
        observer.wait_for("fl/v1/j/state/thief", b"will")
        with client(thief, protocol=protocol) as attacker:
            for topic in forbidden:
                for qos in (0, 1, 2):
                    attacker.publish(topic, b"forged", qos, retain=qos == 1)
            attacker.publish("fl/v1/j/up/thief", b"honest")
            observer.wait_for("fl/v1/j/up/thief", b"honest")
        observer.publish("fl/v1/j/down/victim", b"order")
        witness.wait_for("fl/v1/j/down/victim", b"order")
        assert observer.topics() == {"fl/v1/j/state/thief", "fl/v1/j/up/thief", "fl/v1/j/down/victim"}
        assert witness.received == [("fl/v1/j/down/victim", b"order")] * len(witness.received)
        observer.publish("fl/v1/j/state/thief", b"", retain=True)
    with client(server, "fl/v1/#", "fl/v1/j/up/victim", protocol=protocol) as late:
        late.publish("fl/v1/j/round", b"end")
        late.wait_for("fl/v1/j/round", b"end")
        assert late.topics() == {"fl/v1/j/round"}, "nothing forged was retained"


@needs_mosquitto
def test_a_device_has_the_broker_retain_only_its_own_jobs_state(
    broker: ManagedBroker, enroll: Callable[[str], Access], tmp_path: Path
) -> None:
    """Else one login could fill the broker's memory, under as many jobs' names as it likes."""
    options = ["--broker", str(broker.folder), "--out", str(tmp_path), "--job", "mine", "--job", "other"]
    assert main(["enroll", "bound", *options]) == 0
    bound = Access.load(tmp_path / "bound.json")
    wait_until(lambda: connects(bound))
    server = enroll("server")
    with client(server, "fl/v1/#") as observer:
        with client(bound) as device:
            for job in ("theirs", *(f"job-{number}" for number in range(9)), "mine", "other"):
                for kind in ("state", "up"):
                    device.publish(f"fl/v1/{job}/{kind}/bound", bytes(60_000), retain=True)
            observer.wait_for("fl/v1/other/up/bound", bytes(60_000))
        expected = {f"fl/v1/{job}/{kind}/bound" for job in ("mine", "other") for kind in ("state", "up")}
        assert observer.topics() == expected
        assert main(["enroll", "bound", "--broker", str(broker.folder), "--remove"]) == 0
        wait_until(lambda: {topic for topic, payload in observer.received if not payload} == expected)
    with client(server, "fl/v1/#") as late:
        late.publish("fl/v1/j/round", b"end")
        late.wait_for("fl/v1/j/round", b"end")
        assert late.topics() == {"fl/v1/j/round"}, "nothing of it is left"
    assert main(["enroll", "bound", *options[:4]]) == 0
    assert json.loads((broker.folder / "jobs.json").read_text()) == {"bound": ["default"]}
    broker.remove_users(["bound"])


@needs_mosquitto
def test_the_brokers_memory_has_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A login of before, which is for any job, loses its connection; the broker and all others stay."""
    monkeypatch.setattr(mosquitto_files, "MEMORY_BYTES", 10 << 20)
    with ManagedBroker(tmp_path, port=free_port()) as broker:
        flooder, other = broker.add_users(["flooder", "other"])
        wait_until(lambda: connects(flooder) and connects(other))
        with client(flooder, protocol=mqtt.MQTTv5) as source:
            for number in range(300):
                source.paho.publish(f"fl/v1/job-{number}/state/flooder", bytes(60_000), 1, retain=True)
            wait_until(lambda: source.losses)
        assert psutil.Process(broker.pid).memory_info().rss < 100 << 20
        connect(other)


@needs_mosquitto
@PROTOCOLS
def test_a_device_reads_only_its_own_topics(
    broker: ManagedBroker, enroll: Callable[[str], Access], protocol: int
) -> None:
    thief, victim, server = enroll("thief"), enroll("victim"), enroll("server")
    wide = [
        "#", "fl/#", "fl/v1/#", "fl/v1/+/#", "+/+/+/+/+", "+/+/+/+", "fl/v1/+/down/+", "fl/v1/j/down/victim",
        "fl/v1/+/up/+", "fl/v1/j/up/victim", "fl/v1/+/state/+", "fl/v1/j/state/victim", "$SYS/#", "$SYS/broker/uptime",
        "$share/group/fl/v1/#", "$share/group/fl/v1/j/down/victim", "fl/v1/j/up/thief", "fl/v1/j/secret",
    ]  # fmt: skip
    with client(server, protocol=protocol) as source, client(victim, protocol=protocol) as other:

        def publish_all(retain: bool) -> None:
            other.publish("fl/v1/j/up/victim", b"secret", retain=retain)
            other.publish("fl/v1/j/state/victim", b"secret", retain=retain)
            for kind in ("down/victim", "up/thief", "secret", "state/server", "round/more"):
                source.publish(f"fl/v1/j/{kind}", b"secret", retain=retain)
            for kind in ("round", "result", "down/thief"):
                source.publish(f"fl/v1/j/{kind}", b"yours", retain=retain)

        publish_all(retain=True)
        with client(thief, *wide, protocol=protocol) as attacker:
            publish_all(retain=False)
            source.publish("fl/v1/j/down/thief", b"end")
            attacker.wait_for("fl/v1/j/down/thief", b"end")
            assert attacker.topics() == {"fl/v1/j/round", "fl/v1/j/result", "fl/v1/j/down/thief"}
            assert {payload for _, payload in attacker.received} == {b"yours", b"end"}
            assert attacker.losses == 0
        for kind in ("up/victim", "state/victim", "down/victim", "up/thief", "secret", "state/server", "round/more",
                     "round", "result", "down/thief"):  # fmt: skip
            source.publish(f"fl/v1/j/{kind}", b"", retain=True)


@needs_mosquitto
@PROTOCOLS
def test_a_jobs_server_has_that_jobs_topics(
    broker: ManagedBroker, enroll: Callable[[str], Access], tmp_path: Path, protocol: int
) -> None:
    assert main(["enroll", "--server", "a", "b", "--broker", str(broker.folder), "--out", str(tmp_path)]) == 0
    first, second = (Access.load(tmp_path / f"server-{job}.json") for job in "ab")
    wait_until(lambda: connects(first) and connects(second))
    device = enroll("phone")
    kinds = ("up/phone", "up/server-a", "state/phone", "state/server-a", "down/phone", "round", "result", "else")
    with (
        client(enroll("server"), "fl/v1/b/#", protocol=protocol) as observer,
        client(first, "#", "fl/v1/+/up/+", "fl/v1/b/state/phone", protocol=protocol) as thief,
        client(second, "fl/v1/b/up/+", protocol=protocol) as owner,
        client(device, "fl/v1/+/down/phone", protocol=protocol) as phone,
    ):
        for kind in kinds:
            thief.publish(f"fl/v1/b/{kind}", b"forged")
        phone.publish("fl/v1/b/up/phone", b"for b")
        phone.publish("fl/v1/a/up/phone", b"for a")
        phone.publish("fl/v1/a/state/phone", b"born")
        thief.wait_for("fl/v1/a/state/phone", b"born")
        owner.wait_for("fl/v1/b/up/phone", b"for b")
        for job, server in (("a", thief), ("b", owner)):
            server.publish(f"fl/v1/{job}/down/phone", b"plan")
            phone.wait_for(f"fl/v1/{job}/down/phone", b"plan")
        observer.wait_for("fl/v1/b/down/phone", b"plan")
        assert b"forged" not in {payload for _, payload in observer.received + phone.received + owner.received}
        assert thief.topics() == {f"fl/v1/a/{kind}" for kind in ("up/phone", "state/phone", "down/phone")}
    assert main(["enroll", "--server", "a", "--broker", str(broker.folder), "--remove"]) == 0
    wait_until(lambda: not connects(first))
    assert connects(second)


@needs_mosquitto
@PROTOCOLS
def test_taking_a_client_id_kicks_nobody(broker: ManagedBroker, enroll: Callable[[str], Access], protocol: int) -> None:
    thief, victim, server = enroll("thief"), enroll("victim"), enroll("server")
    with (
        client(server, "fl/v1/#", protocol=protocol) as observer,
        client(victim, "fl/v1/j/down/victim", protocol=protocol) as honest,
        client(thief, "fl/v1/j/down/victim", protocol=protocol, client_id="victim") as taker,
    ):
        with raises("broker.refused", "Not authorized"):
            connect(replace(victim, password="guessed"))
        taker.publish("fl/v1/j/up/victim", b"forged")
        observer.publish("fl/v1/j/down/victim", b"order")
        honest.wait_for("fl/v1/j/down/victim", b"order")
        honest.publish("fl/v1/j/up/victim", b"honest")
        observer.wait_for("fl/v1/j/up/victim", b"honest")
        assert ("fl/v1/j/up/victim", b"forged") not in observer.received
        assert (honest.losses, taker.received) == (0, [])


@needs_mosquitto
def test_users_come_and_go_while_it_runs(broker: ManagedBroker, tmp_path: Path) -> None:
    """Another process adds and removes them."""
    enroll = ["enroll", "--broker", str(broker.folder), "--out", str(tmp_path), "phone-1", "phone-2"]
    assert main(enroll) == 0
    first, second = (Access.load(tmp_path / f"phone-{number}.json") for number in (1, 2))
    wait_until(lambda: connects(first) and connects(second))
    with client(first, "fl/v1/j/round") as renamed, client(second, "fl/v1/j/round") as removed:
        assert main(["enroll", "--broker", str(broker.folder), "--out", str(tmp_path), "phone-1"]) == 0
        assert main(["enroll", "--broker", str(broker.folder), "--remove", "phone-2"]) == 0
        wait_until(lambda: renamed.losses and removed.losses)
        wait_until(lambda: connects(Access.load(tmp_path / "phone-1.json")))
        for access in (first, second):
            with raises("broker.refused", "Not authorized"):
                connect(access)


@needs_mosquitto
def test_kill_and_restart_keep_retained_messages_and_users(tmp_path: Path) -> None:
    port = free_port()
    with ManagedBroker(tmp_path, port=port) as broker:
        server, device = broker.add_users(["server", "device"])
        wait_until(lambda: connects(device))
        with client(device) as alive:
            alive.publish("fl/v1/j/state/device", b"here", retain=True)
        saved = tmp_path / "mosquitto.db"
        wait_until(lambda: saved.exists() and b"fl/v1/j/state/device" in saved.read_bytes())
        assert broker.pid is not None
        os.kill(broker.pid, signal.SIGKILL)
        with raises("broker.mosquitto-ended"):
            broker.wait()
        assert broker.pid is None
    more = ManagedBroker(tmp_path).add_user("late")
    with ManagedBroker(tmp_path) as broker, client(server, "fl/v1/#") as observer:
        assert (broker.port, broker.hosts) == (port, ("localhost",))
        observer.wait_for("fl/v1/j/state/device", b"here")
        connect(more)


@needs_mosquitto
def test_links_come_back_and_not_in_step(tmp_path: Path) -> None:
    with ManagedBroker(tmp_path, port=free_port()) as broker:
        accesses = broker.add_users([f"d{number}" for number in range(8)])
        wait_until(lambda: connects(accesses[-1]))
        links = [Link(access, access.user, ["fl/v1/j/round"]) for access in accesses]
        for link in links:
            link.connect(PATIENCE_S)
            assert link.next(PATIENCE_S) == Connected()
        time.sleep(0.1)
    times: list[float] = []

    def watch(link: Link) -> None:
        assert link.next(PATIENCE_S) == Connected()
        times.append(time.monotonic())

    threads = [threading.Thread(target=watch, args=(link,)) for link in links]
    for thread in threads:
        thread.start()
    with ManagedBroker(tmp_path) as broker:
        for thread in threads:
            thread.join()
        assert len(times) == 8
        assert max(times) - min(times) > 0.2
        for link in links:
            link.close()


@needs_mosquitto
def test_an_error_in_a_callback_does_not_end_the_link(
    enroll: Callable[[str], Access], caplog: pytest.LogCaptureFixture
) -> None:
    class Broken:
        def receive(self, event: object) -> None:
            raise RuntimeError("full")

    access = enroll("unlucky")
    link = Link(access, access.user, ["fl/v1/j/down/unlucky"])
    link.connect(PATIENCE_S)
    with client(enroll("server")) as source:
        events, link.events = link.events, Broken()  # type: ignore[assignment]
        with caplog.at_level(logging.ERROR):
            source.publish("fl/v1/j/down/unlucky", b"1")
            wait_until(lambda: "RuntimeError: full" in caplog.text)
        link.events = events
        source.publish("fl/v1/j/down/unlucky", b"2")
        assert link.next(PATIENCE_S) == Connected()
        assert link.next(PATIENCE_S) == Received("fl/v1/j/down/unlucky", b"2")
    link.close()


@needs_mosquitto
def test_a_running_broker_takes_a_new_certificate(broker: ManagedBroker, enroll: Callable[[str], Access]) -> None:
    access = enroll("old")

    def shown() -> int:
        context = ssl.create_default_context(cadata=access.authority)
        with (
            socket.create_connection(("127.0.0.1", broker.port)) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as connection,
        ):
            certificate = connection.getpeercert(binary_form=True)
            assert certificate is not None
            return x509.load_der_x509_certificate(certificate).serial_number

    before = shown()
    (broker.folder / "server.pem").unlink()
    broker.renew_certificate()
    wait_until(lambda: shown() == serial(broker.folder) != before)
    connect(access)


@needs_mosquitto
def test_a_large_message_of_the_protocol_fits(broker: ManagedBroker, enroll: Callable[[str], Access]) -> None:
    device, server = enroll("large"), enroll("server")
    topic = f"fl/v1/{'j' * 64}/up/large"
    with client(server, topic) as observer, client(device) as sender:
        sender.publish(topic, bytes(64 * 1024))
        observer.wait_for(topic, bytes(64 * 1024))
        sender.paho.publish(topic, bytes(70_001), qos=1)
        wait_until(lambda: sender.losses)
        assert observer.received == [(topic, bytes(64 * 1024))]


@needs_mosquitto
def test_what_does_not_start_says_why(broker: ManagedBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with raises("broker.mosquitto-not-started", broker.port, "Address already in use"):
        ManagedBroker(tmp_path, port=broker.port).start()
    with raises("broker.already-running", "choose another folder"):
        ManagedBroker(broker.folder).start()
    with raises("broker.not-a-state-folder", "fedspzo broker --state"):
        ManagedBroker(tmp_path / "none").add_user("a")
    for name in ("", "a/b", "+", "a:b", "ü"):
        with raises("access.user-name", "up to 64 letters"):
            broker.add_user(name)
    assert broker.remove_users(["nobody"]) == []
    (tmp_path / "settings.json").write_text("{}")
    with raises("broker.settings-damaged", "settings.json"):
        ManagedBroker(tmp_path)
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    with raises("broker.mosquitto-missing", "install"):
        ManagedBroker(tmp_path / "none").start()


@needs_mosquitto
def test_a_plain_listener_only_on_request(tmp_path: Path) -> None:
    port = free_port()
    with ManagedBroker(tmp_path, port=free_port(), plain_port=port) as broker:
        access = replace(broker.add_user("server"), url=f"mqtt://127.0.0.1:{port}")
        wait_until(lambda: connects(access))
        with raises("broker.refused"):
            connect(replace(access, user="", password=""))
    with ManagedBroker(tmp_path), pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


@needs_mosquitto
def test_it_ends_with_its_parent(tmp_path: Path) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", START, str(tmp_path), str(free_port())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert ManagedBroker(tmp_path).pid == pid
        parent.kill()
    wait_until(lambda: ManagedBroker(tmp_path).pid is None)
    wait_until(lambda: not Path(f"/proc/{pid}").exists() or "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text())


@needs_mosquitto
def test_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state, port = tmp_path / "broker", free_port()
    command = [sys.executable, "-m", "fedspzo", "broker", "--state", str(state), "--host", "localhost", "127.0.0.1"]
    process = subprocess.Popen(
        [*command, "--port", str(port)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(3)]
        assert lines[0] == f"broker at mqtts://localhost:{port}, with a certificate for localhost, 127.0.0.1\n"
        server = Access.load(state / "server.json")
        wait_until(lambda: connects(server))
        out = tmp_path / "out"
        common = ["enroll", "--broker", str(state)]
        assert main([*common, "phone", "--out", str(out)]) == 0
        assert "out/phone.json lets phone in at" in capsys.readouterr().out
        wait_until(lambda: connects(Access.load(out / "phone.json")))
        assert main([*common, "phone", "new", "--out", str(out), "--job", "second"]) == 0
        said = capsys.readouterr().out
        assert "phone had a login: its password and its jobs are replaced" in said
        assert "new had" not in said
        assert main([*common, "far", "--out", str(out), "--url", "mqtts://public.example:8883"]) == 0
        assert json.loads((out / "far.json").read_text())["url"] == "mqtts://public.example:8883"
        capsys.readouterr()
        for options, message in (
            (("server",), "'server'"),
            (("server-job",), "[access.server-name]"),
            (("--server", "j" * 58), "use up to 57 letters, digits, '-' and '_' [job.name-too-long]"),
            (("x", "--url", "http://x"), "[access.url]"),
            (("y", "--remove"), "this broker has no login of y; correct the name [access.unknown-user]"),
            (("x", "--authority", str(state / "ca.pem")), "[option.authority-beside-broker]"),
        ):
            assert main([*common, *options, "--out", str(out)]) == 1
            assert message in capsys.readouterr().err
        assert main(["enroll", "--broker", str(out), "x"]) == 1
        assert "[broker.not-a-state-folder]" in capsys.readouterr().err
    finally:
        process.terminate()
        _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, errors
    assert "Traceback" not in errors
    assert ManagedBroker(state).pid is None


def test_the_embedded_broker_says_why_it_is_that(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fedspzo", "broker", "--state", str(tmp_path), "--embedded"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        process.terminate()
    assert line.startswith("broker at mqtt://127.0.0.1:")
    assert "(embedded: --embedded; this machine only, no logins)" in line
