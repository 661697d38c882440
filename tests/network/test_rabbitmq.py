"""A RabbitMQ cluster for real: what a device may do with its own credentials, and what a killed node loses."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import paho.mqtt.client as mqtt
import psutil
import pytest
from patience import PATIENCE_S, wait_until
from rabbitmq_cluster import NODES, Client, Cluster, Roamer, cluster, running_cluster
from refusals import raises, refused

from fedspzo.broker.mqtt.certificates import AUTHORITY, AUTHORITY_KEY, ensure_certificates
from fedspzo.broker.mqtt.rabbitmq import RabbitMQ
from fedspzo.broker.server.status import read_status
from fedspzo.broker.server.store import ServerStore
from fedspzo.cli import main
from fedspzo.device_runtime.link.access import Access
from fedspzo.device_runtime.link.connection import Link
from fedspzo.device_runtime.link.events import Connected, Received

__all__ = ["cluster", "running_cluster"]

NOWHERE = ("/nowhere/rabbitmqctl",)
OWN_TOPICS = ["fl/v1/job/up/ann", "fl/v1/job/state/ann", "fl/v1/another-job/up/ann"]
OWN_FILTERS = ["fl/v1/job/down/ann", "fl/v1/+/down/ann", "fl/v1/+/round", "fl/v1/job/result"]
FOREIGN_TOPICS = [
    "fl/v1/job/up/bob",
    "fl/v1/job/state/bob",
    "fl/v1/job/down/bob",
    "fl/v1/job/down/ann",
    "fl/v1/job/round",
    "fl/v1/job/result",
    "fl.v1.job.up.bob",
    "fl/v1/job/up",
    "fl/v1/job/up/",
    "fl/v1/job/up/+",
    "fl/v1/+/up/ann",
    "fl/v1/#",
    "fl/v1/job/up/ann/more",
    "fl/v1/job/more/up/ann",
    "fl/v1/job/up/annabel",
    "fl/v1/job/up/ann\n",
    "/fl/v1/job/up/ann",
    "fl/v2/job/up/ann",
    "$SYS/broker",
    "anything",
]
FOREIGN_FILTERS = [
    "fl/v1/job/down/bob",
    "fl/v1/+/down/bob",
    "fl/v1/job/down/+",
    "fl/v1/+/down/+",
    "fl/v1/job/down/#",
    "fl/v1/job/+/bob",
    "fl/v1/job/*/bob",
    "fl.v1.job.down.bob",
    "fl/v1/job/#",
    "fl/v1/#",
    "fl/#",
    "#",
    "+/+/+/+/+",
    "fl/v1/#/round",
    "fl/v1/job/up/+",
    "fl/v1/job/up/bob",
    "fl/v1/job/up/ann",
    "fl/v1/job/state/+",
    "fl/v1/job/state/bob",
    "$SYS/#",
]


class Users:
    """The users ann, bob and server, with fresh passwords; closes the clients that it made."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self._clients: list[Client] = []
        for name in ("ann", "bob", "server"):
            cluster.add_user(name)
        if "observer" not in cluster.passwords:
            cluster.add_observer()

    def connect(
        self,
        user: str,
        client_id: str | None = None,
        clean: bool = True,
        node: int = 1,
        will: tuple[str, bytes] | None = None,
    ) -> Client:
        port, password = self.cluster.ports[node], self.cluster.passwords[user]
        client = Client(port, user if client_id is None else client_id, user, password, clean, will)
        self._clients.append(client)
        return client

    def close(self) -> None:
        for client in self._clients:
            client.close()


@pytest.fixture
def users(cluster: Cluster) -> Iterator[Users]:
    made = Users(cluster)
    yield made
    made.close()


@pytest.mark.parametrize("name", ["", "a.b", "a/b", "+", "#", ".*", "a|b", "a\n", "x" * 65])
def test_a_name_that_reaches_beyond_one_device_is_refused(name: str) -> None:
    with raises("access.user-name", name):
        RabbitMQ(NOWHERE).set_passwords({name: "x"})


def test_a_job_that_reaches_beyond_one_is_refused() -> None:
    with raises("job.name", "'.*'"):
        RabbitMQ(NOWHERE).set_passwords({"ann": "x"}, [".*"])


