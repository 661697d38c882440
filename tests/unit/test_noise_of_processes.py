"""Noise of devices that are processes: it adds up to what the accountant assumes, and no kill gives more away."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import noisy
import numpy as np
import pytest
from gaussian import misfits

from fedspzo.broker.rounds.job import Job, plan_round
from fedspzo.device_runtime.privacy.masks import unmask
from fedspzo.device_runtime.privacy.release import cost_to_server
from fedspzo.device_runtime.protocol.codec import encode
from fedspzo.device_runtime.protocol.plan import Plan


def start(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, noisy.__file__, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def make_noisy(mode: str, fanout: int) -> Plan:
    job = Job(
        split=(3,), fanouts=(1, fanout), stages=5, batch=4, cohort=4, quorum=4, mode=mode, privacy="device", rounds=2
    )
    return plan_round(job, 1)


@pytest.fixture(scope="module")
def sent(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, np.ndarray]]:
    """What each of four processes sends, by its fault."""
    folder = tmp_path_factory.mktemp("sent")
    plan = encode(make_noisy("secure", 4_000)).hex()
    files = [folder / f"{number}.npz" for number in range(noisy.DEVICES)]
    running = [start("send_noise", plan, number, file) for number, file in enumerate(files)]
    assert [process.wait() for process in running] == [0] * noisy.DEVICES
    found = []
    for file in files:
        with np.load(file) as arrays:
            found.append(dict(arrays))
    return found


@pytest.mark.parametrize(
    ("faults", "wrong"),
    [
        (("honest",) * 4, False),
        (("honest", "honest", "none", "honest"), True),
        (("twice", "honest", "honest", "honest"), True),
        (("seeded",) * 4, True),
        (("seeded", "honest", "seeded", "honest"), True),
    ],
)
def test_the_noise_of_processes_adds_up_to_what_the_accountant_assumes(
    sent: list[dict[str, np.ndarray]], faults: tuple[str, ...], wrong: bool
) -> None:
    """Under masks, from the randomness of each process: of one device's share too few or too many it is another."""
    plan = make_noisy("secure", 4_000)
    (noise,) = plan.noise
    summed = unmask([words[fault] for words, fault in zip(sent, faults, strict=True)])[: plan.scalars + 1]
    found = misfits(summed / math.sqrt(noise.shares * noise.variance))
    assert ("variance" in found) == wrong
    assert wrong or not found


@pytest.mark.parametrize("mode", ["robust", "secure"])
@pytest.mark.parametrize("killed", ["spend", "answer"])
def test_a_kill_loses_no_spending_and_gives_no_second_release(
    bundle_folder: Path, tmp_path: Path, write_examples: Callable[[Path, int], Path], mode: str, killed: str
) -> None:
    """kill -9 after the account was written, or after the answer; then --afresh."""
    write_examples(tmp_path / "data.jsonl", 12)
    plan = make_noisy(mode, 4)
    budget = cost_to_server(plan)

    def answer(killed: str) -> tuple[int, str]:
        process = start("answer", bundle_folder, tmp_path, encode(plan).hex(), killed)
        said, _ = process.communicate()
        return process.returncode, said

    died, said = answer(killed)
    assert died == -signal.SIGKILL
    assert bool(said) == (killed == "answer")
    assert read_spent(tmp_path) == pytest.approx(budget)
    again = [answer("no")[1] for _ in range(2)]
    assert again[0] == again[1] == (said or again[0]), "the same bytes, and no second draw of noise"
    assert read_spent(tmp_path) == pytest.approx(budget * (1 if said else 2)), "what was lost counts, too"


def read_spent(folder: Path) -> float:
    return float(json.loads((folder / "ledger").read_text())["device"])
