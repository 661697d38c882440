"""Keys and certificates that are changed while devices take part, or are away: nobody is lost, with real processes."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

import pytest
from federation import FEDSPZO, PIPES, read_rounds
from patience import PATIENCE_S, wait_until
from ports import free_port
from refusals import raises

from fedspzo.broker.mqtt.mosquitto import ManagedBroker
from fedspzo.broker.mqtt.mosquitto_program import installed
from fedspzo.broker.server.member_tables import read_authorities
from fedspzo.broker.server.state_folder import open_to_read, pin_bundle, read_journal
from fedspzo.broker.server.store import ServerStore
from fedspzo.cli import main
from fedspzo.device_runtime.link.access import Access
from fedspzo.device_runtime.link.authorities import fingerprint, read_certificates
from fedspzo.device_runtime.link.connection import Link
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.protocol.signing import PIN
from fedspzo.device_runtime.replica.state import DeviceState, read_identity
from fedspzo.device_runtime.replica.weights import Replica

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "operations.md"
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not installed(), reason="mosquitto is not installed")]


class Fleet:
    """A broker with TLS, and a server and devices that are started as a user starts them."""

    def __init__(self, folder: Path, bundle: Path, broker: ManagedBroker, write: Callable[[Path, int], Path]) -> None:
        self.folder, self.broker, self._write = folder, broker, write
        self.bundle = Path(shutil.copytree(bundle, folder / "bundle", ignore=shutil.ignore_patterns(PIN)))
        pin_bundle(self.bundle, folder / "server")
        self.running: list[subprocess.Popen[str]] = []

    def server(self, rounds: int, *more: object) -> subprocess.Popen[str]:
        return self._start(
            "server", self.bundle, "--access", self.broker.folder / "server.json", "--state", self.folder / "server",
            "--json", "--rounds", rounds, "--devices", 2, "--cohort", 2, "--split", 3, "--fanouts", "1,4", *more,
        )  # fmt: skip

    def device(self, name: str, state: str = "") -> subprocess.Popen[str]:
        access = self.folder / f"{name}.json"
        if not access.exists():
            self.broker.add_user(name).save(access)
        data = self._write(self.folder / f"{name}.jsonl", 12)
        return self._start(
            "device", self.bundle, "--access", access, "--state", self.folder / (state or name), "--data", data
        )  # fmt: skip

    def _start(self, *words: object) -> subprocess.Popen[str]:
        command: Sequence[str] = [*FEDSPZO, *map(str, words)]
        self.running.append(subprocess.Popen(command, text=True, **PIPES))
        return self.running[-1]

    def replicas(self, states: Iterable[str]) -> set[tuple[int, bytes]]:
        """Round and digest of devices that have ended, given their state folders."""
        found = set()
        for name in states:
            with closing(DeviceState(self.folder / name, Bundle(self.bundle))) as state:
                found.add((state.replica.round, state.replica.digest()))
        return found

    def replay(self) -> bytes:
        """Digest of a replica that has gone through the server's journal."""
        replica = Replica(Bundle(self.bundle))
        for entry in read_journal(self.folder / "server"):
            replica.apply(entry)
        return replica.digest()

    def restart_broker(self) -> None:
        """End all connections."""
        self.broker.close()
        self.broker = ManagedBroker(self.broker.folder)
        self.broker.start()

    def run(self, command: str) -> subprocess.CompletedProcess[str]:
        """Run a command of the operator's documentation as it is written there, given how it begins."""
        (line,) = re.findall(rf"^ *({command}.*)$", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE)
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        return subprocess.run(
            ["bash", "-c", line], cwd=self.folder, env={**os.environ, "PATH": path}, capture_output=True, text=True,
            timeout=PATIENCE_S,
        )  # fmt: skip

    def rotate(self, what: str) -> str:
        """Rotate the key of a ``server``, or take the next step for a ``broker``."""
        done = self.run(f"fedspzo {what} rotate")
        assert done.returncode == 0, done.stderr
        return done.stdout

    def trusted(self) -> dict[str, bytes]:
        """Device → what it trusts, as the server knows; "" → what the server trusts."""
        with closing(open_to_read(self.folder / "server")) as connection:
            return read_authorities(connection)

    def stop(self, process: subprocess.Popen[str]) -> str:
        """End a process, and give what it had logged."""
        process.terminate()
        return process.communicate(timeout=PATIENCE_S)[1]


@pytest.fixture
def fleet(bundle_folder: Path, tmp_path: Path, write_examples: Callable[[Path, int], Path]) -> Iterator[Fleet]:
    broker = ManagedBroker(tmp_path / "mosquitto-state", port=free_port())
    broker.start()
    broker.server_access()
    started = Fleet(tmp_path, bundle_folder, broker, write_examples)
    try:
        yield started
    finally:
        started.broker.close()
        for process in started.running:
            process.kill()
            process.communicate()


