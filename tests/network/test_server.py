"""A server as an object in one's own process, and what it does for a job that is over."""

from __future__ import annotations

import math
import shutil
import signal
import threading
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from federation import Processes, broker, processes, read_end
from patience import PATIENCE_S, wait_until
from ports import free_port
from refusals import raises

from fedspzo.broker.mqtt.embedded import EmbeddedBroker
from fedspzo.broker.mqtt.mosquitto import ManagedBroker
from fedspzo.broker.mqtt.mosquitto_program import installed
from fedspzo.broker.rounds.aggregate import ClosedRound, close_round
from fedspzo.broker.rounds.job import Job
from fedspzo.broker.rounds.sampling import Candidate
from fedspzo.broker.server import devices as devices_module
from fedspzo.broker.server.admission import Admission
from fedspzo.broker.server.evaluation import Evaluated
from fedspzo.broker.server.progress import Event, Observer
from fedspzo.broker.server.server import Server
from fedspzo.broker.server.state_folder import read_history, read_journal
from fedspzo.broker.server.store import ServerStore
from fedspzo.cli import main
from fedspzo.device_runtime.data.store import DataStore
from fedspzo.device_runtime.device.agent import Agent
from fedspzo.device_runtime.engines.protocol import create_engine
from fedspzo.device_runtime.files import make_folder
from fedspzo.device_runtime.link.access import Access
from fedspzo.device_runtime.link.connection import Link
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.protocol.codec import encode
from fedspzo.device_runtime.protocol.entry import Contribution, Entry
from fedspzo.device_runtime.protocol.messages import Message, Presence, Result, Sync
from fedspzo.device_runtime.protocol.plan import Block, Plan
from fedspzo.device_runtime.protocol.signing import PIN, Scope, Signer
from fedspzo.device_runtime.protocol.topics import Topics
from fedspzo.device_runtime.replica.chain import EMPTY
from fedspzo.device_runtime.replica.device_key import KEY
from fedspzo.device_runtime.replica.state import DeviceState
from fedspzo.run_folder import open_run

__all__ = ["broker", "processes"]

ROUNDS = 4


def make_job(rounds: int = ROUNDS, cohort: int = 1, deadline: float = 60.0) -> Job:
    job = Job(rounds=rounds, cohort=cohort, quorum=1, deadline=deadline, seed=1, batch=4)
    return job.with_blocks((Block(3, 1, 0.25, 1e-3), Block(5, 4, 1.0, 1e-2)))


class Device:
    """An agent on a thread of its own."""

    def __init__(self, access: Access, job: str, bundle: Bundle, folder: Path, store: DataStore) -> None:
        self.state = DeviceState(folder, bundle, folder.name)
        self.agent = Agent(access, job, create_engine("litert"), self.state, lambda: store)
        self.agent.connect()
        self._thread = threading.Thread(target=self.agent.run, daemon=True)
        self._thread.start()

    def digest(self) -> bytes:
        """Of its replica, when its job is over."""
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()
        return self.state.replica.digest()


def copy_bundle(bundle: Bundle, folder: Path) -> Bundle:
    """One that belongs to no server yet."""
    return Bundle(shutil.copytree(bundle.folder, folder, ignore=shutil.ignore_patterns(PIN)))


