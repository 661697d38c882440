"""Jobs on Flower's grid, in an environment with Flower in it: their journals are a simulated job's, bit for bit."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from patience import PATIENCE_S, wait_until
from ports import free_port
from tiny import write_requests

from fedspzo.api.simulation import simulate
from fedspzo.broker.rounds.job import Job
from fedspzo.broker.server.state_folder import pin_bundle, read_history, read_journal
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.protocol.codec import encode
from fedspzo.device_runtime.protocol.signing import PIN
from fedspzo.device_runtime.replica.state import DeviceState
from fedspzo.device_runtime.replica.weights import Replica

if sys.version_info >= (3, 11):
    import tomllib

REPOSITORY = Path(__file__).parents[2]
NODES, ROUNDS = 8, 10


def test_it_says_how_to_install_it() -> None:
    code = "from fedspzo.flower import server_app"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if found.returncode == 0:
        pytest.skip("Flower is installed here")
    assert "pip install '.[flower,litert]'" in found.stderr


@pytest.fixture(scope="module")
def flower() -> Path:
    """The programs of an environment with Flower and the base of fedspzo, which is kept for the next time."""
    if sys.version_info < (3, 11):
        pytest.skip("Flower needs Python 3.11")
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras["flower"], *extras["litert"]]
    name = hashlib.sha256("\n".join([sys.version, *wanted]).encode()).hexdigest()[:12]
    folder = Path.home() / ".cache" / "fedspzo" / f"flower-{name}"
    if not (folder / "ready").exists():
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        install = [folder / "bin" / "pip", "install", "--quiet", "--no-compile", "--only-binary", ":all:", *wanted]
        done = subprocess.run(install, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"Flower cannot be installed here: {done.stderr.strip().splitlines()[-1:]}")
        (folder / "ready").touch()
    return folder / "bin"


class Place:
    """A bundle that names its server, data of some devices, and a job's settings, as an operator lays them out."""

    def __init__(self, bundle: Path, folder: Path, programs: Path) -> None:
        self.folder, self.programs = folder, programs
        shutil.copytree(bundle, folder / "bundle", ignore=shutil.ignore_patterns(PIN))
        pin_bundle(folder / "bundle", folder / "server")
        self.bundle = Bundle(folder / "bundle")
        (folder / "data").mkdir()
        self.environment = {
            **os.environ, "PYTHONPATH": str(REPOSITORY), "PATH": f"{programs}:{os.environ['PATH']}",
            "FLWR_HOME": str(folder / "flower"), "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.05", "OMP_NUM_THREADS": "1",
        }  # fmt: skip

    def lay(self, nodes: int = NODES, rounds: int = ROUNDS) -> None:
        """Write the data of some nodes, and settings by which all share directions and answer every round."""
        self.nodes = nodes
        self.job = Job(rounds=rounds, cohort=nodes, seeds="shared", split=(3,), fanouts=(1, 4))
        for number in range(nodes):
            write_requests(self.folder / "data" / f"{number}.jsonl", 9 + number)
        told = [f"rounds = {rounds}", f"cohort = {nodes}", "seeds = 'shared'", "split = [3]", "fanouts = [1, 4]"]
        (self.folder / "job.toml").write_text("\n".join(told))

    def run(self, *command: object) -> subprocess.CompletedProcess[str]:
        words = list(map(str, command))
        return subprocess.run(
            words, env=self.environment, capture_output=True, text=True, timeout=PATIENCE_S, check=False
        )

    def probe(self, scenario: str) -> str:
        """What the apps say in a scenario on a grid in one process."""
        script = REPOSITORY / "tests" / "support" / "flower_grid.py"
        found = self.run(self.programs / "python", script, scenario, self.folder)
        said = found.stdout + found.stderr
        assert found.returncode == 0, said
        return said

    @contextmanager
    def started(self, name: str, *command: object) -> Iterator[subprocess.Popen[bytes]]:
        """A process, which ends with all that it has started."""
        with open(self.folder / f"{name}.log", "wb") as log:
            process = subprocess.Popen(
                list(map(str, command)), env=self.environment, stdout=log, stderr=log, start_new_session=True
            )
        try:
            yield process
        finally:
            process.terminate()
            process.wait(PATIENCE_S)

    def journal(self) -> list[bytes]:
        return [encode(entry) for entry in read_journal(self.folder / "server")]

    def assert_one_model(self) -> None:
        """Replicas of server and devices are those that the journal makes."""
        replica = Replica(self.bundle)
        for entry in read_journal(self.folder / "server"):
            replica.apply(entry)
        for number in range(self.nodes):
            state = DeviceState(self.folder / "nodes" / str(number), self.bundle)
            assert state.replica.digest() == replica.digest()
            state.close()