def test_what_a_command_cannot_do_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rabbitmq = ("--rabbitmq", *NOWHERE)
    with_url = (*rabbitmq, "--url", "mqtts://broker", "--out", tmp_path / "out")
    (tmp_path / "no-certificate").write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    for options, message in (
        (with_url, "'/nowhere/rabbitmqctl' cannot be run (No such file or directory); install rabbitmq-server, or"),
        ((*with_url[2:], "--rabbitmq", "true"), "'true' does not answer as rabbitmqctl does; correct what --rabbitmq"),
        ((*with_url[2:], "--rabbitmq", "false --now"), "rabbitmqctl list_users failed: it gives no reason; run"),
        ((*with_url, "--remove"), "[broker.rabbitmqctl-missing]"),
        (rabbitmq, "give that with --url, such as mqtts://HOST:8883 [option.no-broker-url]"),
        ((*rabbitmq, "--url", "http://broker"), "'http://broker' is not the URL of a broker; write one as"),
        ((*with_url, "--authority", tmp_path / "nothing"), "nothing"),
        ((*with_url, "--authority", tmp_path / "no-certificate"), "no-certificate has no certificate; give the file"),
    ):
        assert message in refused(capsys, "enroll", "ann", *options)
    assert "'a.b' is not a valid user name; use up to" in refused(capsys, "enroll", "a.b", *with_url)
    assert "[access.server-name]" in refused(capsys, "enroll", "server", *with_url)
    assert "[job.name-too-long]" in refused(capsys, "enroll", "--server", "j" * 58, *with_url)
    assert not list(tmp_path.rglob("*.json"))
    ServerStore(tmp_path, bytes(32)).close()
    assert "[broker.rabbitmqctl-missing]" in refused(capsys, "block", tmp_path, "ann", *rabbitmq)
    assert not read_status(tmp_path)["blocked"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "one of the arguments --broker --rabbitmq is required"),
        (
            ("--broker", "folder", "--rabbitmq", "rabbitmqctl"),
            "argument --rabbitmq: not allowed with argument --broker",
        ),
        (("--rabbitmq", ""), "argument --rabbitmq: it is a command such as rabbitmqctl, not ''"),
        (("--rabbitmq", "rabbitmqctl '"), "argument --rabbitmq: it is a command such as rabbitmqctl, not"),
    ],
)
def test_one_broker_is_named(options: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["enroll", "ann", *options])
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_everything_listens_on_loopback_and_amqp_is_off(cluster: Cluster) -> None:
    for node in NODES:
        process = psutil.Process(cluster.pid(node))
        listening = {c.laddr for c in process.net_connections() if c.status == psutil.CONN_LISTEN}
        assert {ip for ip, _ in listening} == {"127.0.0.1"}
        assert len(listening) == 2  # MQTT, and Erlang between the nodes


@pytest.mark.slow
@pytest.mark.parametrize("session", ["", "?session=keep"])
def test_the_link_falls_back_to_3_1_1(users: Users, session: str) -> None:
    topic = "fl/v1/job/round"
    link = Link(users.cluster.url(1, "server") + session, "server", [topic])
    link.connect(30)
    assert link.next(30) == Connected()
    link.publish(topic, b"there and back", useful=60)
    assert link.next(30) == Received(topic, b"there and back")
    assert link.version == mqtt.MQTTv311
    link.close()


@pytest.mark.slow
def test_only_known_users_connect(users: Users) -> None:
    port = users.cluster.ports[1]
    for user, password in [(None, None), ("guest", "guest"), ("ann", "wrong"), ("ann", ""), ("nobody", "x")]:
        client = Client(port, "ann", user, password)
        assert client.refusal
        client.close()
    assert not users.connect("ann").refusal


@pytest.mark.slow
def test_own_topics_work(users: Users) -> None:
    server, ann = users.connect("server"), users.connect("ann", node=2)
    assert server.subscribe("fl/v1/+/up/+", "fl/v1/+/state/+")
    assert ann.subscribe(*OWN_FILTERS)
    for topic in OWN_TOPICS:
        assert ann.publish(topic, topic.encode())
    wait_until(lambda: len(server.received) == len(OWN_TOPICS))
    for topic in ("fl/v1/job/down/ann", "fl/v1/job/round", "fl/v1/job/result"):
        assert server.publish(topic, topic.encode())
    wait_until(lambda: len(set(ann.payloads())) == 3)