def test_devices_follow_a_server_to_other_keys(fleet: Fleet) -> None:
    """Those that are there at once, one that is away from key to key later, and a newcomer from the first on."""
    state, backup = fleet.folder / "server", fleet.folder / "backup"
    devices = {name: fleet.device(name) for name in ("here", "away")}
    server = fleet.server(rounds=200)
    read_rounds(server, 2)
    fleet.stop(devices["away"])
    devices["other"] = fleet.device("other")
    for _ in range(2):
        read_rounds(server, 2)
        server.kill()
        server.wait()
        assert "signs from round" in fleet.rotate("server")
        server = fleet.server(rounds=200)
    read_rounds(server, 2)
    assert main(["server", "backup", str(state), str(backup)]) == 0
    fleet.stop(server)
    assert main(["server", "adopt", str(backup), "--from", str(state)]) == 0
    shutil.rmtree(state)
    backup.rename(state)
    server = fleet.server(rounds=200)
    read_rounds(server, 2)
    fleet.stop(server)
    devices |= {name: fleet.device(name) for name in ("away", "new")}
    rounds = len(read_journal(state)) + 3
    fleet.server(rounds)
    for device in devices.values():
        _, said = device.communicate(timeout=PATIENCE_S)
        assert device.returncode == 0, said
        assert said.count("has another key from round") == 2, said
        assert "Traceback" not in said
    assert fleet.replicas(devices) == {(rounds, fleet.replay())}
    fleet.stop(fleet.running[-1])
    with ServerStore(state, Bundle(fleet.bundle).identity) as store:
        keys = [store.keys.at(round) for round in range(1, store.journal.last_round + 1)]
    assert len(set(keys)) == 3, "both changes came in the middle of the journal"


def test_devices_follow_the_broker_to_another_authority(fleet: Fleet) -> None:
    """With the access files that they have; also one that is away, and though broker and device are killed."""
    state, names = fleet.folder / "server", ("here", "other", "away")
    devices = {name: fleet.device(name) for name in names}
    old = fleet.broker.authority
    server = fleet.server(rounds=1000)
    read_rounds(server, 2)
    fleet.stop(devices["away"])
    assert "1 of 3" in fleet.rotate("broker")
    both = fingerprint(read_certificates(fleet.broker.authority))
    wait_until(lambda: [name for name, trusts in fleet.trusted().items() if trusts == both] == ["", "here", "other"])
    early = fleet.run("fedspzo broker rotate")
    assert early.returncode == 1
    assert "'away': not known to trust the new authority yet" in early.stderr
    devices["away"] = fleet.device("away")
    wait_until(lambda: fleet.trusted()["away"] == both)
    assert "2 of 3" in fleet.rotate("broker")
    with raises("broker.refused", "certificate that cannot be trusted"):
        Link(Access.load(fleet.folder / "here.json"), "here", []).connect(PATIENCE_S)  # it has the old authority alone
    devices["other"].kill()
    fleet.restart_broker()
    devices["other"] = fleet.device("other")
    read_rounds(server, 3)
    assert "3 of 3" in fleet.rotate("broker")
    new = read_certificates(fleet.broker.authority)
    assert set(new).isdisjoint(read_certificates(old))
    wait_until(lambda: set(fleet.trusted().values()) == {fingerprint(new)})
    fleet.restart_broker()
    read_rounds(server, 2)
    fleet.stop(server)
    rounds = len(read_journal(state)) + 3
    fleet.server(rounds)
    for device in devices.values():
        _, said_last = device.communicate(timeout=PATIENCE_S)
        assert device.returncode == 0, said_last
        assert "Traceback" not in said_last
    assert fleet.replicas(devices) == {(rounds, fleet.replay())}


def test_a_device_that_changes_its_key_stays_the_same(fleet: Fleet) -> None:
    """Also where it was on the operator's list, and whoever has the old key is sent away."""
    state, admitted = fleet.folder / "server", fleet.folder / "admitted"
    states = {name: f"{name}/state" for name in ("phone-1", "phone-2")}
    keys = {name: read_identity(fleet.folder / folder, name)[1] for name, folder in states.items()}
    admitted.write_text("".join(f"{name} {key.hex()}\n" for name, key in keys.items()))
    devices = {name: fleet.device(name, folder) for name, folder in states.items()}
    server = fleet.server(1000, "--admit", admitted)
    read_rounds(server, 2)
    fleet.stop(devices["phone-1"])
    shutil.copytree(fleet.folder / states["phone-1"], fleet.folder / "stolen")
    for _ in range(2):
        assert "phone-1 " in fleet.run("fedspzo device rotate").stdout
    devices["phone-1"] = fleet.device("phone-1", states["phone-1"])
    wait_until(lambda: counts(state, "phone-1"))
    read_rounds(server, 2)
    devices["phone-1"].send_signal(signal.SIGSTOP)
    thief = fleet.device("phone-1", "stolen")
    _, said = thief.communicate(timeout=PATIENCE_S)
    assert "its key was replaced by another one" in said
    devices["phone-1"].send_signal(signal.SIGCONT)
    read_rounds(server, 3)
    fleet.stop(server)
    rounds = len(read_journal(state)) + 3
    fleet.server(rounds, "--admit", admitted)
    for device in devices.values():
        _, said = device.communicate(timeout=PATIENCE_S)
        assert device.returncode == 0, said
    assert fleet.replicas(states.values()) == {(rounds, fleet.replay())}


def counts(state: Path, device: str) -> bool:
    """Whether a device has changed its key, and its result counted in the last round."""
    with closing(open_to_read(state)) as connection:
        changed = connection.execute("SELECT 1 FROM former_keys WHERE device = ?", (device,)).fetchone()
        last = connection.execute("SELECT devices FROM history ORDER BY round DESC LIMIT 1").fetchone()
    return bool(changed) and device in last[0].split()
