"""A device as a service: what it says to systemd, how its log is marked, and that the unit's sandbox suits it."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from federation import FEDSPZO, Processes, assert_equal_replicas, broker, finish, processes
from patience import PATIENCE_S
from sandbox import missing, read_unit, write_sandbox

from fedspzo.device_runtime.data.store import DataStore
from fedspzo.device_runtime.engines.protocol import create_engine
from fedspzo.device_runtime.engines.watched import WatchedEngine
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.platform.systemd import ALIVE, READY, ServiceManager
from fedspzo.device_runtime.protocol.plan import Plan
from fedspzo.device_runtime.replica.weights import Replica
from fedspzo.device_runtime.step.estimator import measure
from fedspzo.device_runtime.step.runner import Forward

__all__ = ["broker", "processes"]

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
UNIT = DEPLOY / "fedspzo-device@.service"
ROUNDS = 12
#: Of a job with one device.
ALONE = ("--devices", "1", "--cohort", "1", "--rounds", str(ROUNDS))
#: What runs a server that no service manager started, where a device has one.
UNMANAGED = ("env", "--unset=NOTIFY_SOCKET", *FEDSPZO)


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """A service manager's end: the socket that it listens on."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.settimeout(PATIENCE_S)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield listener


def wait_until_ready(manager: socket.socket) -> None:
    while READY not in manager.recv(4096).decode().split("\n"):
        pass


def wait_for_ever(manager: socket.socket) -> None:
    while True:
        manager.recv(4096)


def test_a_device_says_that_it_gets_on(processes: Processes, manager: socket.socket) -> None:
    device = processes.device("a")
    assert manager.recv(4096) == b"STATUS=round 0"
    wait_until_ready(manager)
    assert device.poll() is None
    server = processes.server(*ALONE, program=UNMANAGED)
    for _ in range(ROUNDS):
        worked = 0
        while not (word := manager.recv(4096).decode()).startswith("STATUS=round"):
            worked += word == ALIVE
        assert worked, "no graph that ran was told of"
    finish(server)
    device.wait(PATIENCE_S)


def test_a_device_that_hangs_says_nothing(processes: Processes, manager: socket.socket) -> None:
    """Its connection lives on in a thread of its own; its agent waits for a file that does not come."""
    device = processes.device("a")
    wait_until_ready(manager)
    data = processes.folder / "a.jsonl"
    data.unlink()
    os.mkfifo(data)
    server = processes.server(*ALONE, program=UNMANAGED)
    manager.settimeout(3)
    with pytest.raises(TimeoutError):
        wait_for_ever(manager)
    assert (device.poll(), server.poll()) == (None, None)
    data.open("w").close()
    manager.settimeout(PATIENCE_S)
    while not manager.recv(4096).decode().startswith("STATUS=round"):
        pass
    data.unlink()


def test_nobody_has_to_listen(tmp_path: Path) -> None:
    ServiceManager({}).say(READY)
    ServiceManager({"NOTIFY_SOCKET": str(tmp_path / "nobody")}).say(READY)
    name = f"@fedspzo-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind("\0" + name[1:])
        manager = ServiceManager({"NOTIFY_SOCKET": name})
        for _ in range(10_000):  # more than its queue takes
            manager.say(READY, "STATUS=here")
        assert listener.recv(100) == b"READY=1\nSTATUS=here"


@pytest.mark.parametrize("journal", [True, False])
def test_the_journal_gets_levels(tmp_path: Path, journal: bool) -> None:
    with (tmp_path / "log").open("w") as log:
        status = os.fstat(log.fileno())
        stream = f"{status.st_dev}:{status.st_ino + (not journal)}"
        options = ("--state", "s", "--data", "d", "--broker", "mqtt://h")
        command = [sys.executable, "-m", "fedspzo", "device", "nowhere", *options]
        done = subprocess.run(command, stderr=log, env={**os.environ, "JOURNAL_STREAM": stream})
    assert done.returncode == 78
    assert (tmp_path / "log").read_text().startswith("<3>" * journal + "fedspzo device: ")


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd is not installed")
@pytest.mark.parametrize("source", sorted(DEPLOY.glob("*.service")), ids=lambda source: source.stem)
def test_systemd_takes_the_unit(source: Path, tmp_path: Path) -> None:
    unit = tmp_path / source.name.replace("@", "@pi-1")
    program = shutil.which("fedspzo", path=str(Path(sys.executable).parent)) or "/bin/true"
    unit.write_text(source.read_text().replace("/opt/fedspzo/bin/fedspzo", program))
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    bar = ["--offline=true", "--threshold=15"]  # exposure in tenths, of 100
    done = subprocess.run(["systemd-analyze", "security", *bar, "--no-pager", unit], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
@pytest.mark.skipif(bool(missing()), reason=missing())
def test_the_units_sandbox_suits_a_device(
    processes: Processes, tmp_path: Path, write_examples: Callable[[Path, int], Path]
) -> None:
    """It trains where it can write to its state folder alone; ExecuTorch's interface is compiled there too."""
    unit = read_unit(UNIT)
    for name in ("litert", "executorch"):
        (tmp_path / name).mkdir()
        (tmp_path / f"{name}.jsonl").touch()
        readable = [tmp_path / "bundle", tmp_path / f"{name}.jsonl"]
        script = write_sandbox(tmp_path / f"{name}.sh", unit, tmp_path / name, readable)
        processes.device(name, engine=name, program=(script, "-m", "fedspzo"))
    _, last, _ = finish(processes.server("--devices", "2", "--quorum", "2", "--rounds", str(ROUNDS)))
    assert_equal_replicas(Bundle(processes.bundle), tmp_path, last, {"litert", "executorch"})
    assert list((tmp_path / "executorch" / "cache" / "fedspzo").glob("*.so"))


def test_a_watched_engine_computes_as_it_does_unwatched(
    bundle: Bundle, store: DataStore, make_plan: Callable[..., Plan]
) -> None:
    """To the bit: it has its weights where they are packed, as the engine alone has."""
    ran: list[None] = []
    watched = WatchedEngine(create_engine("litert"), lambda: ran.append(None))
    found = measure(Forward(watched, Replica(bundle)), store, make_plan(), "a")
    assert found == measure(Forward(create_engine("litert"), Replica(bundle)), store, make_plan(), "a")
    assert ran