@pytest.mark.slow
def test_a_device_writes_nothing_but_its_own(users: Users) -> None:
    observer = users.connect("observer")
    assert observer.subscribe("#")
    for topic in FOREIGN_TOPICS:
        for retain in (False, True):
            ann = users.connect("ann")
            assert not ann.publish(topic, b"forged", retain)
            assert ann.ended.is_set(), topic
    for topic in FOREIGN_TOPICS:
        users.connect("ann", will=(topic, b"forged")).drop()
    users.connect("ann", will=("fl/v1/job/state/ann", b"gone")).drop()
    wait_until(lambda: b"gone" in observer.payloads())
    # On one node and one connection, messages arrive in order: whatever had come through would be there.
    assert users.connect("ann").publish("fl/v1/job/up/ann", b"last")
    wait_until(lambda: b"last" in observer.payloads())
    assert set(observer.payloads()) == {b"gone", b"last"}
    late = users.connect("observer", "late")
    assert late.subscribe(*FOREIGN_TOPICS)
    assert not late.received  # nothing was retained either


@pytest.mark.slow
def test_a_device_has_rabbitmq_retain_only_its_own_jobs_state(users: Users) -> None:
    """And what waits for a client is bounded: else one login could fill the memory."""
    users.cluster.add_user("carl", ["mine", "other"])
    observer = users.connect("observer")
    assert observer.subscribe("#")
    for job in ("theirs", "min", "mine1", "mine.other"):
        for kind in ("up", "state"):
            carl = users.connect("carl")
            assert not carl.publish(f"fl/v1/{job}/{kind}/carl", b"foreign", True)
    for job in ("mine", "other"):
        for kind in ("up", "state"):
            assert users.connect("carl").publish(f"fl/v1/{job}/{kind}/carl", b"own", True)
    wait_until(lambda: len(observer.received) == 4)
    assert set(observer.payloads()) == {b"own"}
    queues = json.loads(users.cluster.ctl("list_queues", "--formatter", "json", "name", "policy"))
    assert {queue["policy"] for queue in queues if queue["name"].startswith("mqtt-subscription-")} == {"fedspzo"}


@pytest.mark.slow
def test_a_device_reads_nothing_but_its_own(users: Users) -> None:
    secrets = ["fl/v1/job/down/bob", "fl/v1/job/up/bob", "fl/v1/job/state/bob"]
    server = users.connect("server")
    for topic in secrets:
        assert server.publish(topic, b"retained secret", retain=True)
    anns = []
    for qos in (0, 1):
        for wanted in FOREIGN_FILTERS:
            for filters in ([wanted], ["fl/v1/job/down/ann", wanted]):
                anns.append(users.connect("ann", clean=False))
                assert not anns[-1].subscribe(*filters, qos=qos), filters
                assert anns[-1].ended.is_set()
    # No binding was left in the session for later either.
    anns.append(users.connect("ann", clean=False))
    assert anns[-1].subscribe("fl/v1/job/down/ann")
    for topic in secrets:
        assert server.publish(topic, b"secret")
    assert server.publish("fl/v1/job/down/ann", b"for ann")
    wait_until(lambda: anns[-1].received)
    assert [client.payloads() for client in anns] == [[]] * (len(anns) - 1) + [[b"for ann"]]
    for topic in secrets:
        assert server.publish(topic, b"", retain=True)
    users.connect("ann")  # a clean session takes the other away


@pytest.mark.slow
def test_a_jobs_server_has_that_jobs_topics(users: Users) -> None:
    users.cluster.add_user("server-job")
    observer, ann, server = users.connect("observer"), users.connect("ann"), users.connect("server-job")
    assert observer.subscribe("fl/v1/another-job/#")
    assert ann.subscribe("fl/v1/+/down/ann")
    assert server.subscribe("fl/v1/job/up/+", "fl/v1/job/state/+")
    assert ann.publish("fl/v1/job/up/ann", b"result")
    wait_until(lambda: server.payloads() == [b"result"])
    assert server.publish("fl/v1/job/down/ann", b"plan")
    wait_until(lambda: ann.payloads() == [b"plan"])
    for kind in ("up/ann", "up/server-job", "state/ann", "down/ann", "round", "result"):
        assert not users.connect("server-job").publish(f"fl/v1/another-job/{kind}", b"forged")
        assert not users.connect("server-job").subscribe(f"fl/v1/another-job/{kind}")
    assert not users.connect("server-job").subscribe("fl/v1/+/up/+")
    assert users.connect("server").publish("fl/v1/another-job/round", b"last")
    wait_until(lambda: observer.payloads() == [b"last"])


