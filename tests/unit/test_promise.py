"""A step is held to what it may promise: with less weight, and with scalars that stay what was measured."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedspzo.broker.rounds.aggregate import close_round
from fedspzo.broker.rounds.job import Job, plan_round
from fedspzo.broker.rounds.promise import BOUNDED, MOST, bound, mean_squares, promise
from fedspzo.device_runtime.protocol.codec import decode, encode, fingerprint
from fedspzo.device_runtime.protocol.entry import Contribution, Entry
from fedspzo.device_runtime.protocol.messages import Result
from fedspzo.device_runtime.protocol.plan import Block, Plan

BLOCKS = (Block(3, 2, 0.5, 1e-3), Block(5, 2, 1.0, 1e-2))
JOB = dataclasses.replace(Job(rounds=10, cohort=2, batch=4, sides=1).with_blocks(BLOCKS), adapt=("steps", "rates"))


def squares_of(plan: Plan, *contributions: tuple[float, Sequence[float]]) -> list[float | None]:
    return mean_squares(entry_of(plan, *contributions))


def entry_of(plan: Plan, *contributions: tuple[float, Sequence[float]]) -> Entry:
    return Entry(plan, tuple(Contribution(str(at), weight, tuple(v)) for at, (weight, v) in enumerate(contributions)))


def closed(job: Job, *vectors: Sequence[float]) -> Entry:
    plan = plan_round(job, 1)
    results = {
        f"device-{number}": Result(1, fingerprint(plan), tuple(vector), 1.0, 4, 0.1, b"")
        for number, vector in enumerate(vectors)
    }
    return close_round(plan, results)


def test_squares_are_of_each_blocks_own_scalars(make_plan: Callable[..., Plan]) -> None:
    plan = make_plan(blocks=(Block(3, 2, 0.5, 1e-3), Block(5, 1, 1.0, 1e-2)), sides=1, steps=2)
    rows = (0.75, (1, 2, 3, 4, 5, 6)), (0.25, (0,) * 6)
    found = squares_of(plan, *rows)
    assert found == pytest.approx([0.75 * (1 + 4 + 16 + 25) / 0.25 / 4, 0.75 * (9 + 36) / 2])
    halved = squares_of(plan, *((weight / 2, scalars) for weight, scalars in rows))
    assert halved == pytest.approx(found), "what was measured does not depend on how far the step went"
    assert promise(entry_of(plan, *rows)) == pytest.approx(2 * (1e-3 * found[0] + 1e-2 * found[1]))
    assert squares_of(plan) == [None, None]
    assert squares_of(plan, (0.0, (1, 2, 3, 4, 5, 6))) == [0.0, 0.0]
    frozen = dataclasses.replace(plan, blocks=(dataclasses.replace(plan.blocks[0], fanout=0), plan.blocks[1]))
    assert squares_of(frozen, (1.0, (3, 4))) == [None, pytest.approx(12.5)]
    nested = dataclasses.replace(plan, sides=2, steps=1)
    assert squares_of(nested, (1.0, (3, 4))) == pytest.approx([12.5 / 0.25, 12.5])


@pytest.mark.parametrize("seeds", ["shared", "device"])
@given(scale=st.floats(1e-2, 1e4))
def test_a_long_step_is_shortened_and_a_short_one_is_not(seeds: str, scale: float) -> None:
    job = dataclasses.replace(JOB, seeds=seeds)
    vectors = [[scale * number for number in row] for row in ((1, 2, 3, 4), (2, -1, 0.5, 3))]
    kept, free = closed(job, *vectors), closed(dataclasses.replace(job, adapt=()), *vectors)
    promised = promise(free)
    weight = math.fsum(each.weight for each in kept.contributions)
    assert weight == pytest.approx(min(1.0, MOST / promised))
    assert [each.scalars for each in kept.contributions] == [each.scalars for each in free.contributions]
    assert promise(kept) == pytest.approx(promised)
    assert decode(encode(kept)) == kept
    assert kept.plan.aggregate == free.plan.aggregate + BOUNDED
    for one, other in zip(kept.updates(), free.updates(), strict=True):
        moved = [direction.coefficient for direction in one]
        assert moved == pytest.approx([weight * direction.coefficient for direction in other], rel=1e-5)


def test_nothing_measured_is_nothing_promised() -> None:
    still = closed(JOB, (0.0,) * 4)
    assert promise(still) == 0.0
    assert bound(still) == still


@pytest.mark.parametrize(
    "changes",
    [{"adapt": ("rates",)}, {"objective": "error"}, {"votes": True, "adapt": ("steps",)}],
)
def test_only_losses_are_promised_and_where_steps_follow_what_is_measured(changes: dict[str, object]) -> None:
    assert BOUNDED not in plan_round(dataclasses.replace(JOB, **changes), 1).aggregate  # type: ignore[arg-type]
