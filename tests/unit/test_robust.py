"""What hostile devices can do to a round, and what a job notes of them."""

from __future__ import annotations

import json
import logging
import math
import sqlite3
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import raises

import fedspzo
from fedspzo.broker.rounds.adaptive import Pace
from fedspzo.broker.rounds.aggregate import ClosedRound, close_round
from fedspzo.broker.rounds.anomalies import Finding, Record, Watch, examine, follow
from fedspzo.broker.rounds.bound import FEWEST, LEEWAY
from fedspzo.broker.rounds.job import Job, plan_round
from fedspzo.broker.rounds.robust import (
    CHOICES,
    MOST_OF_GROUPS,
    MOST_OF_MEDIAN,
    RULES,
    RULES_OF_GROUPS,
    clip,
    sizes,
    weighted_mean,
)
from fedspzo.broker.rounds.sampling import Candidate, choose_cohort
from fedspzo.broker.server.forgetting import forget_devices
from fedspzo.broker.server.state_folder import DATABASE, read_journal
from fedspzo.broker.server.status import read_status
from fedspzo.broker.server.store import ServerStore
from fedspzo.broker.simulation.hostile import ATTACKS, Attack
from fedspzo.cli import main
from fedspzo.device_runtime.protocol.codec import decode, encode, fingerprint
from fedspzo.device_runtime.protocol.entry import Contribution, Entry
from fedspzo.device_runtime.protocol.messages import Result
from fedspzo.device_runtime.protocol.plan import Block, Plan

Write = Callable[[Path, int], Path]
SCALARS = 16
JOB = Job(rounds=100, cohort=8, batch=8).with_blocks((Block(3, 1, 0.25, 1e-3), Block(5, SCALARS, 1.0, 1e-2)))


def result_of(vector: np.ndarray, examples: int = 8, round: int = 1) -> Result:
    plan = fingerprint(plan_round(JOB, 1))
    return Result(round, plan, tuple(vector.astype(np.float32).tolist()), 1.0, examples, 0.1, b"")


def results_of(vectors: np.ndarray) -> dict[str, Result]:
    return {f"d{number}": result_of(vector) for number, vector in enumerate(vectors)}


def shared(entry: Entry) -> np.ndarray:
    return np.array(entry.contributions[0].scalars)


@pytest.mark.parametrize("rule", CHOICES)
def test_devices_that_agree_are_what_every_rule_gives(rule: str) -> None:
    own = np.linspace(-2, 3, SCALARS).astype(np.float32)
    for count in (1, 2, 3, 8):
        entry = close_round(replace(plan_round(JOB, 1), aggregate=rule), results_of(np.tile(own, (count, 1))))
        np.testing.assert_allclose(shared(entry), own, rtol=1e-6)
        assert decode(encode(entry)) == entry


@pytest.mark.parametrize("rule", [rule for rule in CHOICES if rule not in ("mean", "weighted-mean")])
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1 << 30), factor=st.floats(-1e8, 1e8), hostile=st.integers(1, 2))
def test_a_minority_moves_a_round_no_further_than_some_sizes_of_an_honest_result(
    rule: str, seed: int, factor: float, hostile: int
) -> None:
    """Whatever they send, together, among eight; the plain means follow them anywhere."""
    vectors = np.random.default_rng(seed).standard_normal((8, SCALARS))
    vectors[:hostile] *= factor
    moved = close_round(replace(plan_round(JOB, 1), aggregate=rule), results_of(vectors))
    largest = sizes(vectors[hostile:]).max()
    assert sizes(shared(moved)[None])[0] <= MOST_OF_MEDIAN * largest
    assert np.isfinite(shared(moved)).all()


def test_the_plain_mean_of_what_is_not_cut_keeps_its_bits() -> None:
    vectors = np.random.default_rng(1).standard_normal((8, SCALARS))
    results = {f"d{number}": result_of(vector, number + 1) for number, vector in enumerate(vectors)}
    assert MOST_OF_MEDIAN * np.median(sizes(vectors)) > sizes(vectors).max()
    today = close_round(replace(plan_round(JOB, 1), aggregate=""), results)  # as plans said before
    assert close_round(plan_round(JOB, 1), results).contributions == today.contributions


def test_a_hostile_group_is_left_out_or_no_larger_than_others() -> None:
    """Groups of one size have the bits of the plain mean; a far larger one is left out; a larger one is cut."""
    rule, shares = RULES_OF_GROUPS["clipped-mean"], np.full(3, 1 / 3)
    honest = np.random.default_rng(0).standard_normal((3, 16))
    honest /= sizes(honest)[:, None]
    assert rule(honest, shares).tolist() == weighted_mean(honest, shares).tolist()
    hostile = np.concatenate([honest[:2], -25 * honest[2:]])
    assert rule(hostile, shares) == pytest.approx(honest[:2].mean(axis=0))
    near = np.concatenate([honest[:2], -1.9 * honest[2:]])
    assert rule(near, shares) == pytest.approx((honest[0] + honest[1] - MOST_OF_GROUPS * honest[2]) / 3)
    assert rule(hostile[1:], shares[1:]) == pytest.approx(weighted_mean(hostile[1:], shares[1:])), "two have no median"