def test_two_servers_side_by_side_and_one_of_them_again(
    bundle: Bundle, broker: EmbeddedBroker, store: DataStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In one process with their devices; they print nothing and leave signals alone."""
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    told: dict[str, list[Event]] = {"one": [], "two": []}
    bundles = {name: copy_bundle(bundle, tmp_path / f"bundle-{name}") for name in told}

    def make(name: str, rounds: int) -> Server:
        return Server(
            bundles[name], make_job(rounds=rounds), Access(broker.url), tmp_path / name, name=name, held_out=store,
            evaluate_every=2, serve_after=0, observe=told[name].append,
        )  # fmt: skip

    servers = {name: make(name, ROUNDS) for name in told}
    with servers["one"], servers["two"]:
        devices = {
            name: Device(Access(broker.url), name, bundles[name], tmp_path / f"{name}-a", store) for name in told
        }
        for name, server in servers.items():
            result = server.wait(PATIENCE_S)
            assert result is not None
            assert result.digest == devices[name].digest() == result.reports[f"{name}-a"].digest
            assert devices[name].agent.rounds == ROUNDS
            assert told[name][-1] == result
            assert [event.round for event in told[name] if isinstance(event, ClosedRound)] == [*range(1, ROUNDS + 1)]
            assert [event.round for event in told[name] if isinstance(event, Evaluated)] == [0, 2, 4]
            assert (server.status().round, server.status().known) == (ROUNDS, 1)
    devices["one"].state.close()
    told["one"].clear()
    with make("one", ROUNDS + 2) as server:
        device = Device(Access(broker.url), "one", bundles["one"], tmp_path / "one-a", store)
        result = server.wait(PATIENCE_S)
        assert result is not None
        assert (result.digest, device.agent.rounds) == (device.digest(), ROUNDS + 2)
    assert [event.round for event in told["one"] if isinstance(event, ClosedRound)] == [ROUNDS + 1, ROUNDS + 2]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert capsys.readouterr() == ("", "")


def test_a_job_without_patience_left_ends_as_any_job_does(
    pinned: Bundle, broker: EmbeddedBroker, store: DataStore, tmp_path: Path
) -> None:
    """Weights that do not move get no better. Its device ends with the server's bits; started again, it is over."""
    job = Job(rounds=1000, cohort=1, seed=1, batch=4).with_blocks((Block(3, 1, 0.25, 0.0), Block(5, 4, 1.0, 0.0)))

    def make(patience: int, observe: Observer) -> Server:
        return Server(
            pinned, job, Access(broker.url), tmp_path / "server", held_out=store, evaluate_every=1, patience=patience,
            serve_after=0, observe=observe,
        )  # fmt: skip

    told: list[Event] = []
    with make(2, told.append) as server:
        device = Device(Access(broker.url), "default", pinned, tmp_path / "a", store)
        result = server.wait(PATIENCE_S)
    assert result is not None
    last = max(event.round for event in told if isinstance(event, ClosedRound))
    assert last < 1000
    assert result.digest == device.digest() == open_run(tmp_path / "server", last).digest()
    assert result.best is not None
    assert result.best.round == 0
    device.state.close()
    told.clear()
    with make(2, told.append) as server:
        device = Device(Access(broker.url), "default", pinned, tmp_path / "a", store)
        again = server.wait(PATIENCE_S)
    device.state.close()
    assert again is not None
    assert (again.digest, again.best) == (result.digest, result.best)
    assert not [event for event in told if isinstance(event, ClosedRound)]


def test_it_is_stopped_from_anywhere(pinned: Bundle, broker: EmbeddedBroker, tmp_path: Path) -> None:
    """And the folder is free then."""
    server = Server(pinned, make_job(), Access(broker.url), tmp_path / "server")
    with raises("server.not-started"):
        server.status()
    assert server.wait(0) is None
    for _ in range(2):
        with server, raises("server.running", "stop it first"):
            server.start()
    threading.Timer(0.5, server.stop).start()
    assert server.run() is None
    with ServerStore(tmp_path / "server", pinned.identity):
        pass


def test_what_an_observer_raises_ends_it_and_is_raised_where_it_is_waited_for(
    pinned: Bundle, broker: EmbeddedBroker, store: DataStore, tmp_path: Path
) -> None:
    def observe(event: Event) -> None:
        raise RuntimeError("I am full")

    with pytest.raises(RuntimeError, match="I am full"):
        Server(pinned, make_job(), Access(broker.url), tmp_path / "server", held_out=store, observe=observe).run()


def test_aggregation_and_sampling_of_ones_own(
    pinned: Bundle, broker: EmbeddedBroker, store: DataStore, tmp_path: Path
) -> None:
    def clip(plan: Plan, results: Mapping[str, Result]) -> Entry:
        mean = close_round(plan, results).contributions[0]
        return Entry(plan, (Contribution("", 1.0, tuple(max(-0.1, min(0.1, scalar)) for scalar in mean.scalars)),))

    def take_turns(job: Job, round: int, candidates: Mapping[str, Candidate], count: int) -> tuple[str, ...]:
        names = sorted(candidates)
        return (names[round % len(names)],)

    server = Server(
        pinned, make_job(), Access(broker.url), tmp_path / "server", name="own", devices=2, serve_after=0,
        aggregate=clip, sample=take_turns,
    )  # fmt: skip
    with server:
        devices = [Device(Access(broker.url), "own", pinned, tmp_path / name, store) for name in ("a", "b")]
        result = server.wait(PATIENCE_S)
        assert result is not None
        assert [device.digest() for device in devices] == [result.digest] * 2
    assert [closed.devices for closed in read_history(tmp_path / "server")] == [("b",), ("a",)] * (ROUNDS // 2)
    scalars = [scalar for entry in read_journal(tmp_path / "server") for scalar in entry.contributions[0].scalars]
    assert max(map(abs, scalars)) == np.float32(0.1)


def test_a_finished_job_is_served_until_it_is_stopped(processes: Processes, bundle: Bundle, tmp_path: Path) -> None:
    """Who comes after the end gets the final model."""
    devices = [processes.device(name) for name in ("a", "b", "c")]
    server = processes.server("--rounds", "6", serve_after=())
    end = read_end(server)
    for process in devices:
        assert process.wait(PATIENCE_S) == 0
    assert server.poll() is None
    late = processes.device("late")
    assert late.wait(PATIENCE_S) == 0
    late_state = DeviceState(tmp_path / "late", Bundle(processes.bundle))
    assert late_state.replica.round == 6
    assert late_state.replica.digest().hex() == end["server_digest"]
    assert server.poll() is None
    server.terminate()
    out, errors = server.communicate(timeout=PATIENCE_S)
    assert (server.returncode, out) == (0, "")
    assert "Traceback" not in errors


class Silent:
    """A device that syncs, and answers no plan."""

    def __init__(self, access: Access, job: str, name: str, bundle: Bundle, key: Path) -> None:
        self.signer, self._scope = Signer(key), Scope(job, bundle.identity, name)
        topics = Topics(job)
        self.link = Link(access, name, [topics.down(name)])
        self.link.connect()
        self._say(topics.state(name), Presence(True, 1), retain=True)
        self._say(topics.up(name), Sync(self.signer.public, 1, bundle.identity, 0, EMPTY, 9, 1.0, True, True))

    def _say(self, topic: str, message: Message, retain: bool = False) -> None:
        self.link.publish(topic, self.signer.sign(encode(message), self._scope), retain)


@pytest.mark.skipif(not installed(), reason="mosquitto is not installed")
def test_a_device_whose_login_is_removed_is_not_waited_for(
    pinned: Bundle, store: DataStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though mosquitto does not publish its will, and the round's deadline is far."""
    monkeypatch.setattr(devices_module, "LEASE_S", math.inf)
    with ManagedBroker(tmp_path / "broker", port=free_port()) as broker:
        logins = {access.user: access for access in broker.add_users(["a", "gone"])}
        job = make_job(cohort=2, deadline=1e6)
        with Server(pinned, job, broker.server_access(), tmp_path / "server", devices=2, serve_after=0) as server:
            silent = Silent(logins["gone"], "default", "gone", pinned, tmp_path / "key")
            device = Device(logins["a"], "default", pinned, tmp_path / "a", store)
            wait_until(lambda: (server.status().asked, server.status().results) == (2, 1))
            assert main(["enroll", "--broker", str(broker.folder), "--remove", "gone"]) == 0
            result = server.wait(PATIENCE_S)
            assert result is not None
            assert result.digest == device.digest()
            assert [closed.devices for closed in read_history(tmp_path / "server")] == [("a",)] * ROUNDS
            silent.link.close()


def test_a_device_that_is_struck_from_the_list_is_not_waited_for(
    pinned: Bundle, broker: EmbeddedBroker, store: DataStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though it says nothing."""
    monkeypatch.setattr(devices_module, "LEASE_S", math.inf)
    lines = {}
    for name in ("a", "gone"):
        make_folder(tmp_path / name)
        lines[name] = f"{name} {Signer(tmp_path / name / KEY).public.hex()}\n"
    admitted = tmp_path / "admitted"
    admitted.write_text("".join(lines.values()))
    server = Server(
        pinned, make_job(cohort=2, deadline=1e6), Access(broker.url), tmp_path / "server", devices=2, serve_after=0,
        admission=Admission(admitted),
    )  # fmt: skip
    with server:
        silent = Silent(Access(broker.url), "default", "gone", pinned, tmp_path / "gone" / KEY)
        device = Device(Access(broker.url), "default", pinned, tmp_path / "a", store)
        wait_until(lambda: (server.status().asked, server.status().results) == (2, 1))
        admitted.write_text(lines["a"])
        result = server.wait(PATIENCE_S)
        assert result is not None
        assert result.digest == device.digest()
        assert [closed.devices for closed in read_history(tmp_path / "server")] == [("a",)] * ROUNDS
        silent.link.close()