@pytest.fixture
def place(bundle_folder: Path, tmp_path: Path, flower: Path) -> Place:
    return Place(bundle_folder, tmp_path, flower)


def simulated(place: Place) -> tuple[list[bytes], str]:
    """The journal and the digest of the same job with virtual devices."""
    run = simulate(place.bundle, place.folder / "data", place.job, state=place.folder / "simulated")
    return [encode(entry) for entry in read_journal(place.folder / "simulated")], run.result.digest.hex()


@pytest.mark.slow
def test_a_job_goes_on_where_it_lost_the_grid(place: Place) -> None:
    place.lay()
    said = place.probe("restart")
    assert "Flower's grid failed (ConnectionError: the SuperLink is gone); start the run again" in said
    expected, digest = simulated(place)
    assert place.journal() == expected
    assert f"all models are equal; the digest is {digest}" in said
    place.assert_one_model()


@pytest.mark.slow
def test_nodes_that_fail_or_lie_are_named_and_nothing_is_lost(place: Place) -> None:
    place.lay(NODES + 2)  # of which two lie
    said = place.probe("hostile")
    for sentence in (
        "an answer of node 11 was dropped: its program failed: <class 'RuntimeError'>:<'out of memory\\nand more'>",
        "an answer of node 12 was dropped: it is not a FedSPZO message",
        "a message of 'junk' was dropped: ",
        "a message of '0' was dropped: ",
        "a result of '8' was refused: it is for round",
        "a message of '9' was dropped: ",
    ):
        assert sentence in said, said
    history = read_history(place.folder / "server")
    assert [closed.round for closed in history] == [1, 2, 3, 4]
    honest = {str(number) for number in range(NODES)}
    assert all(len(closed.devices) >= NODES - 1 and honest >= set(closed.devices) for closed in history)
    place.assert_one_model()


@pytest.mark.parametrize(
    ("simulation", "nodes", "rounds"),
    [
        # A process for each message, each of which imports Flower for three seconds of a core.
        pytest.param(False, 2, 2, marks=pytest.mark.slow, id="SuperNodes"),
        pytest.param(False, NODES, ROUNDS, marks=pytest.mark.matrix, id="eight-SuperNodes"),
        pytest.param(True, 3, 3, marks=pytest.mark.slow, id="simulation"),
        pytest.param(True, NODES, ROUNDS, marks=pytest.mark.matrix, id="simulation-of-eight"),
    ],
)
def test_flower_runs_a_job_as_we_do(place: Place, simulation: bool, nodes: int, rounds: int) -> None:
    place.lay(nodes, rounds)
    folder, port = place.folder, free_port()
    (folder / "app").mkdir()
    config = {
        "server.bundle": folder / "bundle", "server.state": folder / "server", "server.devices": nodes,
        "server.config": folder / "job.toml", "client.bundle": folder / "bundle",
        "client.state": f"{folder}/nodes/{{partition}}", "client.data": f"{folder}/data/{{partition}}.jsonl",
        "client.id": "{partition}",
    }  # fmt: skip
    told = [f"{key} = {json.dumps(value if isinstance(value, int) else str(value))}" for key, value in config.items()]
    text = (REPOSITORY / "examples" / "flower" / "pyproject.toml").read_text()
    head = text.partition("[tool.flwr.app.config")[0]
    (folder / "app" / "pyproject.toml").write_text("\n".join([head, "[tool.flwr.app.config]", *told]))
    (folder / "flower").mkdir()
    connection = ["[superlink.here]", f'address = "127.0.0.1:{port}"', "insecure = true"]
    if simulation:
        connection.append(f"options.num-supernodes = {nodes}")
    (folder / "flower" / "config.toml").write_text("\n".join(connection))
    mode = ["--simulation"] if simulation else []
    with ExitStack() as running:
        start = lambda *command: running.enter_context(place.started(*command))  # noqa: E731
        start(
            "superlink", "flower-superlink", "--insecure", "--port", port, "--disable-runtime-dependency-installation",
            *mode,
        )  # fmt: skip
        for number in range(0 if simulation else nodes):
            start(
                f"node-{number}", "flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{port}", "--port",
                free_port(), "--node-config", f"partition-id={number}",
            )  # fmt: skip
        expected, digest = simulated(place)
        wait_until(lambda: place.run("flwr", "ls", "here").returncode == 0)
        found = place.run("flwr", "run", folder / "app", "here", "--stream")
    assert f"all models are equal; the digest is {digest}" in found.stdout, found.stdout + found.stderr
    assert place.journal() == expected
    place.assert_one_model()
