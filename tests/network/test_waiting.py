"""A device in one's own process, and what it says while it hears nothing from its server, and at the end."""

from __future__ import annotations

import json
import logging
import queue
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from federation import Peer, Processes, broker, processes
from patience import PATIENCE_S
from refusals import raises

from fedspzo.broker.mqtt.embedded import EmbeddedBroker
from fedspzo.broker.server.signing_key import KEY
from fedspzo.device_runtime.data.store import DataStore
from fedspzo.device_runtime.device import waiting
from fedspzo.device_runtime.device.device import Device
from fedspzo.device_runtime.device.events import Acknowledged, Event, Finished, Waiting
from fedspzo.device_runtime.link.access import Access
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.model.manifest import MANIFEST
from fedspzo.device_runtime.protocol.messages import Hello, Refusal, Sync
from fedspzo.device_runtime.protocol.topics import Topics
from fedspzo.device_runtime.replica.state import DeviceState

__all__ = ["broker", "processes"]

TOPICS = Topics("default")


class Running(Device):
    """A device in this process, and what it told of."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.events: queue.Queue[Event] = queue.Queue()
        super().__init__(*arguments, observe=self.events.put, **options)
        self.start()

    def heard(self, kind: type[Any]) -> Any:
        """The next event of a kind; those before it are left out."""
        while not isinstance(event := self.events.get(timeout=PATIENCE_S), kind):
            pass
        return event


@pytest.fixture
def start(
    processes: Processes,
    store: DataStore,
    broker: EmbeddedBroker,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> Iterator[Callable[..., Running]]:
    monkeypatch.setattr(waiting, "FIRST_S", 0.2)
    caplog.set_level(logging.INFO, "fedspzo")
    running: list[Running] = []

    def start(name: str) -> Running:
        folder = processes.folder / name
        running.append(Running(Bundle(processes.bundle), Access(broker.url), folder, store, name=name))
        return running[-1]

    yield start
    for one in running:
        one.stop()
        one.wait()


def test_what_a_device_waits_for_is_said_at_growing_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    now, told = [7.0], queue.Queue[Waiting]()
    monkeypatch.setattr(waiting, "time", SimpleNamespace(monotonic=lambda: now[0]))
    silence = waiting.Silence("default", "mqtt://host", Path("bundle"), told.put)
    silence.begin()
    apart = []
    for _ in range(12):
        apart.append(silence.due - now[0])
        now[0] = silence.due
        silence.tell(connected=True)
    assert apart == [*(waiting.FIRST_S * 2**n for n in range(9)), *[waiting.LONGEST_S] * 3]
    assert "not heard for 70 s" in [told.get_nowait().reason for _ in range(3)][-1]
    silence.end()
    assert silence.due == now[0] + waiting.QUIET_S


def test_a_device_without_a_server_says_what_it_waits_for(
    start: Callable[..., Running],
    broker: EmbeddedBroker,
    processes: Processes,
    bundle: Bundle,
) -> None:
    """Again and again, until it hears the server."""
    device = start("a")
    for _ in range(4):
        reason = device.heard(Waiting).reason
        for word in (broker.url, "job 'default'", "--job", "not be running", "over"):
            assert word in reason
    server = Peer(broker, "server-default", [TOPICS.up("+")], processes.folder / "server" / KEY, bundle)
    server.say(TOPICS.round, Hello(), device="")
    while device.heard(Waiting).reason:  # it may have been about to say so once more
        pass
    server.close()
    device.stop()
    assert device.wait() is None


def test_a_bundle_of_another_server(
    start: Callable[..., Running],
    broker: EmbeddedBroker,
    processes: Processes,
    bundle: Bundle,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is said once, while the messages' signatures are another server's."""
    other = Peer(broker, "server-default", [TOPICS.up("+")], processes.folder / "other.key", bundle)
    device = start("a")
    other.wait(Sync)
    other.say(TOPICS.round, Hello(), device="")
    while "belongs to another server" not in (reason := device.heard(Waiting).reason):
        pass
    assert "fetch it again" in reason
    assert str(processes.bundle) in reason
    device.heard(Waiting)
    said = [record for record in caplog.records if getattr(record, "kind", "") == "device.wrong-server-key"]
    assert len(said) == 1
    assert said[0].levelno == logging.WARNING
    other.close()


def test_two_devices_in_one_process(
    start: Callable[..., Running], processes: Processes, caplog: pytest.LogCaptureFixture
) -> None:
    """They start and stop by themselves, and learn that the job has ended, and at which round."""
    away, *both = (start(name) for name in ("away", "a", "b"))
    manifest = processes.bundle / MANIFEST
    manifest.write_text(manifest.read_text() + "\n")
    away.heard(Waiting)
    away.heard(Waiting)
    assert "has another bundle by now" in caplog.text
    away.stop()
    assert away.wait() is None
    server = processes.server("--rounds", "3", "--devices", "2", "--cohort", "2", "--quorum", "2")
    for device in both:
        assert device.heard(Acknowledged).counted
    assert device.heard(Finished) == Finished(3)
    assert [device.wait() for device in both] == [3, 3]
    _, errors = server.communicate(timeout=PATIENCE_S)
    assert server.returncode == 0, errors
    digests = [DeviceState(device.state, device.bundle).replica.digest() for device in both]
    assert digests[0] == digests[1]


def test_what_ends_it_is_raised(
    start: Callable[..., Running],
    broker: EmbeddedBroker,
    processes: Processes,
    store: DataStore,
    bundle: Bundle,
) -> None:
    """Where it is started, or where it is waited for; the folder is free again."""
    nowhere = Device(Bundle(processes.bundle), Access("mqtt://127.0.0.1:1"), processes.folder / "a", store, name="a")
    with raises("broker.no-answer", "check the URL"):
        nowhere.start()
    server = Peer(broker, "server-default", [TOPICS.up("+")], processes.folder / "server" / KEY, bundle)
    device = start("a")
    with raises("device.running", "stop it first"):
        device.start()
    assert device.wait(0.01) is None
    sync = server.wait(Sync)
    server.say(TOPICS.down("a"), Refusal(sync.key, sync.session, "it may not"), device="a")
    with raises("device.refused", "'a': it may not"):
        device.wait()
    server.close()


@pytest.mark.parametrize("as_json", [True, False])
def test_the_log_of_a_device(processes: Processes, tmp_path: Path, as_json: bool) -> None:
    """Times, levels, a file; nothing of the engine's; the job's end."""
    options = ["--json"] * as_json + ["--log-file", tmp_path / "log"]
    device = processes.device("a", more=options)
    server = processes.server("--rounds", "2", "--devices", "1", "--cohort", "1")
    server.communicate(timeout=PATIENCE_S)
    out, errors = device.communicate(timeout=PATIENCE_S)
    assert out == ""
    messages = []
    for line in errors.splitlines():
        if as_json:
            fields = json.loads(line)
            assert fields.keys() == {"time", "level", "logger", "message"}
            assert fields["level"] == "info"
            messages.append(fields["message"])
        else:
            matched = re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d INFO    (.*)", line)
            assert matched, line
            messages.append(matched[1])
    assert messages[0] == "device 'a': 12 examples, round 0"
    assert [text for text in messages if "counted" in text] == ["round 1 of 2: counted", "round 2 of 2: counted"]
    assert messages[-1] == "job 'default' ended at round 2"
    assert (tmp_path / "log").read_text() == errors
