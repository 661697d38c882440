"""Servers and devices of the version before, beside those of this one: on the wire, and on the same state folders."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from federation import FEDSPZO, Processes, assert_equal_replicas, broker, finish, processes, read_rounds

from fedspzo.device_runtime.model.bundle import Bundle

__all__ = ["broker", "processes"]

pytestmark = pytest.mark.slow

#: The commit of 0.2.0.
BEFORE = "13693ad650f4a8914f7758ec7d9295b178402721"


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> tuple[object, ...]:
    """What runs 0.2.0."""
    packed = subprocess.run(["git", "archive", BEFORE], cwd=Path(__file__).parents[2], capture_output=True)
    if packed.returncode:
        pytest.skip(f"the repository here has no history back to 0.2.0: {packed.stderr.decode().strip()}")
    folder = tmp_path_factory.mktemp("before")
    with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as archive:
        archive.extractall(folder, filter="tar")
    program = "env", f"--chdir={folder}", sys.executable, "-m", "fedspzo"  # Python looks in the current folder first
    known = subprocess.run([*program, "invite", "--help"], capture_output=True)
    assert known.returncode, "0.2.0 invited nobody"
    return program


@pytest.mark.parametrize("newer", ["server", "devices"])
def test_both_versions_work_together(
    processes: Processes, before: tuple[object, ...], bundle: Bundle, tmp_path: Path, newer: str
) -> None:
    """A device of this version is always among them."""
    server, devices = (FEDSPZO, before) if newer == "server" else (before, FEDSPZO)
    for name, program in {"a": devices, "b": devices, "c": FEDSPZO}.items():
        processes.device(name, program=program)
    _, last, _ = finish(processes.server("--rounds", "8", program=server))
    assert_equal_replicas(bundle, tmp_path, last, {"a", "b", "c"})


@pytest.mark.parametrize("back", [False, True], ids=["upgrade", "roll-back"])
def test_a_job_goes_on_with_the_other_version(
    processes: Processes, before: tuple[object, ...], bundle: Bundle, tmp_path: Path, back: bool
) -> None:
    """Server and one device are killed and started anew on their folders; the other devices stay as they are."""
    first, then = (FEDSPZO, before) if back else (before, FEDSPZO)
    devices = [processes.device(name, program=first) for name in ("a", "b", "c")]
    server = processes.server("--rounds", "8", program=first)
    read_rounds(server, 3)
    for process in (server, devices[0]):
        process.send_signal(signal.SIGKILL)
        process.wait()
    processes.device("a", program=then)
    _, last, _ = finish(processes.server("--rounds", "8", program=then))
    assert_equal_replicas(bundle, tmp_path, last, {"a", "b", "c"})
