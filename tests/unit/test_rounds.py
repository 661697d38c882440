"""Rounds are pure: the same plan and results give the same entry, in whatever order results came."""

from __future__ import annotations

import dataclasses
import random
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import raises

from fedspzo.broker.rounds.aggregate import Spending, check_result, close_round, describe_round
from fedspzo.broker.rounds.groups import try_again
from fedspzo.broker.rounds.job import Job, plan_round
from fedspzo.broker.rounds.masked_round import MaskedRound, begin_round
from fedspzo.broker.rounds.open_round import OpenRound
from fedspzo.broker.rounds.sampling import Candidate, choose_cohort
from fedspzo.device_runtime.protocol.codec import decode, encode, fingerprint
from fedspzo.device_runtime.protocol.masked import Masked
from fedspzo.device_runtime.protocol.messages import Decline, Energy, Result
from fedspzo.device_runtime.protocol.plan import Block, Plan

JOB = Job(rounds=10, cohort=3, quorum=2, deadline=10.0, seed=5, batch=4, digest_every=5, final_rate=1.0).with_blocks(
    (Block(3, 1, 0.25, 1e-3), Block(5, 4, 1.0, 1e-2))
)


def result(scalars: tuple[float, ...], examples: int = 4, round: int = 1) -> Result:
    plan = fingerprint(plan_round(JOB, 1))
    return Result(round, plan, tuple(np.array(scalars, np.float32).tolist()), 1.0, examples, 0.1, b"")


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.lists(st.floats(-1e3, 1e3), min_size=4, max_size=4), st.integers(1, 4)), min_size=1, max_size=6
    ),
    st.booleans(),
    st.randoms(use_true_random=False),
)
def test_order_of_arrival_does_not_matter(
    rows: list[tuple[list[float], int]], shared: bool, chance: random.Random
) -> None:
    plan = plan_round(dataclasses.replace(JOB, seeds="shared" if shared else "device"), 1)
    results = {f"d{i}": result(tuple(scalars), examples) for i, (scalars, examples) in enumerate(rows)}
    shuffled = dict(chance.sample(list(results.items()), len(results)))
    entry = close_round(plan, results)
    assert entry == close_round(plan, shuffled)
    assert decode(encode(entry)) == entry, "what the server applies is what devices receive"
    assert sum(contribution.weight for contribution in entry.contributions) == pytest.approx(1)


def test_shared_scalars_are_averaged_by_examples() -> None:
    entry = close_round(plan_round(JOB, 1), {"a": result((1, 2, 3, 4), 1), "b": result((5, 6, 7, 8), 3)})
    assert entry.contributions[0].scalars == (4.0, 5.0, 6.0, 7.0)
    assert len(encode(entry)) == len(encode(close_round(plan_round(JOB, 1), {"a": result((1, 2, 3, 4))})))


def test_updates_are_the_mean_over_branches(make_plan: Callable[..., Plan]) -> None:
    plan = make_plan(blocks=(Block(2, 2, 0.5, 0.1), Block(5, 2, 1.0, 1.0)))
    first, second = plan.updates("", 0, (1.0, 3.0, 5.0, 7.0))
    # Block 1: mean of the branches under each of its paths, over two paths and its scale; block 2: each branch of four.
    assert [d.coefficient for d in first] == pytest.approx([-0.1 * 2 / 2 / 0.5, -0.1 * 6 / 2 / 0.5])
    assert [d.coefficient for d in second] == pytest.approx([-0.25, -0.75, -1.25, -1.75])
    assert len({d.seed for d in (*first, *second)}) == 6


def test_plans_differ_by_round_and_ask_for_digests_now_and_then() -> None:
    plans = [plan_round(JOB, round) for round in range(1, 11)]
    assert len({plan.base_seed for plan in plans}) == 10
    assert [plan.round for plan in plans if plan.digest] == [5, 10]
    assert plan_round(JOB, 3) == plans[2]


def test_learning_rates_fall_linearly() -> None:
    job = dataclasses.replace(JOB, final_rate=0.5)
    rates = [plan_round(job, round).blocks[1].learning_rate for round in (1, 6)]
    assert rates == pytest.approx([1e-2, 0.75e-2])
    assert plan_round(JOB, 9).blocks == JOB.blocks


def test_cohorts_are_uniform_and_repeatable() -> None:
    names = dict.fromkeys([f"d{i}" for i in range(10)], Candidate())
    chosen = Counter(d for round in range(1, 1001) for d in choose_cohort(JOB, round, names, 3))
    assert set(chosen) == set(names)
    assert max(chosen.values()) < 380
    assert min(chosen.values()) > 220
    assert choose_cohort(JOB, 1, names, 3) == choose_cohort(JOB, 1, dict(reversed(names.items())), 3)
    assert set(choose_cohort(JOB, 1, {"d0": Candidate(), "d1": Candidate()}, 3)) == {"d0", "d1"}


