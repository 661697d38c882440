"""Jobs with noise, by real processes over a real mosquitto: the noise of their sums, budgets, and devices' accounts."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from federation import Processes, finish
from gaussian import misfits
from patience import PATIENCE_S
from plain_mosquitto import plain_mosquitto

from fedspzo.broker.mqtt.mosquitto_program import installed
from fedspzo.broker.server.state_folder import read_history, read_journal
from fedspzo.device_runtime.data.store import load_data
from fedspzo.device_runtime.engines.protocol import create_engine
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.privacy.budget import epsilon, rho_within
from fedspzo.device_runtime.privacy.ledger import SUFFIX
from fedspzo.device_runtime.privacy.release import words_of
from fedspzo.device_runtime.replica.weights import Replica
from fedspzo.device_runtime.step.estimator import measure
from fedspzo.device_runtime.step.runner import Forward

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not installed(), reason="mosquitto is not installed")]

DELTA = 1e-5


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    (tmp_path / "broker").mkdir()
    with plain_mosquitto(tmp_path / "broker") as running:
        yield running


@pytest.fixture
def make_job(
    bundle_folder: Path, tmp_path: Path, url: str, write_examples: Callable[[Path, int], Path]
) -> Iterator[Callable[[str], Processes]]:
    made: list[Processes] = []

    def make(name: str) -> Processes:
        (tmp_path / name).mkdir()
        made.append(Processes(bundle_folder, tmp_path / name, url, write_examples))
        return made[-1]

    yield make
    for job in made:
        job.stop()


def options(devices: int, rounds: int, budget: float, *more: str) -> list[str]:
    """A server's."""
    count = str(devices)
    return [
        "--cohort", count, "--quorum", count, "--devices", count, "--rounds", str(rounds), "--evaluate-every", "1000",
        "--privacy-budget", str(budget), "--delta", str(DELTA), *more,
    ]  # fmt: skip


@pytest.mark.parametrize("unit", ["device", "example"])
def test_the_noise_of_a_job_is_what_the_accountant_assumes(make_job: Callable[[str], Processes], unit: str) -> None:
    """What a journal's sums have beside what their devices measured, which is measured again."""
    job, names = make_job("job"), ("a", "b", "c", "d")
    devices = [job.device(name) for name in names]
    finish(job.server(*options(4, 10, 8.0, "--mode", "secure", "--privacy", unit, "--fanouts", "1,400")))
    for device in devices:
        device.communicate(timeout=PATIENCE_S)
    bundle = Bundle(job.bundle)
    forward = Forward(create_engine("litert"), Replica(bundle))
    stores = {name: load_data(job.folder / f"{name}.jsonl", bundle) for name in names}
    found = []
    for entry, closed in zip(read_journal(job.folder / "server"), read_history(job.folder / "server"), strict=True):
        plan, (noise,), (summed,) = entry.plan, entry.plan.noise, entry.sums
        quiet = replace(plan, noise=(replace(noise, variance=1),))
        words = np.frombuffer(summed.words, "<i4").astype(np.int64)[: plan.scalars + 1]
        for name in closed.devices:
            measured = measure(forward, stores[name], quiet, name)
            words = words - words_of(plan, measured.scalars, measured.loss)
        assert noise.variance > 1_000_000, "beside which that of a quiet plan is nothing"
        found.append(words / math.sqrt(noise.shares * noise.variance))
        forward.weights.apply(entry)
    assert len(found) == 10
    assert not misfits(np.concatenate(found), lag=len(found[0])), "no round has another's noise"


def test_a_job_and_a_devices_own_account_stop_at_their_budgets(make_job: Callable[[str], Processes]) -> None:
    """A job goes on with more rounds for as long as its new budget lasts; then another job gets nothing."""
    job, names = make_job("job"), ("a", "b")
    private = ("--privacy", "device", "--honest", "1")  # so that both accounts are of the same noise
    ledgers = [job.folder / f"{name}.jsonl{SUFFIX}" for name in names]

    def run(rounds: int, budget: float) -> str:
        devices = [job.device(name, more=("--privacy-budget", 3.01)) for name in names]
        _, _, log = finish(job.server(*options(2, rounds, budget, "--mode", "robust", *private)))
        for device in devices:
            assert device.wait(PATIENCE_S) == 0, device.communicate()
        return log

    def spent() -> list[float]:
        return [epsilon(json.loads(ledger.read_text())["device"], DELTA) for ledger in ledgers]

    assert "budget" not in run(2, 2.0)
    assert len(read_journal(job.folder / "server")) == 2
    assert spent() == pytest.approx([2.0, 2.0], rel=1e-3)
    log = run(6, 3.0)
    more = math.floor(6 * (1 - rho_within(2.0, DELTA) / rho_within(3.0, DELTA)))
    assert 0 < more < 4
    assert len(read_journal(job.folder / "server")) == 2 + more
    said = f"the job ends after round {2 + more} of 6: its privacy budget, ε = 3 at δ = 1e-05, has no room for another"
    assert log.count(said) == 1
    before = spent()
    assert 2.0 < before[0] == before[1] <= 3.0

    other = make_job("other")
    for name, state in zip(names, ("a", "new"), strict=True):
        data = job.folder / f"{name}.jsonl"
        again = ("--afresh", "--state", job.folder / state, "--data", data, "--privacy-budget", 3.01)
        other.device(name, more=again)
    server = other.server(*options(2, 1, 2.0, "--mode", "robust", *private, "--deadline", "2"))
    _, log = server.communicate(timeout=PATIENCE_S)
    assert server.returncode == 78
    assert "its privacy budget is spent" in log
    assert not read_journal(other.folder / "server")
    assert spent() == before, "what is refused costs nothing"
    for _, said in other.stop()[:2]:
        lines = [line for line in said.splitlines() if "this device does not answer" in line]
        assert lines, said
        assert all("this device does not answer round 1: its privacy budget is spent, ε = " in line for line in lines)
