"""Adaptive plans: the same from the same journal, whoever makes them, and replicas that agree."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from federation import Processes, broker, processes  # noqa: F401  (fixtures)
from patience import PATIENCE_S
from refusals import raises

from fedspzo.broker.rounds.adaptive import FIRST, FURTHEST, LEAST, MOST, Moment, adapt_blocks, follow
from fedspzo.broker.rounds.job import ADAPTABLE, Job
from fedspzo.broker.server.state_folder import read_journal
from fedspzo.cli import main
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.protocol.entry import Entry
from fedspzo.device_runtime.protocol.plan import Block
from fedspzo.device_runtime.replica.weights import Replica

Write = Callable[[Path, int], Path]
JOB = [
    "--adapt", ",".join(set(ADAPTABLE) - {"steps"}), "--sides", "1", "--seeds", "device", "--split", "3",
    "--fanouts", "1,4", "--cohort", "2", "--deadline", "20", "--final-rate", "1",
]  # fmt: skip


def rates(entries: list[Entry]) -> list[tuple[float, ...]]:
    return [tuple(block.learning_rate for block in entry.plan.blocks) for entry in entries]


def test_a_stopped_simulation_goes_on_with_the_same_plans(
    bundle_folder: Path, tmp_path: Path, write_examples: Write
) -> None:
    data = write_examples(tmp_path / "data.jsonl", 60)

    def simulate(state: str, rounds: int) -> list[Entry]:
        options = [*JOB, "--data", data, "--state", tmp_path / state, "--devices", 5, "--rounds", rounds, "--json"]
        assert main(list(map(str, ["simulate", bundle_folder, *options]))) == 0
        return list(read_journal(tmp_path / state))

    whole = simulate("whole", 16)
    simulate("halves", 11)
    assert simulate("halves", 16) == whole
    assert len(set(rates(whole)[FIRST:])) == len(whole) - FIRST, "rates differ from round to round"
    assert len(set(rates(whole)[:FIRST])) == 1, "and are the job's while there is nothing to compare with"


@pytest.mark.slow
def test_a_live_job_that_adapts(processes: Processes, tmp_path: Path) -> None:  # noqa: F811
    """Its server is killed on the way; replicas agree with a replay, and plans follow from the journal alone."""
    options = ["--rounds", "14", *JOB]
    server = processes.server("--rounds", "10", *JOB)
    devices = [processes.device(name) for name in ("a", "b", "c")]
    assert server.stdout is not None
    next(line for line in server.stdout if '"round": 4' in line)
    server.kill()
    server.wait()
    server = processes.server(*options)
    out, err = server.communicate(timeout=PATIENCE_S)
    assert server.returncode == 0, err
    last = json.loads(out.splitlines()[-1])
    for device in devices:
        device.wait(timeout=PATIENCE_S)
    entries = list(read_journal(processes.folder / "server"))
    replica = Replica(Bundle(processes.bundle))
    replica.apply_all(entries)
    assert len(entries) == 14
    assert {device["digest"] for device in last["devices"].values()} == {replica.digest().hex()}
    assert len(set(rates(entries)[FIRST:])) > 1
    job = job_of(*set(ADAPTABLE) - {"steps"}).with_blocks(entries[0].plan.blocks)
    for number, entry in enumerate(entries):
        assert entry.plan.blocks == adapt_blocks(job, follow((), entries[:number]))


def test_rates_rise_as_derivatives_fall_and_within_bounds() -> None:
    moment = Moment()
    for _ in range(FIRST):
        assert moment.factor == 1.0
        moment = moment.after(4.0)
    calm, wild = moment, moment
    factors = []
    for _ in range(200):
        calm, wild = calm.after(1e-6), wild.after(1e9)
        factors.append(calm.factor)
    assert factors == sorted(factors)
    assert calm.factor == pytest.approx(MOST)
    assert wild.factor == LEAST
    assert Moment().after(0.0).factor == 1.0


def job_of(*adapt: str) -> Job:
    blocks = (Block(4, 4, 0.5, 1e-3), Block(6, 16, 1.0, 1e-2))
    job = Job(rounds=10, cohort=2, deadline=9.0, batch=4, digest_every=5, sides=1)
    return dataclasses.replace(job.with_blocks(blocks), adapt=adapt)


def test_directions_go_where_variance_grew_at_the_same_cost() -> None:
    """A direction of the first of 6 stages costs 6 passes through stages, and one from the fifth on costs 2."""
    same, grown = Moment(8, 1.0, 1.0), Moment(8, 1.0, 9.0)
    assert adapt_blocks(job_of("counts"), (same, same)) == job_of().blocks
    assert adapt_blocks(job_of("counts"), (grown, grown)) == job_of().blocks
    first, last = adapt_blocks(job_of("counts"), (same, grown))
    assert (first.fanout, last.fanout) == (2, 22), "in proportion to 4 and 3·16, for 56 passes"
    assert (first.learning_rate, last.learning_rate) == pytest.approx((1e-3 * 2 / 4, 1e-2 * 22 / 16))
    assert (first.scale, last.scale) == (0.5, 1.0)
    starved, _ = adapt_blocks(job_of("counts"), (Moment(8, 1.0, 1e-9), same))
    assert starved.fanout == 1, "what is measured no more would never come back"
    still = Moment(8, 1.0, 0.0)
    assert adapt_blocks(job_of("counts"), (still, still)) == job_of().blocks, "where nothing is measured any more"
    resting = job_of("counts").with_blocks((Block(4, 0, 1.0, 0.0), *job_of().blocks[1:]))
    assert adapt_blocks(resting, (Moment(), grown)) == resting.blocks


def test_perturbations_grow_as_derivatives_fall() -> None:
    """So that differences of the loss stay as large, within bounds."""
    first, last = adapt_blocks(job_of("scales"), (Moment(8, 4.0, 1.0), Moment(8, 1.0, 1e6)))
    assert (first.scale, last.scale) == (1.0, 1.0 / FURTHEST)
    assert (first.learning_rate, first.fanout) == (1e-3, 4)


def test_what_cannot_adapt_is_refused() -> None:
    with raises("job.unknown-choice", "adapt", "rates, counts, scales", "'speed'"):
        job_of("speed")
    with raises("job.counts-of-one-block", "sides = 1"):
        dataclasses.replace(job_of("counts"), sides=2)