def test_cohorts_by_freshness_and_energy() -> None:
    fresh = dataclasses.replace(JOB, sampling="freshness")
    served = {f"d{i}": Candidate(served=i % 4) for i in range(12)}
    assert {served[d].served for d in choose_cohort(fresh, 7, served, 3)} == {0}
    assert {served[d].served for d in choose_cohort(fresh, 7, served, 6)} == {0, 1}
    energy = dataclasses.replace(JOB, sampling="energy")
    powered = {
        "full": Candidate(battery=1.0), "half": Candidate(battery=0.5), "empty": Candidate(battery=0.1),
        "plugged": Candidate(battery=0.1, charging=True),
    }  # fmt: skip
    assert choose_cohort(energy, 1, powered, 4) == ("plugged", "full", "half", "empty")


def test_the_thrifty_come_first_among_those_with_as_much_power() -> None:
    energy = dataclasses.replace(JOB, sampling="energy")
    fleet = {
        "low": Candidate(battery=0.3, joules=1.0), "greedy": Candidate(joules=90.0), "thrifty": Candidate(joules=3.0),
        "unknown": Candidate(),
    }  # fmt: skip
    assert choose_cohort(energy, 1, fleet, 4) == ("unknown", "thrifty", "greedy", "low")


def test_what_devices_say_they_spent_is_added_up() -> None:
    plan = plan_round(dataclasses.replace(JOB, energy=True), 1)
    assert plan.energy
    assert not plan_round(JOB, 1).energy
    spent = [(Energy(3.0, 0.3, False),), (Energy(4.0, 0.4, True),), ()]
    results = {f"d{i}": dataclasses.replace(result((1, 2, 3, 4)), energy=energy) for i, energy in enumerate(spent)}
    assert describe_round(plan, results, 1.0).spending == Spending(7.0, 0.5, 2, 1)
    assert describe_round(plan, {"d": result((1, 2, 3, 4))}, 1.0).spending is None
    assert close_round(plan, results) == close_round(plan, {d: result((1, 2, 3, 4)) for d in results}), (
        "no joule counts"
    )


def test_more_are_asked_than_close_a_round() -> None:
    assert JOB.asked == 3
    assert dataclasses.replace(JOB, over_selection=1.5).asked == 5


@pytest.mark.parametrize(
    ("device", "answer", "kind"),
    [
        ("a", result((1, 2, 3, 4), round=2), "result.other-round"),
        ("z", result((1, 2, 3, 4)), "result.not-asked"),
        ("a", result((1, 2, 3)), "result.scalar-count"),
        ("a", result((1, 2, 3, 4), examples=0), "result.example-count"),
        ("a", result((1, 2, 3, 4), examples=5), "result.example-count"),
        ("a", result((1, 2, 3, 1e30)), "result.number-too-large"),
        ("a", dataclasses.replace(result((1, 2, 3, 4)), loss=1.7e308), "result.number-too-large"),
        ("a", dataclasses.replace(result((1, 2, 3, 4)), energy=(Energy(1e12, 1.0, False),)), "result.number-too-large"),
        ("a", dataclasses.replace(result((1, 2, 3, 4)), energy=(Energy(1.0, -1.0, False),)), "result.energy"),
        ("a", dataclasses.replace(result((1, 2, 3, 4)), energy=(Energy(1.0, 1.0, True),) * 2), "result.energy"),
        ("a", dataclasses.replace(result((1, 2, 3, 4)), plan=bytes(8)), "result.other-plan"),
    ],
)
def test_what_does_not_count_is_said(device: str, answer: Result, kind: str) -> None:
    check_result(plan_round(JOB, 1), ("a", "b"), "a", result((1, 2, 3, 4)))
    with raises(kind):
        check_result(plan_round(JOB, 1), ("a", "b"), device, answer)


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"blocks": ()}, "plan.fanout-not-positive"),
        ({"blocks": (Block(3, 1, 1.0, 0.1), Block(3, 1, 1.0, 0.1))}, "plan.empty-block"),
        ({"blocks": (Block(3, 0, 1.0, 0.1),)}, "plan.fanout-not-positive"),
        ({"blocks": (Block(3, 5000, 1.0, 0.1),)}, "plan.too-many-scalars"),
        ({"epsilon": 0.0}, "plan.size-out-of-range"),
        ({"epsilon": float("nan")}, "plan.size-out-of-range"),
        ({"blocks": (Block(3, 1, 1.0, 1e30),)}, "plan.rate-out-of-range"),
        ({"distribution": "cauchy"}, "plan.unknown-distribution"),
        ({"round": 0}, "plan.not-positive"),
    ],
)
def test_a_plan_that_contradicts_itself(make_plan: Callable[..., Plan], changes: dict[str, object], kind: str) -> None:
    with raises(kind):
        make_plan(**changes)


