"""Virtual devices: the journal of a live job, whoever measures, and the behaviour that was asked for."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from federation import JOB, Processes, broker, processes  # noqa: F401  (fixtures)
from hypothesis import given, settings
from hypothesis import strategies as st
from patience import PATIENCE_S
from refusals import raises, refused

from fedspzo.broker.rounds import modes
from fedspzo.broker.rounds.aggregate import close_round
from fedspzo.broker.rounds.groups import close_sums
from fedspzo.broker.rounds.job import Job, plan_round
from fedspzo.broker.server.state_folder import read_history, read_journal
from fedspzo.broker.simulation.curve import Budget, draw_curve
from fedspzo.broker.simulation.driver import DIVERGED, SimulatedRound, attend
from fedspzo.broker.simulation.fleet import Behaviour, Fleet, parse_quantile
from fedspzo.broker.simulation.partition import Skew, draw_each, share_out
from fedspzo.cli import main
from fedspzo.device_runtime.data.store import DataStore
from fedspzo.device_runtime.errors import DataError, PlanError
from fedspzo.device_runtime.privacy.words import make_grid
from fedspzo.device_runtime.protocol.plan import Block

Write = Callable[[Path, int], Path]


def simulate(bundle: Path, data: Path, state: Path, *options: object) -> None:
    arguments = ["simulate", bundle, "--data", data, "--state", state, "--json", *options]
    assert main(list(map(str, arguments))) == 0


@pytest.mark.parametrize("more", [[], ["--fanouts", "0,2", "--replay", "2", "--batch", "2"]])
def test_a_simulated_journal_is_the_live_one(
    processes: Processes,  # noqa: F811
    tmp_path: Path,
    more: list[str],
) -> None:
    """Bit for bit: separate processes over MQTT, and one that stands for all of them."""
    names, own = ["a", "b", "c"], ["--rounds", "6", "--seeds", "device", *more]
    server = processes.server(*own)
    for name in names:
        processes.device(name)
    err = server.communicate(timeout=PATIENCE_S)[1]
    assert server.returncode == 0, err
    (tmp_path / "data").mkdir()
    for name in names:
        shutil.copy(processes.folder / f"{name}.jsonl", tmp_path / "data" / f"{name}.jsonl")
    simulate(processes.bundle, tmp_path / "data", tmp_path / "simulated", *JOB, *own)
    live = read_journal(processes.folder / "server")
    assert len(live) == 6
    assert read_journal(tmp_path / "simulated") == live


@pytest.fixture
def plain(bundle_folder: Path, tmp_path: Path, write_examples: Write) -> tuple[Path, Path]:
    """A bundle and a file of examples."""
    return bundle_folder, write_examples(tmp_path / "data.jsonl", 60)


# Rates that do not fall, so that a job of fewer rounds is the beginning of a longer one.
OPTIONS = [
    "--devices", 40, "--examples-per-device", 5, "--cohort", 4, "--fanouts", "1,2", "--rounds", 4, "--final-rate", 1,
]  # fmt: skip


@pytest.mark.parametrize("more", [[], ["--fanouts", "0,2", "--replay", 2, "--batch", 1, "--devices", 16]])
def test_workers_make_no_difference(
    plain: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[object]
) -> None:
    """One process, two, or Ray's; in one go, or interrupted; where devices take batches again, too."""
    behaviour = ["--dropout", 0.3, "--step-seconds", "lognormal:20,1", "--available", 0.5, "--quorum", 2, *more]
    variants = {"one": [], "two": ["--workers", 2]}
    journals = {}
    for name, workers in variants.items():
        simulate(*plain, tmp_path / name, *OPTIONS, *behaviour, *workers)
        journals[name] = read_journal(tmp_path / name)
    simulate(*plain, tmp_path / "halves", *OPTIONS, *behaviour, "--rounds", 2)
    assert len(read_journal(tmp_path / "halves")) == 2
    simulate(*plain, tmp_path / "halves", *OPTIONS, *behaviour, "--workers", 2)
    digests = {json.loads(line)["server_digest"] for line in capsys.readouterr().out.splitlines() if "finished" in line}
    assert len(digests) == 2, "those of all journals of 4 rounds, and that of 2 rounds"
    assert journals["one"] == journals["two"] == read_journal(tmp_path / "halves")


