"""Processes of a federation, started as a user starts them, and clients that say what no process would.

The fixtures ``broker`` and ``processes`` are for tests to import.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
import pytest
from patience import PATIENCE_S

from fedspzo.broker.mqtt.embedded import EmbeddedBroker, spawn_broker
from fedspzo.broker.server.state_folder import pin_bundle, read_journal
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.protocol.codec import decode, encode
from fedspzo.device_runtime.protocol.messages import Message, Sync
from fedspzo.device_runtime.protocol.signing import PIN, SIGNATURE_BYTES, Scope, Signer
from fedspzo.device_runtime.replica.chain import EMPTY
from fedspzo.device_runtime.replica.weights import Replica

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

#: A full pipe stops whoever writes to it; these take 5,000 rounds of a server that nobody reads.
PIPES: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "pipesize": 1 << 20}
#: What Python runs.
FEDSPZO = (sys.executable, "-m", "fedspzo")


class Processes:
    """Starts the commands of one job; stops what is left at the end."""

    def __init__(self, bundle: Path, folder: Path, url: str, write: Callable[[Path, int], Path]) -> None:
        self.bundle, self.folder, self.url, self.write = folder / "bundle", folder, url, write
        shutil.copytree(bundle, self.bundle, ignore=shutil.ignore_patterns(PIN))
        pin_bundle(self.bundle, folder / "server")
        self.running: list[subprocess.Popen[str]] = []
        self.logins: dict[str, str | Path] = {}  # user → URL with its name and password, or its access file

    def device(
        self,
        name: str,
        bundle: Path | None = None,
        engine: str = "litert",
        program: Sequence[object] = FEDSPZO,
        more: Sequence[object] = (),
    ) -> subprocess.Popen[str]:
        data = self.write(self.folder / f"{name}.jsonl", 12)
        options = ("--state", self.folder / name, "--data", data, "--id", name, "--engine", engine)
        return self._start(name, "device", bundle or self.bundle, *options, *more, program=program)

    def server(
        self,
        *options: str,
        serve_after: Sequence[str] = ("--serve-after", "0"),
        program: Sequence[object] = FEDSPZO,
    ) -> subprocess.Popen[str]:
        data = self.write(self.folder / "held-out.jsonl", 10)
        more = ("--state", self.folder / "server", "--data", data, "--json", *serve_after, *JOB, *options)
        return self._start("server", "server", self.bundle, *more, program=program)

    def _start(
        self, user: str, command: str, bundle: Path, *options: object, program: Sequence[object] = FEDSPZO
    ) -> subprocess.Popen[str]:
        login = self.logins.get(user, self.url)
        arguments = [*program, command, bundle, "--access" if isinstance(login, Path) else "--broker", login, *options]
        process = subprocess.Popen(list(map(str, arguments)), text=True, umask=0, **PIPES)
        self.running.append(process)
        return process

    def stop(self) -> list[tuple[str, str]]:
        """Kill what is left; what each of them had said, in the order of their start."""
        for process in self.running:
            process.kill()
        return [process.communicate() for process in self.running]


@pytest.fixture
def broker() -> Iterator[EmbeddedBroker]:
    with spawn_broker() as running:
        yield running


@pytest.fixture
def processes(
    bundle_folder: Path, tmp_path: Path, broker: EmbeddedBroker, write_examples: Callable[[Path, int], Path]
) -> Iterator[Processes]:
    started = Processes(bundle_folder, tmp_path, broker.url, write_examples)
    yield started
    started.stop()


class Peer:
    """Another client of the broker, with a key of its own."""

    def __init__(self, broker: EmbeddedBroker, name: str, topics: list[str], key: Path, bundle: Bundle) -> None:
        self.name, self.signer, self.identity = name, Signer(key), bundle.identity
        self.received: list[tuple[str, bytes]] = []
        subscribed = threading.Event()
        self.client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id=name, protocol=mqtt.MQTTv311)
        self.client.on_message = lambda _c, _u, message: self.received.append((message.topic, message.payload))
        self.client.on_subscribe = lambda *_: subscribed.set()
        self.client.connect("127.0.0.1", broker.port)
        self.client.subscribe([(topic, 1) for topic in topics])
        self.client.loop_start()
        assert subscribed.wait(PATIENCE_S)

    def publish(self, topic: str, payload: bytes, retain: bool = False) -> None:
        self.client.publish(topic, payload, qos=1, retain=retain).wait_for_publish(PATIENCE_S)

    def say(self, topic: str, message: Message, retain: bool = False, **scope: Any) -> None:
        """A message, signed as this peer's own."""
        self.publish(topic, self.sign(encode(message), **scope), retain)

    def sign(self, payload: bytes, **scope: Any) -> bytes:
        return self.signer.sign(
            payload, Scope(**{"job": "default", "bundle": self.identity, "device": self.name, **scope})
        )

    def sync(self, **changes: Any) -> Sync:
        """A newcomer's."""
        plain = {
            "session": 9,
            "round": 0,
            "head": EMPTY,
            "examples": 5,
            "battery": 1.0,
            "charging": True,
            "willing": True,
        }
        return Sync(**{"key": self.signer.public, "bundle": self.identity, **plain, **changes})  # type: ignore[arg-type]

    def wait_quiet(self, seconds: float = 0.3) -> list[tuple[str, bytes]]:
        count = -1
        while len(self.received) != count:
            count = len(self.received)
            time.sleep(seconds)
        return self.received

    def wait(self, kind: type[Message]) -> Any:
        """The first message of a kind, taken out."""
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            for item in list(self.received):
                message = decode(item[1][:-SIGNATURE_BYTES])
                if isinstance(message, kind):
                    self.received.remove(item)
                    return message
            time.sleep(0.02)
        raise AssertionError(f"no {kind.__name__} within {PATIENCE_S:g} s")

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()


def finish(server: subprocess.Popen[str]) -> tuple[list[dict[str, Any]], dict[str, Any], str]:
    """The server's progress, its closing words and its log, once it has ended."""
    out, errors = server.communicate(timeout=PATIENCE_S)
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


@contextmanager
def held(*devices: subprocess.Popen[Any]) -> Iterator[None]:
    """Devices that stand still, and with them the job: a round lasts until they answer, or to its deadline."""
    for device in devices:
        device.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        for device in devices:
            device.send_signal(signal.SIGCONT)


def read_end(server: subprocess.Popen[str]) -> dict[str, Any]:
    """Wait until the job is over; what the server says then."""
    assert server.stdout is not None
    for line in server.stdout:
        if "finished" in (said := json.loads(line)):
            return said
    raise AssertionError(server.communicate())


def read_rounds(server: subprocess.Popen[str], count: int) -> None:
    """Wait until the server has closed some more rounds."""
    assert server.stdout is not None
    while count:
        line = server.stdout.readline()
        assert line, server.communicate()
        count -= "results" in json.loads(line)