def test_one_sided_updates_are_each_blocks_own_mean(make_plan: Callable[..., Plan]) -> None:
    plan = make_plan(blocks=(Block(2, 2, 0.5, 0.1), Block(5, 3, 1.0, 1.0)), sides=1)
    assert plan.scalars == 5
    first, second = plan.updates("", 0, (1.0, 3.0, 5.0, 7.0, 9.0))
    assert [d.coefficient for d in first] == pytest.approx([-0.1 * 1 / 2 / 0.5, -0.1 * 3 / 2 / 0.5])
    assert [d.coefficient for d in second] == pytest.approx([-5 / 3, -7 / 3, -9 / 3])
    assert len({d.seed for d in (*first, *second)}) == 5


def test_the_first_block_rests_between() -> None:
    job = dataclasses.replace(JOB, first_every=3)
    fanouts = [plan_round(job, round).blocks[0].fanout for round in range(1, 10)]
    assert fanouts == [0, 0, 1] * 3
    with raises("job.no-first-block", "first_every"):
        dataclasses.replace(JOB.with_blocks(JOB.blocks[-1:]), first_every=3)


def test_votes() -> None:
    """The majority's sign, by examples; the size of a scalar is of no account."""
    plan = plan_round(JOB, 1)
    results = {"a": result((9, -9, 1, 0), 1), "b": result((-1, -1, 1, 0), 2), "c": result((5, 5, 5, 0), 1)}
    assert close_round(plan, results, votes=True).contributions[0].scalars == (0.0, -1.0, 1.0, 0.0)
    with raises("job.votes-on-own-directions"):
        dataclasses.replace(JOB, votes=True, seeds="device")


def test_a_pool_of_seeds_is_finite_and_each_blocks_own() -> None:
    job = dataclasses.replace(JOB, seed_pool=8)
    seeds: list[set[int]] = [set(), set()]
    for round in range(1, 60):
        plan = plan_round(job, round)
        for block in (0, 1):
            seeds[block] |= {plan.seed("", 0, path) for path in plan.paths(block)}
    assert len(seeds[1]) == 8 >= len(seeds[0])
    assert not seeds[0] & seeds[1]


def test_a_round_is_refused_by_most_devices_or_by_none() -> None:
    lasting, passing = Decline(1, "never", False), Decline(1, "later", True)
    for declined, known, refused in (
        ({"a": lasting}, {"a"}, ""),
        ({"a": lasting, "b": lasting}, {"a", "b", "c"}, "a"),
        ({"a": lasting, "b": lasting}, {"a", "b", "c", "d"}, ""),
        ({"a": lasting, "b": passing}, {"a", "b"}, ""),
    ):
        opened = OpenRound(plan_round(JOB, 1), tuple(known), {}, 0.0, declined=declined)
        assert opened.refused_by(known) == refused


def test_devices_tell_of_attempts_that_a_restored_server_lost() -> None:
    """As many as a sum needs are believed; fewer, who may lie, get no more than another attempt."""
    job = dataclasses.replace(JOB, cohort=8, quorum=4, mode="secure")
    names, lost = [f"d{n}" for n in range(8)], job.deadline * 2

    def opened(told: dict[str, int], ready: int = 0) -> MaskedRound:
        made = begin_round(plan_round(job, 1), tuple(names), 0.0)
        assert isinstance(made, MaskedRound)
        for device, attempt in told.items():
            assert made.note_lost(device, Masked(1, attempt, b""))
        made.ready.update(dict.fromkeys(names[8 - ready :], 1))
        return made

    def complete(round: MaskedRound, now: float = 0.0) -> bool:
        return round.complete(job, lambda device: False, now)

    whole = opened(dict(zip(names, (3, 1, 3, 3, 2, 3, 1, 1), strict=True)))
    assert complete(whole)
    assert whole.reached == 3
    again = try_again(whole.plan, job.seed, whole.reached)
    assert again.masking[0].attempt == 4
    assert again.base_seed == try_again(try_again(try_again(whole.plan, job.seed), job.seed), job.seed).base_seed
    few = opened({"d0": 63, "d1": 63, "d2": 63})
    assert not complete(few, lost)
    assert try_again(few.plan, job.seed, few.reached).masking[0].attempt == 2
    enough = opened({"d0": 63}, ready=7)
    assert complete(enough)
    assert enough.reached == enough.attempt == 1, "the others suffice"
    for round, attempt in ((2, 1), (1, 64)):
        assert not enough.note_lost("d1", Masked(round, attempt, b""))
    enough.form_groups(0.0)
    assert not enough.note_lost("d1", Masked(1, 1, b"")), "it is of the groups"
    assert enough.note_lost("d1", Masked(1, 2, b""))
