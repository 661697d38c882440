"""The real thing, small: broker, server and devices as processes; what they do when others misbehave or die."""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cbor2
import paho.mqtt.client as mqtt
import psutil
import pytest

from broker.embedded import EmbeddedBroker, spawn
from broker.rounds import plan_round
from broker.store import ServerStore, read_journal
from device_runtime.bundle import Bundle
from device_runtime.journal import EMPTY
from device_runtime.link import Topics
from device_runtime.plan import Plan
from device_runtime.replica import Replica
from device_runtime.wire import Ack, Message, Presence, Refusal, Result, Sync, decode, encode
from fedspzo.commands.server import add_job_options, make_job

JOB = [
    "--cohort",
    "2",
    "--devices",
    "3",
    "--evaluate-every",
    "5",
    "--split",
    "3",
    "--fanouts",
    "1,4",
    "--deadline",
    "20",
]


class Processes:
    """Starts the commands of one job; stops what is left at the end."""

    def __init__(self, bundle: Path, folder: Path, url: str, write: Callable[[Path, int], Path]) -> None:
        self.bundle, self.folder, self.url, self.write = bundle, folder, url, write
        self.running: list[subprocess.Popen[str]] = []

    def device(self, name: str, bundle: Path | None = None) -> subprocess.Popen[str]:
        data = self.write(self.folder / f"{name}.jsonl", 12)
        return self._start("device", bundle or self.bundle, "--state", self.folder / name, "--data", data, "--id", name)

    def server(self, *options: str) -> subprocess.Popen[str]:
        data = self.write(self.folder / "held-out.jsonl", 10)
        state = self.folder / "server"
        return self._start("server", self.bundle, "--state", state, "--data", data, "--json", *JOB, *options)

    def _start(self, command: str, bundle: Path, *options: object) -> subprocess.Popen[str]:
        arguments = [sys.executable, "-m", "fedspzo", command, bundle, "--broker", self.url, *options]
        process = subprocess.Popen(list(map(str, arguments)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.running.append(process)
        return process

    def stop(self) -> None:
        for process in self.running:
            process.kill()
            process.communicate()


@pytest.fixture(scope="module")
def broker() -> Iterator[EmbeddedBroker]:
    with spawn() as running:
        yield running


@pytest.fixture
def processes(
    bundle_folder: Path, tmp_path: Path, broker: EmbeddedBroker, write_examples: Callable[[Path, int], Path]
) -> Iterator[Processes]:
    started = Processes(bundle_folder, tmp_path, broker.url, write_examples)
    yield started
    started.stop()
    clear_retained(broker)


def clear_retained(broker: EmbeddedBroker) -> None:
    """Presence is retained: take it away, so that tests do not see each other's devices."""
    peer = Peer(broker, "cleaner", ["fl/v1/default/state/+"])
    for topic in {topic for topic, _ in peer.wait_quiet()}:
        peer.client.publish(topic, b"", qos=1, retain=True).wait_for_publish(5)
    peer.close()


class Peer:
    """Another client of the broker, for messages that no honest process sends."""

    def __init__(self, broker: EmbeddedBroker, name: str, topics: list[str]) -> None:
        self.received: list[tuple[str, bytes]] = []
        subscribed = threading.Event()
        self.client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id=name, protocol=mqtt.MQTTv311)
        self.client.on_message = lambda _c, _u, message: self.received.append((message.topic, message.payload))
        self.client.on_subscribe = lambda *_: subscribed.set()
        self.client.connect("127.0.0.1", broker.port)
        self.client.subscribe([(topic, 1) for topic in topics])
        self.client.loop_start()
        assert subscribed.wait(10)

    def publish(self, topic: str, payload: bytes, retain: bool = False) -> None:
        self.client.publish(topic, payload, qos=1, retain=retain).wait_for_publish(10)

    def wait_quiet(self, seconds: float = 0.3) -> list[tuple[str, bytes]]:
        count = -1
        while len(self.received) != count:
            count = len(self.received)
            time.sleep(seconds)
        return self.received

    def wait(self, kind: type[Message], timeout: float = 30.0) -> Any:
        """The first message of a kind, taken out."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            for item in list(self.received):
                message = decode(item[1])
                if isinstance(message, kind):
                    self.received.remove(item)
                    return message
            time.sleep(0.02)
        raise AssertionError(f"no {kind.__name__} within {timeout} s")

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()


def finish(server: subprocess.Popen[str], timeout: float = 90) -> tuple[list[dict[str, Any]], dict[str, Any], str]:
    """The server's progress, its closing words and its log, once it has ended."""
    out, errors = server.communicate(timeout=timeout)
    assert server.returncode == 0, errors
    *progress, last = [json.loads(line) for line in out.splitlines()]
    return progress, last, errors


def assert_equal_replicas(bundle: Bundle, folder: Path, last: dict[str, Any], devices: set[str]) -> None:
    replica = Replica(bundle)
    for entry in read_journal(folder / "server"):
        replica.apply(entry)
    digests = {device: report["digest"] for device, report in last["devices"].items()}
    assert set(digests) == devices
    assert {last["server_digest"], replica.digest().hex()} | set(digests.values()) == {last["server_digest"]}


@pytest.mark.parametrize("seeds", ["shared", "device"])
def test_a_job_from_start_to_end(processes: Processes, bundle: Bundle, tmp_path: Path, seeds: str) -> None:
    devices = {name: processes.device(name) for name in ("a", "b", "c")}
    server = processes.server("--rounds", "12", "--seeds", seeds)
    assert server.stdout is not None
    server.stdout.readline()
    for process in devices.values():
        maps = Path(f"/proc/{process.pid}/maps").read_text()
        assert not [name for name in ("libtorch", "executorch", "transformers") if name in maps]
    progress, last, errors = finish(server)
    assert [event["round"] for event in progress if "results" in event][-1] == 12
    assert [event["round"] for event in progress if "accuracy" in event][-1] == 12
    # A result that was sent again, for want of a timely acknowledgement, may come after its round.
    assert last["counts"].pop("results accepted") == 24, errors
    assert last["counts"].keys() <= {"results late"}, errors
    assert_equal_replicas(bundle, tmp_path, last, {"a", "b", "c"})
    for report in last["devices"].values():
        # One sync and one report besides the results.
        assert report["bytes_up"] <= report["results"] * (128 + 4 * 4) + 250
    for process in devices.values():
        assert process.wait(20) == 0


def test_a_killed_device_and_a_killed_server_go_on(processes: Processes, bundle: Bundle, tmp_path: Path) -> None:
    options = ("--rounds", "40", "--deadline", "3")
    devices = {name: processes.device(name) for name in ("a", "b", "c")}
    server = processes.server(*options)
    read_rounds(server, 5)
    devices["a"].send_signal(signal.SIGKILL)
    read_rounds(server, 4)
    devices["a"].wait()
    processes.device("a")
    read_rounds(server, 8)
    server.send_signal(signal.SIGKILL)
    server.wait()
    progress, last, _ = finish(processes.server(*options))
    rounds = [event["round"] for event in progress if "results" in event]
    assert rounds[-1] == 40
    assert rounds == list(range(rounds[0], 41))
    assert [entry.round for entry in read_journal(tmp_path / "server")] == list(range(1, 41))
    assert_equal_replicas(bundle, tmp_path, last, {"a", "b", "c"})


def read_rounds(server: subprocess.Popen[str], count: int) -> None:
    """Wait until the server has closed some more rounds."""
    assert server.stdout is not None
    while count:
        line = server.stdout.readline()
        assert line, server.communicate()
        count -= "results" in json.loads(line)


def test_a_device_that_comes_late_catches_up(processes: Processes, bundle: Bundle, tmp_path: Path) -> None:
    for name in ("a", "b"):
        processes.device(name)
    server = processes.server("--rounds", "30", "--devices", "2")
    read_rounds(server, 10)
    processes.device("late")
    _, last, _ = finish(server)
    assert_equal_replicas(bundle, tmp_path, last, {"a", "b", "late"})


def test_bad_messages_hurt_nobody(processes: Processes, broker: EmbeddedBroker, bundle: Bundle, tmp_path: Path) -> None:
    """A peer that takes part answers every plan with rubbish; the round closes without it."""
    topics = Topics("default")
    peer = Peer(broker, "evil", [topics.down("evil")])
    peer.publish(topics.state("evil"), encode(Presence(online=True, session=9)), retain=True)
    for name in ("a", "b"):
        processes.device(name)
    server = processes.server("--rounds", "6", "--cohort", "3", "--quorum", "2", "--deadline", "4")
    peer.publish(topics.up("evil"), encode(Sync(bundle.identity, 0, EMPTY, 5)))
    for _ in range(100):
        peer.publish(topics.up("evil"), encode(Sync(bundle.identity, 0, EMPTY, 5)))
        if any(isinstance(decode(payload), Plan) for _, payload in peer.wait_quiet(0.1)):
            break
    plan = peer.wait(Plan)
    nan = encode(Result(plan.round, (1.0,) * 4, 1.0, 4, 0.1, b"")).replace(b"\x00\x00\x80\x3f", b"\x00\x00\xc0\x7f", 1)
    rubbish = [
        b"", b"\xff" * 50, b"{}", cbor2.dumps([1, 3, plan.round, b"", 2**2000, 1, 0.0, b""]),
        encode(Ack(1)), encode(plan), nan,
        encode(Result(plan.round, (1.0,) * 3, 1.0, 4, 0.1, b"")),
        encode(Result(plan.round + 1, (1.0,) * 4, 1.0, 4, 0.1, b"")),
        encode(Result(plan.round, (1.0,) * 4, 1.0, 4000, 0.1, b"")),
        encode(Result(plan.round, (1.0,) * 4, 1.7e308, 4, 0.1, b"")),
    ]  # fmt: skip
    for payload in rubbish:
        peer.publish(topics.up("evil"), payload)
    peer.publish(topics.up("stranger"), encode(Result(plan.round, (1.0,) * 4, 1.0, 4, 0.1, b"")))
    peer.publish(topics.result, b"not ours")
    peer.publish(topics.state("evil"), encode(Presence(online=False, session=8)), retain=True)
    read_rounds(server, 1)
    peer.publish(topics.state("evil"), encode(Presence(online=False, session=9)), retain=True)
    progress, last, errors = finish(server)
    peer.close()
    assert all(event["results"] == 2 for event in progress if "results" in event)
    assert last["counts"]["results refused"] >= 5
    assert last["counts"]["messages dropped"] >= 7
    for reason in (
        "it is not CBOR", "a Plan is not for the topic 'up'", "not finite", "has 3 scalars, and the plan asks for 4",
        "claims 4000 examples", "beyond 1e+09", "the device was not asked",
    ):  # fmt: skip
        assert reason in errors
    assert_equal_replicas(bundle, tmp_path, last, {"a", "b"})


def test_a_late_result_is_acknowledged_and_does_not_count(
    processes: Processes, broker: EmbeddedBroker, bundle: Bundle, tmp_path: Path
) -> None:
    topics = Topics("default")
    peer = Peer(broker, "slow", [topics.down("slow")])
    for name in ("a", "b"):
        processes.device(name)
    server = processes.server("--rounds", "60", "--devices", "2")
    read_rounds(server, 5)
    peer.publish(topics.up("slow"), encode(Result(2, (1.0,) * 4, 1.0, 4, 0.1, b"")))
    assert peer.wait(Ack) == Ack(2)
    peer.close()
    _, last, _ = finish(server)
    assert last["counts"]["results late"] == 1
    assert_equal_replicas(bundle, tmp_path, last, {"a", "b"})


def test_a_device_with_another_bundle_is_refused(
    processes: Processes, checkpoint: Path, broker: EmbeddedBroker, bundle: Bundle, tmp_path: Path
) -> None:
    topics = Topics("default")
    peer = Peer(broker, "other", [topics.down("other")])
    for name in ("a", "b", "c"):
        processes.device(name)
    server = processes.server("--rounds", "30")
    read_rounds(server, 2)
    peer.publish(topics.up("other"), encode(Sync(bytes(32), 0, EMPTY, 5)))
    assert "its bundle is not this job's" in peer.wait(Refusal).reason
    peer.publish(topics.up("other"), encode(Sync(bundle.identity, 1000, EMPTY, 5)))
    assert "its journal is not this job's" in peer.wait(Refusal).reason
    peer.publish(topics.up("other"), encode(Sync(bundle.identity, 1, bytes(15) + b"x", 5)))
    assert "its journal is not this job's" in peer.wait(Refusal).reason
    peer.close()
    _, last, _ = finish(server)
    assert_equal_replicas(bundle, tmp_path, last, {"a", "b", "c"})


def test_a_finished_server_started_again_brings_the_rest_up(
    processes: Processes, bundle: Bundle, tmp_path: Path
) -> None:
    """Killed after the last round was closed, or with devices away at the end: started again, it serves them."""
    for name in ("a", "b", "c"):
        processes.device(name)
    finish(processes.server("--rounds", "6"))
    late = processes.device("late")
    assert late.stdout is not None
    late.stdout.readline()
    _, last, _ = finish(processes.server("--rounds", "6"))
    assert_equal_replicas(bundle, tmp_path, last, {"late"})
    assert late.wait(20) == 0


def test_a_reopened_round_waits_for_its_cohort(processes: Processes, bundle: Bundle, tmp_path: Path) -> None:
    """After a restart, one stored result and a quorum of one do not close a round whose devices are only coming."""
    store = ServerStore(tmp_path / "server", bundle.identity)
    options = argparse.ArgumentParser()
    add_job_options(options)
    plan = plan_round(make_job(options.parse_args([*JOB[:4], *JOB[6:]]), bundle), 1)
    store.save_open_round(plan, ("a", "b"))
    store.save_result("a", Result(1, (1.0,) * 4, 1.0, 4, 0.1, b""))
    del store
    server = processes.server("--rounds", "3", "--deadline", "60")
    processes.device("a")
    processes.device("b")
    progress, last, _ = finish(server)
    assert [event["results"] for event in progress if "results" in event] == [2, 2, 2]
    assert_equal_replicas(bundle, tmp_path, last, {"a", "b"})


def test_divergence_ends_the_job_with_a_sentence(processes: Processes) -> None:
    for name in ("a", "b", "c"):
        processes.device(name)
    server = processes.server("--rounds", "20", "--learning-rates", "1e9,1e9", "--deadline", "1")
    _, errors = server.communicate(timeout=60)
    assert server.returncode == 1
    assert "cannot go on; device" in errors
    assert "the model has diverged; lower the learning rates" in errors
    assert "Traceback" not in errors


def test_a_folder_serves_one_server(processes: Processes) -> None:
    first = processes.server("--rounds", "5")
    end = time.monotonic() + 20
    while not (processes.folder / "server" / "lock").exists() and time.monotonic() < end:
        time.sleep(0.05)
    second = processes.server("--rounds", "5")
    _, errors = second.communicate(timeout=30)
    assert second.returncode == 1
    assert "is in use by another process" in errors
    assert first.poll() is None


def test_a_refused_device_ends_with_a_sentence(processes: Processes, broker: EmbeddedBroker, bundle: Bundle) -> None:
    topics = Topics("default")
    peer = Peer(broker, "server-default", [topics.up("+")])
    device = processes.device("a")
    assert peer.wait(Sync).bundle == bundle.identity
    peer.publish(topics.down("a"), encode(Refusal("it may not")))
    _, errors = device.communicate(timeout=20)
    peer.close()
    assert device.returncode == 1
    assert "fedspzo device: the server refuses device 'a': it may not" in errors
    assert "Traceback" not in errors


def test_sigterm_is_a_clean_stop(processes: Processes, broker: EmbeddedBroker) -> None:
    topics = Topics("default")
    peer = Peer(broker, "watcher", [topics.state("a")])
    device = processes.device("a")
    assert peer.wait(Presence).online
    device.terminate()
    assert device.wait(10) == 0
    assert not peer.wait(Presence).online
    assert "Traceback" not in device.communicate()[1]
    peer.close()


def test_a_device_holds_little_memory(processes: Processes) -> None:
    """The tiny model's process is the runtime's own size: engine, numpy, MQTT."""
    for name in ("a", "b", "c"):
        device = processes.device(name)
    server = processes.server("--rounds", "10")
    read_rounds(server, 5)
    resident = psutil.Process(device.pid).memory_info().rss / 1e6
    _, last, _ = finish(server)
    assert resident < 110
    assert max(report["rss_mb"] for report in last["devices"].values()) < 110
