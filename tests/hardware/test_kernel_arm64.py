"""The direction kernel compiled for 64-bit ARM gives numpy's bits: run in an emulator, where there is one."""

from __future__ import annotations

import shutil
import subprocess
from itertools import accumulate
from pathlib import Path

import numpy as np
import pytest

from fedspzo.device_runtime.directions.format import CHUNK, DISTRIBUTIONS, Direction, NumpyKernel, Step
from fedspzo.device_runtime.directions.halves import DTYPES
from fedspzo.device_runtime.directions.quantiles import NORMAL

COMPILER, EMULATOR = "aarch64-linux-gnu-gcc", "qemu-aarch64-static"
STEPS = [
    Step([Direction(2**63 + 7, 1e-3)], 5),
    Step([Direction(seed, 0.01 * (seed - 9)) for seed in range(19)], 2**64 - 1),
]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not shutil.which(COMPILER) or not shutil.which(EMULATOR), reason="no cross compiler, no emulator"
    ),
]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("arm64") / "driver"
    flags = ("-O3", "-std=gnu11", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", "-static")
    source = Path(__file__).parents[1] / "support" / "kernel_driver.c"
    subprocess.run([COMPILER, *flags, "-o", str(path), str(source)], check=True)
    return path


def run(program: Path, distribution: str, weights: np.ndarray, steps: list[Step], paired: bool, stepped: bool) -> bytes:
    directions = [direction for step in steps for direction in step.directions]
    stored = list(DTYPES.values()).index(weights.dtype)
    flags = [DISTRIBUTIONS.index(distribution), stored, 5, weights.size, len(directions), len(steps), paired, stepped]
    given = [
        np.array(flags, np.int64),
        NORMAL,
        np.array([direction.seed for direction in directions], np.uint64),
        np.array(list(accumulate(len(step.directions) for step in steps)), np.int64),
        np.array([step.rounding for step in steps], np.uint64),
        np.array([direction.coefficient for direction in directions], np.float32),
        weights,
    ]
    done = subprocess.run([EMULATOR, program], input=b"".join(map(np.ndarray.tobytes, given)), capture_output=True)
    assert done.returncode == 0
    return done.stdout


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("dtype", list(DTYPES))
@pytest.mark.parametrize("size", [7, 5000, CHUNK + 4100])
def test_arm64_gives_the_same_bits(program: Path, distribution: str, dtype: str, size: int) -> None:
    drawn = np.random.default_rng(size).standard_normal(size, np.float32) * np.float32(1e-3)
    stored = (drawn.view(np.uint32) >> 16).astype("<u2") if dtype == "bfloat16" else drawn.astype(DTYPES[dtype])
    kernel = NumpyKernel(distribution)
    plus, minus, out = (np.empty(size, np.float32) for _ in range(3))
    terms = list(STEPS[1].directions)
    kernel.shift_pair({5: stored}, terms[:-1], terms[-1], {5: plus}, {5: minus})
    assert run(program, distribution, stored, STEPS[1:], True, False) == plus.tobytes() + minus.tobytes()
    kernel.shift({5: stored}, STEPS[0].directions, {5: out})
    assert run(program, distribution, stored, STEPS[:1], False, False) == out.tobytes()
    expected = stored.copy()
    kernel.step({5: expected}, STEPS)
    assert run(program, distribution, stored, STEPS, False, True) == expected.tobytes()