@pytest.mark.slow
@pytest.mark.parametrize("client_id", ["bob", "server", ".*", "bob\n", "(ann|bob)"])
def test_another_client_id_opens_no_session(users: Users, client_id: str) -> None:
    bob = users.connect("bob", clean=False)
    assert bob.subscribe("fl/v1/+/down/bob")
    bob.close()
    server = users.connect("server")
    assert server.publish("fl/v1/job/down/bob", b"for bob")
    intruders = []
    for clean in (True, False):
        for filters in (["fl/v1/+/down/bob"], ["fl/v1/+/down/ann"]):
            intruder = users.connect("ann", client_id, clean)
            assert intruder.refusal or not intruder.subscribe(*filters)
            intruders.append(intruder)
    bob = users.connect("bob", clean=False, node=3)
    assert bob.session_present
    wait_until(lambda: bob.payloads() == [b"for bob"])
    assert not any(intruder.received for intruder in intruders)
    users.connect("bob").close()


@pytest.mark.slow
def test_devices_come_and_go_by_commands(users: Users, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cluster, enroll = users.cluster, ["enroll", *users.cluster.enroll_option]
    ensure_certificates(tmp_path, ["localhost"])
    authority, with_key = (tmp_path / AUTHORITY).read_text(), tmp_path / "with-key.pem"
    with_key.write_text(authority + (tmp_path / AUTHORITY_KEY).read_text())
    options = ["--url", "mqtts://broker:8883", "--authority", str(with_key), "--out", str(tmp_path)]

    def login(name: str) -> Access:
        access = Access.load(tmp_path / f"{name}.json")
        cluster.passwords[name] = access.password
        return access

    assert main([*enroll, "eve", "fay", *options, "--job", "mine"]) == 0
    assert "had a login" not in capsys.readouterr().out
    for name in ("eve", "fay"):
        assert replace(login(name), password="") == Access("mqtts://broker:8883?session=keep", name, "", authority)
    eve, fay = users.connect("eve", clean=False), users.connect("fay", clean=False)
    assert eve.subscribe("fl/v1/+/down/eve")
    assert fay.subscribe("fl/v1/+/down/fay")
    assert main([*enroll, "eve", "--remove"]) == 0
    assert "this broker has no login of eve; correct the name" in refused(capsys, *enroll, "eve", "--remove")
    ServerStore(tmp_path, bytes(32)).close()
    assert main(["block", str(tmp_path), "fay", *cluster.enroll_option]) == 0
    assert capsys.readouterr().out == "fay is blocked, and its login is taken away\n"
    for name, client in (("eve", eve), ("fay", fay)):
        assert client.ended.wait(PATIENCE_S)
        assert users.connect(name).refusal
        assert f"mqtt-subscription-{name}" not in cluster.ctl("list_queues", "name")
    old = cluster.passwords["ann"]
    assert main([*enroll, "ann", *options, "--url", "mqtt://localhost?session=keep&packet=70000"]) == 0
    assert "ann had a login: its password and its jobs are replaced" in capsys.readouterr().out
    assert login("ann").url == "mqtt://localhost?session=keep&packet=70000"
    assert not users.connect("ann").refusal
    assert Client(cluster.ports[1], "ann", "ann", old).refusal


@pytest.mark.slow
def test_killed_nodes_lose_nothing_that_was_acknowledged(users: Users) -> None:
    cluster = users.cluster
    ports = [cluster.ports[node] for node in (2, 3, 1)]
    bob = Roamer(ports, "bob", "bob", cluster.passwords["bob"], "fl/v1/+/down/bob")
    assert bob.subscribed.wait(PATIENCE_S)
    server, node = users.connect("server", node=1), 1
    acknowledged, pending = [], [b"%d" % i for i in range(400)]
    for burst in range(40):
        if burst == 10:
            cluster.kill(2)  # the subscriber's node
        if burst == 20:
            cluster.start(2)
        if burst == 25:
            cluster.kill(1)  # the publisher's
        for payload in pending[burst * 10 : burst * 10 + 10]:
            while not server.publish("fl/v1/job/down/bob", payload):
                node = node % len(NODES) + 1
                server = wait_for_server(users, node)
            acknowledged.append(payload)
    wait_until(lambda: set(acknowledged) <= set(bob.received))
    assert len(acknowledged) == 400
    used = [port for port, _ in bob.connections]
    assert used[0] == cluster.ports[2]
    assert len(set(used)) > 1
    assert all(present for _, present in bob.connections[1:])
    bob.close()
    users.connect("bob", node=2)


def wait_for_server(users: Users, node: int) -> Client:
    """The server's connection to a node, or the next one that accepts it."""
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        try:
            client = users.connect("server", node=node)
        except OSError:
            node = node % len(NODES) + 1
            continue
        if not client.refusal:
            return client
    raise AssertionError("no node accepts the server")