def test_half_of_a_cohort_cannot_make_its_size_the_usual_one() -> None:
    """Two of four: who is right cannot be known, but the round moves no further than honest ones could move it."""
    vectors = np.random.default_rng(10).standard_normal((4, SCALARS))
    vectors[:2] *= 100
    moved = shared(close_round(plan_round(JOB, 1), results_of(vectors)))
    assert sizes(moved[None])[0] <= MOST_OF_MEDIAN * sizes(vectors[2:]).max()
    known, unknown = replace(plan_round(JOB, 9), bound=5.0), plan_round(JOB, 1)

    def large(plan: Plan) -> set[str]:
        return {device for device, finding in examine(plan, results_of(vectors)).items() if finding.large}

    assert (large(known), large(unknown)) == ({"d0", "d1"}, set()), "past rounds say what is usual"
    vectors[:2] /= 1e9
    assert (large(known), large(unknown)) == (set(), set()), "and the others are not accused for what two leave out"


def test_own_directions_are_cut_one_by_one() -> None:
    plan = plan_round(replace(JOB, seeds="device"), 1)
    vectors = np.random.default_rng(1).standard_normal((4, SCALARS))
    vectors[3] *= 1e6
    kept = close_round(plan, results_of(vectors)).contributions
    assert [c.scalars for c in kept[:3]] == [r.scalars for r in list(results_of(vectors).values())[:3]]
    assert sizes(np.array([kept[3].scalars]))[0] == pytest.approx(MOST_OF_MEDIAN * np.sort(sizes(vectors))[1], rel=1e-6)
    with raises("job.aggregate-of-own-directions", "krum", "seeds = shared"):
        replace(JOB, seeds="device", aggregate="krum")
    with raises("plan.unknown-aggregate", "krum", "clipped-mean"):
        close_round(replace(plan, aggregate="krum"), results_of(vectors))
    with raises("job.votes-and-aggregate", "median"):
        replace(JOB, votes=True, aggregate="median")


def test_clipping_leaves_directions_and_smaller_vectors_alone() -> None:
    vectors = np.random.default_rng(2).standard_normal((5, SCALARS))
    cut = clip(vectors, float(np.median(sizes(vectors))))
    assert (sizes(cut) <= np.median(sizes(vectors)) * (1 + 1e-12)).all()
    assert sum((own == after).all() for own, after in zip(vectors, cut, strict=True)) == 3
    np.testing.assert_allclose(cut / sizes(cut)[:, None], vectors / sizes(vectors)[:, None])


def test_the_best_of_krum_is_in_the_crowd() -> None:
    vectors = 5 + 0.1 * np.random.default_rng(3).standard_normal((8, SCALARS))
    vectors[[2, 6]] = -5
    for rule in ("krum", "multi-krum", "median", "trimmed-mean", "geometric-median", "centred-clipping"):
        assert abs(RULES[rule](vectors, np.full(8, 1 / 8)) - 5).max() < 1, rule
    assert abs(RULES["mean"](vectors, np.full(8, 1 / 8)) - 5).min() > 2