def test_a_simulation_sums_results_as_its_mode_says(
    plain: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In mode secure the round's scalars are the weighted mean of the robust one, to the width of a whole number."""
    monkeypatch.setattr(modes, "seed_attempt", lambda seed, round, attempt: seed)  # the robust one's directions
    simulate(*plain, tmp_path / "sum", *OPTIONS, "--mode", "secure", "--rounds", 1)
    simulate(*plain, tmp_path / "plain", *OPTIONS, "--aggregate", "weighted-mean", "--rounds", 1)
    (summed,), (seen,) = read_journal(tmp_path / "sum"), read_journal(tmp_path / "plain")
    assert [each.devices for each in summed.sums] == [4]
    assert summed == close_sums(summed.plan, summed.sums, close_round)
    width = summed.plan.masking[0].clip / make_grid(summed.plan).steps
    scalars = [np.array(entry.contributions[0].scalars) for entry in (summed, seen)]
    assert np.abs(scalars[0] - scalars[1]).max() <= width + 1e-6
    assert read_history(tmp_path / "sum")[0].devices == read_history(tmp_path / "plain")[0].devices


def test_weights_made_anew_from_sums_are_the_same_after_a_restart(
    plain: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In one go, or interrupted between rounds that rebase; with options that do not go together, not at all."""
    pool = [*OPTIONS, "--seeds", "device", "--seed-pool", 8, "--rebase-every", 3]
    simulate(*plain, tmp_path / "one", *pool, "--rounds", 7)
    for rounds in (2, 4, 7):
        simulate(*plain, tmp_path / "parts", *pool, "--rounds", rounds, "--workers", 1 + rounds % 2)
    digests = [json.loads(line)["server_digest"] for line in capsys.readouterr().out.splitlines() if "finished" in line]
    assert digests[0] == digests[-1]
    assert len(set(digests)) == 3
    assert read_journal(tmp_path / "one") == read_journal(tmp_path / "parts")
    folder, data = plain
    for options, reason in (
        (["--seed-pool", 9, "--rebase-every", 3], "the journal has rounds without --rebase-every, or with another"),
        (["--rebase-every", 3], "rebase_every needs a seed_pool of at most 15000 over the number of blocks"),
        (["--seed-pool", 8, "--rebase-every", -1], "rebase_every lies between 0 and 1e+09, not -1"),
        (
            ["--seed-pool", 20_000, "--rebase-every", 3],
            "over the number of blocks, here 7500, and not 20000",
        ),
    ):
        given = ["simulate", folder, "--data", data, "--state", tmp_path / "one", *OPTIONS, "--rounds", 9, *options]
        assert main(list(map(str, given))) == 1
        assert reason in capsys.readouterr().err


def test_a_simulation_that_diverges_fails_as_a_live_job_does(
    plain: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its lines are JSON, and its journal has no number that is not finite."""
    rates = ("--learning-rates", "1e9,1e9", "--evaluate-every", 1, "--held-out", plain[1])
    given = ["simulate", plain[0], "--data", plain[1], "--state", tmp_path / "run", "--json", *OPTIONS, *rates]
    assert main(list(map(str, given))) == 1
    said = capsys.readouterr()
    assert "diverged in round" in said.err
    assert "lower the learning rates [simulation.diverged]" in said.err
    assert [json.loads(line, parse_constant=pytest.fail) for line in said.out.splitlines()]
    assert 0 < len(read_journal(tmp_path / "run")) < 4


def test_a_curve_ends_where_the_model_diverges() -> None:
    def rounds() -> Iterator[SimulatedRound]:
        yield SimulatedRound(1, 1.0, ("a",), 1.0, 1.0, flops=10)
        raise PlanError(DIVERGED, "the model diverged")

    curve = draw_curve(rounds(), lambda: 1.0, Budget(100.0, 10, 4.0))
    assert (curve.flops, curve.losses, curve.rounds) == ((0.0, 10.0, 10.0), (1.0, 1.0, math.inf), 1)


@pytest.mark.slow
def test_rays_workers_make_no_difference_either(
    plain: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two workers on two nodes of a cluster; and what goes wrong in one is said in one sentence."""
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        cluster.add_node(num_cpus=1)
        simulate(*plain, tmp_path / "one", *OPTIONS)
        simulate(*plain, tmp_path / "ray", *OPTIONS, "--workers", 2, "--ray-address", cluster.address)
        assert read_journal(tmp_path / "ray") == read_journal(tmp_path / "one")
        folder, data = plain
        wrong = ["simulate", folder, "--data", data, "--state", tmp_path / "wrong", *OPTIONS, "--batch", 99,
                 "--ray-address", cluster.address]  # fmt: skip
        assert main(list(map(str, wrong))) == 1
        assert "batch is at most" in capsys.readouterr().err
    finally:
        cluster.shutdown()


JOB_OF_FOUR = Job(
    rounds=10, cohort=4, over_selection=1.5, quorum=2, deadline=30.0, seed=5, steps=2, batch=4, digest_every=5
).with_blocks((Block(5, 4, 1.0, 1e-2),))


def fleet(devices: int, **changes: object) -> Fleet:
    calm = Behaviour(step_seconds=lambda chance: 1 + chance, battery=lambda chance: 1.0, available=1.0, dropout=0.0)
    return Fleet([f"d{i}" for i in range(devices)], dataclasses.replace(calm, **changes), 3)  # type: ignore[arg-type]


def test_the_quickest_close_a_round() -> None:
    crowd, plan = fleet(30), plan_round(JOB_OF_FOUR, 1)
    attendance = attend(JOB_OF_FOUR, plan, crowd, crowd.present(1))
    assert attendance.asked == 6
    assert len(attendance.seconds) == 4
    assert attendance.closed == max(attendance.seconds.values()) <= 4.0
    assert attendance == attend(JOB_OF_FOUR, plan, crowd, crowd.present(1))


def test_a_quorum_closes_at_the_deadline() -> None:
    slow = fleet(6, step_seconds=lambda chance: 10 if chance < 0.5 else 1000)
    attendance = attend(JOB_OF_FOUR, plan_round(JOB_OF_FOUR, 1), slow, slow.present(1))
    assert attendance.closed == 30.0
    assert attendance.seconds == {"d2": 20.0, "d3": 20.0}, "fewer than the cohort, and a quorum"


def test_too_few_devices_end_the_simulation() -> None:
    few = fleet(1)
    with raises("simulation.no-quorum", "round 1", "--quorum"):
        attend(JOB_OF_FOUR, plan_round(JOB_OF_FOUR, 1), few, few.present(1))


def test_behaviour_has_the_distribution_that_was_asked_for() -> None:
    crowd = fleet(
        4000,
        available=0.25,
        dropout=0.1,
        step_seconds=parse_quantile("lognormal:2,0.5", ""),
        battery=parse_quantile("uniform:0.2,0.6", ""),
    )
    there = crowd.present(7)
    assert 0.22 < len(there) / 4000 < 0.28
    assert 0.38 < np.mean([candidate.battery for candidate in there.values()]) < 0.42
    times = np.array([crowd.seconds(7, device, 3) for device in crowd.devices])
    assert 0.08 < np.mean(np.isinf(times)) < 0.12
    assert 5.7 < np.median(times[np.isfinite(times)]) < 6.3
    again = [crowd.seconds(8, device, 3) for device in crowd.devices]
    assert all(a == b for a, b in zip(times, again, strict=True) if math.isfinite(a) and math.isfinite(b))


def store_of(labels: list[int]) -> DataStore:
    count = len(labels)
    ids = np.arange(count, dtype=np.int32)[:, None]
    return DataStore(ids, np.ones(count, np.int32), np.zeros(count, np.int32), np.array(labels, np.int32))


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.integers(0, 4), min_size=40, max_size=80), st.integers(1, 20), st.sampled_from([0.05, 0.5, math.inf])
)
def test_shares_are_a_partition(labels: list[int], devices: int, alpha: float) -> None:
    shares = share_out(store_of(labels), devices, Skew(alpha), 1)
    held = [shares.of(device).ids[:, 0].tolist() for device in shares.devices]
    assert sorted(itertools.chain.from_iterable(held)) == list(range(len(labels)))
    assert min(map(len, held)) >= 2


def test_skew() -> None:
    """With a small alpha a device has few labels, without skew all in their proportions."""
    store = store_of([i % 10 for i in range(1000)])

    def kinds(alpha: float) -> float:
        shares = draw_each(store, 200, 20, Skew(alpha), 1)
        return float(np.mean([len(set(shares.of(device).labels.tolist())) for device in shares.devices]))

    assert kinds(0.1) < 4 < 8 < kinds(math.inf)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--devices", "40"], "60 examples are too few for 40 devices, which need 80; add examples"),
        (["--devices", "2"], "cohort is 4, and there are 2 devices; choose at most that number"),
        (["--examples-per-device", "61"], "a device can draw 1 to 60 examples, not 61"),
        (["--partition", "dirichlet:x"], "the partition 'dirichlet:x' is unknown; write iid, or dirichlet:ALPHA"),
        (
            ["--step-seconds", "fast"],
            "--step-seconds is 'fast'; write a number, uniform:LOW,HIGH or lognormal:MEDIAN,SIGMA",
        ),
        (["--step-seconds", "lognormal:1e308,1e308"], "with numbers from 0 to 1e+09 and SIGMA to 50"),
        (["--step-seconds", "inf"], "--step-seconds is 'inf'; write a number"),
        (["--dropout", "1"], "--dropout at least 0 and below 1"),
        (["--workers", "0"], "evaluate_every, workers and threads are at least 1"),
    ],
)
def test_options_that_contradict_themselves(
    plain: tuple[Path, Path], tmp_path: Path, options: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, data = plain
    given = ["simulate", folder, "--data", data, "--state", tmp_path / "state", *OPTIONS[2:4], *options]
    if "--devices" in options:
        given = ["simulate", folder, "--data", data, "--state", tmp_path / "state", *options]
    assert main(list(map(str, given))) == 1
    assert sentence in capsys.readouterr().err
    with pytest.raises(DataError):
        share_out(store_of([0]), 2, Skew(1.0), 0)


def test_rounds_of_another_seed_or_split_are_not_continued(
    plain: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same call again finds nothing to do, and says so."""
    bundle, data = plain
    given = ["simulate", bundle, "--data", data, "--state", tmp_path / "state", *OPTIONS]
    assert main(list(map(str, [*given, "--seed", 1]))) == 0
    capsys.readouterr()
    assert main(list(map(str, [*given, "--seed", 1]))) == 0
    assert "no round was left" in capsys.readouterr().out
    assert "[state.rounds-of-another-seed]" in refused(capsys, *given, "--seed", 2)
    for other in (["--partition", "iid"], ["--examples-per-device", 6], ["--devices", 7]):
        said = refused(capsys, *given, "--seed", 1, *other)
        assert "[state.rounds-of-another-partition]" in said
        assert "has rounds of a run with" in said
    assert main(list(map(str, [*given, "--seed", 1, "--rounds", 5]))) == 0, "the folder is as it was"
    assert len(read_journal(tmp_path / "state")) == 5


def test_a_spent_privacy_budget_ends_a_simulation_in_a_sentence(
    plain: tuple[Path, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its noise is for as many rounds as it had at first."""
    few = ["--devices", 4, "--cohort", 4, "--privacy", "example", "--batch", 2, "--seeds", "shared"]
    simulate(*plain, tmp_path / "state", *few, "--rounds", 2)
    assert "no room" not in caplog.text
    simulate(*plain, tmp_path / "state", *few, "--rounds", 4)
    assert "the job ends after round 2 of 4: its privacy budget" in caplog.text


def test_virtual_time_is_in_the_history(plain: tuple[Path, Path], tmp_path: Path) -> None:
    simulate(*plain, tmp_path / "state", *OPTIONS, "--step-seconds", 7, "--steps", 2)
    history = read_history(tmp_path / "state")
    assert {closed.seconds for closed in history} == {14.0}
    assert {closed.step_seconds for closed in history} == {7.0}
