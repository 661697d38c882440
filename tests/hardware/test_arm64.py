"""64-bit ARM in an emulator, with the wheels that a board gets: the device's suite, its bits, and a federation."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from arm64 import REPOSITORY, Board, make_board, missing, resolve
from federation import Processes, assert_equal_replicas, broker, finish, processes, read_rounds
from patience import PATIENCE_S

from fedspzo.device_runtime.model.bundle import Bundle

__all__ = ["broker", "processes"]

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(missing()), reason=missing())]

#: Tests of what a device reads, computes and keeps; what it says depends on no processor. They need no exporter and no
#: server.
SUITE = ("bundle", "data", "directions", "prefix", "replica")
#: What the tests above may spawn is run in the emulator too.
RUN_SUITE = "import sys, pytest; sys.executable = sys.argv.pop(1); sys.exit(pytest.main(sys.argv[1:]))"
PROBE = REPOSITORY / "tests" / "support" / "arm64_probe.py"
#: Fetched; and installed, without the libraries of LiteRT that docs/embedded-linux.md deletes.
MOST_FETCHED, MOST_BYTES = 90_000_000, 118_000_000
#: Two engines, or one on two processors, add the same products in another order: a loss of about 1 differs in its last
#: places, 2e-6 here. A scalar is a difference of two losses over 2ε.
LOSS_ERROR, EPSILON = 1e-5, 1e-3


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Board:
    return make_board(tmp_path_factory.mktemp("board"))


def test_little_is_downloaded(board: Board) -> None:
    assert sum(board.downloads.values()) <= MOST_FETCHED, board.downloads


@pytest.mark.parametrize("python", ["3.11", "3.13"])
def test_pip_needs_wheels_alone(board: Board, python: str) -> None:
    files = resolve(f"{board.wheel}[litert]", python)
    assert {file.split("-")[0] for file in files} >= {"fedspzo", "numpy", "tokenizers", "ai_edge_litert"}
    assert all(file.endswith(".whl") for file in files)


def test_a_device_is_small(board: Board) -> None:
    """What is installed for it, with the compiled Python. That it is enough the tests below show."""
    files = [file for folder in board.device for file in folder.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= MOST_BYTES


def test_the_devices_suite_passes(board: Board, bundle_folder: Path) -> None:
    files = [next(REPOSITORY.glob(f"tests/*/test_{name}.py")) for name in SUITE]
    # A process for each power cut takes minutes here, and what a file keeps depends on no processor either.
    options = ("-q", "-p", "no:cacheprovider", "--bundle", bundle_folder, "-k", "not power_cuts")
    command = [board.python, "-c", RUN_SUITE, board.python, *options, *files]
    done = subprocess.run(list(map(str, command)), cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "skipped" not in done.stdout.splitlines()[-1]


def test_bits_are_equal_and_scalars_agree(
    board: Board, bundle_folder: Path, write_examples: Callable[[Path, int], Path], tmp_path: Path
) -> None:
    data = write_examples(tmp_path / "data.jsonl", 12)

    def probe(python: str | Path) -> Any:
        command = [python, PROBE, bundle_folder, data, "litert", "executorch"]
        return json.loads(subprocess.run(list(map(str, command)), check=True, capture_output=True).stdout)

    here, there = probe(sys.executable), probe(board.python)
    assert there["machine"] == "aarch64"
    assert "NativeKernel rademacher" in there["bits"]
    assert there["bits"] == here["bits"]
    for engine, scalars in here["scalars"].items():
        assert there["scalars"][engine] == pytest.approx(scalars, rel=0, abs=LOSS_ERROR / EPSILON), engine


@pytest.mark.parametrize("engine", ["litert", "executorch"])
def test_a_board_takes_part_and_survives_a_kill(processes: Processes, board: Board, engine: str) -> None:
    processes.device("native")
    arm = processes.device("arm", engine=engine, program=(board.python, "-m", "fedspzo"))
    server = processes.server("--devices", "2", "--rounds", "12", "--quorum", "2")
    read_rounds(server, 4)
    arm.kill()
    arm.wait()
    again = processes.device("arm", engine=engine, program=(board.python, "-m", "fedspzo"))
    progress, last, errors = finish(server)
    assert [line["round"] for line in progress if "results" in line][-1] == 12, errors
    assert_equal_replicas(Bundle(processes.bundle), processes.folder, last, {"native", "arm"})
    counted = [line for line in again.communicate(timeout=PATIENCE_S)[1].splitlines() if line.endswith(": counted")]
    assert len(counted) >= 6