def journal_of(plans: Pace, rounds: int, size: float, start: int = 1) -> list[Entry]:
    entries = []
    for round in range(start, start + rounds):
        entries.append(Entry(plans.plan(round), (Contribution("", 1.0, (size, -size) * (SCALARS // 2)),)))
        plans.follow(entries[-1])
    return entries


def test_the_bound_follows_the_journal_and_is_in_plans() -> None:
    plans = Pace(JOB, ())
    entries = journal_of(plans, FEWEST, 2.0)
    assert {entry.plan.bound for entry in entries} == {0.0}
    plan = plans.plan(FEWEST + 1)
    assert plan.bound == pytest.approx(LEEWAY * 2.0 * math.sqrt(JOB.cohort))
    assert decode(encode(plan)) == plan
    assert Pace(JOB, entries).plan(plan.round) == plan, "whoever has the journal makes the same plan"
    lone = close_round(plan, {"d": result_of(np.full(SCALARS, 1e9))})
    assert sizes(shared(lone)[None])[0] == pytest.approx(plan.bound), (
        "it holds where there is no cohort to compare with"
    )


def test_the_bound_of_other_rounds_is_none() -> None:
    """Entries of another cut or of votes are not comparable; those of before bounds were kept are."""
    entries = journal_of(Pace(JOB, ()), FEWEST, 2.0)
    old = [replace(entry, plan=replace(entry.plan, aggregate="")) for entry in entries]
    assert Pace(JOB, old).plan(5).bound == Pace(JOB, entries).plan(5).bound > 0
    other = JOB.with_blocks((Block(2, 1, 0.25, 1e-3), Block(5, SCALARS, 1.0, 1e-2)))
    assert Pace(other, entries).plan(5).bound == 0
    assert Pace(replace(JOB, votes=True), entries).plan(5).bound == 0


def test_who_has_the_last_wrong_answer_is_not_accused() -> None:
    """Most batches have next to no gradient in the end; one example that is answered wrongly has that of the start."""
    plans = Pace(JOB, ())
    journal_of(plans, 16, 2.0)
    journal_of(plans, 40, 0.05, start=17)
    plan = plans.plan(57)
    assert plan.bound == pytest.approx(LEEWAY * 2.0 * math.sqrt(JOB.cohort))
    vectors = np.random.default_rng(5).choice([-1.0, 1.0], (4, SCALARS))
    vectors *= np.array([0.02, 0.05, 0.3, 4.8])[:, None]
    assert not any(finding.large for finding in examine(plan, results_of(vectors)).values())
    vectors[3] *= 100
    assert [name for name, finding in examine(plan, results_of(vectors)).items() if finding.large] == ["d3"]


def test_a_device_without_a_gradient_warns_nobody() -> None:
    vectors = np.array([[0.0, 0.0], [3.0, -3.0]])
    with np.errstate(all="raise"):
        assert clip(vectors, 1e300).tolist() == vectors.tolist()
        assert clip(vectors, 1.5).tolist() == [[0.0, 0.0], [1.5, -1.5]]


def test_few_large_rounds_do_not_move_the_bound() -> None:
    plans = Pace(JOB, ())
    journal_of(plans, 12, 1.0)
    before = plans.plan(13).bound
    journal_of(plans, 3, 1e6, start=13)
    assert plans.plan(16).bound == before


def test_who_sends_far_too_much_is_accused_at_once_and_expelled_by_policy(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    vectors = np.random.default_rng(4).standard_normal((8, SCALARS))
    vectors[3] *= -100
    watch, lenient = Watch({}, 3), Watch({})
    for round in (1, 2, 3):
        plan = plan_round(JOB, round)
        assert set(watch.records) <= {"d3"}
        watch.close_round(plan, results_of(vectors))
        lenient.close_round(plan, results_of(vectors))
        assert (watch.expelled("d3") is None) == (round < 3)
    record = watch.records["d3"]
    assert (record.large, record.accused, record.expelled) == (3, 1, 3)
    assert set(watch.records) == {"d3"}
    assert lenient.expelled("d3") is None
    assert "device 'd3' is accused after round 1: 1 result far larger" in caplog.text
    assert "device 'd3' is expelled after round 3: 3 results far larger" in caplog.text


def test_opposite_labels_are_noted_and_never_expelled() -> None:
    """An honest device may find the opposite of all others, round after round."""
    watch, random = Watch({}, 1), np.random.default_rng(5)
    for round in range(1, 41):
        vectors = random.standard_normal(SCALARS) + 0.3 * random.standard_normal((8, SCALARS))
        vectors[0] *= -1
        watch.close_round(plan_round(JOB, round), results_of(vectors))
    assert set(watch.records) == {"d0"}
    assert watch.records["d0"].contrary > 20
    assert (watch.records["d0"].accused, watch.expelled("d0")) == (0, None)


def test_devices_with_nothing_in_common_are_not_noted() -> None:
    """Sizes that differ by data, directions of chance: a hundred rounds of ten jobs."""
    random = np.random.default_rng(6)
    for job in range(10):
        watch, own = Watch({}, 1), random.uniform(0.3, 2.0, (8, 1))
        for round in range(1, 101):
            vectors = own * random.standard_normal((8, SCALARS))
            watch.close_round(plan_round(JOB, round), results_of(vectors))
        assert not watch.records, f"job {job}: {watch.records}"


def test_a_device_that_still_learns_among_those_that_have_is_within_the_bound() -> None:
    """Its scalars are many times the others'; past rounds show that such scalars are ordinary."""
    vectors = 0.01 * np.random.default_rng(7).standard_normal((8, SCALARS))
    vectors[0] *= 100
    plan = plan_round(JOB, 5)
    assert examine(plan, results_of(vectors))["d0"].large
    assert not examine(replace(plan, bound=3.0), results_of(vectors))["d0"].large
    assert examine(plan, results_of(vectors[:2])) == {}, "of two, none can say which is unusual"


def test_records_last(make_plan: Callable[..., Plan], tmp_path: Path) -> None:
    record = follow(Record(large=2, accused=4, against=1.5), 9, Finding(large=True), 3)
    assert (record.large, record.accused, record.expelled) == (3, 4, 9)
    with ServerStore(tmp_path, bytes(32)) as store:
        entry = Entry(make_plan(), (Contribution("", 1.0, (0.5,) * 4),))
        store.close_round(entry, ClosedRound(1, 1.0, ("bad",), 1.0, 0.1))
        store.save_records({"bad": record})
        with store.transaction() as execute:
            execute("INSERT INTO devices (name, key) VALUES ('bad', x'00')")
    with ServerStore(tmp_path, bytes(32)) as store:
        assert store.load_records() == {"bad": record}
    forget_devices(tmp_path, ["bad"])
    assert read_status(tmp_path)["unusual"] == [], "who is forgotten may come again"
    with sqlite3.connect(tmp_path / DATABASE) as connection:
        connection.execute("DROP TABLE records")  # as before they were kept
    assert read_status(tmp_path)["unusual"] == []


def test_claims_of_power_gain_little() -> None:
    """A battery beyond full and joules next to none, or none said, are as good as what honest devices may have."""
    energy = replace(JOB, sampling="energy")
    honest = {f"d{number}": Candidate(served=1, joules=8.0, battery=1.0) for number in range(4)}
    liars = {
        "bold": Candidate(served=1, joules=8.0, battery=1e9),
        "frugal": Candidate(served=1, joules=-5.0),
        "silent": Candidate(served=1),
    }
    for name, liar in liars.items():
        first = Counter(choose_cohort(energy, number, {**honest, name: liar}, 1)[0] for number in range(200))
        assert 10 < first[name] < 80, name
    thrifty = choose_cohort(energy, 1, {**honest, "good": Candidate(served=1, joules=2.5)}, 1)
    liar = choose_cohort(energy, 1, {"good": Candidate(joules=2.0), **honest, "a": Candidate(joules=1e-9)}, 2)
    assert (thrifty, set(liar)) == (("good",), {"good", "a"})


def test_attacks_change_what_hostile_devices_send_and_nothing_else() -> None:
    vectors = np.random.default_rng(9).standard_normal((6, SCALARS))
    results = results_of(vectors)
    acts = {"sleeping": [50], "huge": [10, 50]}
    for name in ATTACKS:
        attack = Attack.parse(f"{name}:2", sorted(results))
        for round in (1, 10, 50):
            sent = attack(replace(plan_round(JOB, 1), round=round), results)
            hostile = {"d0", "d1"} if round in acts.get(name, [1, 10, 50]) else set()
            assert {d for d in results if sent[d] != results[d]} == hostile, (name, round)
    for wrong in ("smile", "negated:6", "negated:x"):
        with raises("simulation.attack", wrong, "negated"):
            Attack.parse(wrong, sorted(results))
    with raises("simulation.attack", "'negated:9999"):
        Attack.parse(f"negated:{'9' * 5000}", sorted(results))


def test_a_simulated_job_names_and_expels_a_hostile_device(
    bundle_folder: Path, tmp_path: Path, write_examples: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its journal is that of a job that was interrupted, and status says who it was."""
    data = write_examples(tmp_path / "data.jsonl", 60)
    options = ["--devices", 5, "--cohort", 4, "--fanouts", "1,4", "--final-rate", 1, "--attack", "hundredfold"]

    def simulate(state: str, rounds: int) -> None:
        given = ["simulate", bundle_folder, "--data", data, "--state", tmp_path / state, *options, "--rounds", rounds]
        assert main(list(map(str, given))) == 0

    simulate("one", 9)
    simulate("parts", 3)
    simulate("parts", 9)
    journal = read_journal(tmp_path / "one")
    assert journal == read_journal(tmp_path / "parts")
    assert [entry.plan.bound > 0 for entry in journal] == [False] * 4 + [True] * 5
    said = capsys.readouterr().out
    assert "job 'default' runs in mode robust: the server sees each device's scalars\n" in said
    assert "parameters are trained, from stage 'embedding' on" in said
    assert main(["status", str(tmp_path / "one"), "--json"]) == 0
    unusual = json.loads(capsys.readouterr().out)["unusual"]
    assert [device["name"] for device in unusual if device["accused"]] == ["device-1"]
    assert (unusual[0]["large"], unusual[0]["expelled"] > 0) == (3, True)
    assert main(["status", str(tmp_path / "one")]) == 0
    said = capsys.readouterr().out
    assert "device 'device-1' is expelled after round" in said
    assert "its devices are simulated, and not listed" in said
    with ServerStore(tmp_path / "one", fedspzo.open_bundle(bundle_folder).identity) as store:
        history = store.history()
    assert all("device-1" not in closed.devices for closed in history if closed.round > unusual[0]["expelled"])
