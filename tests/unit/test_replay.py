"""Latent replay: a step takes a device's batches of its last rounds again, whose activations are kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some
from refusals import raises

from fedspzo.broker.rounds.job import Job, check_job, plan_round
from fedspzo.device_runtime.data.store import DataStore, subset
from fedspzo.device_runtime.device.measuring import Measurer
from fedspzo.device_runtime.engines.protocol import create_engine
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.protocol.codec import decode, encode
from fedspzo.device_runtime.protocol.entry import Contribution, Entry
from fedspzo.device_runtime.protocol.messages import Result
from fedspzo.device_runtime.protocol.plan import Block, Plan
from fedspzo.device_runtime.replica.state import MEASURED, DeviceState
from fedspzo.device_runtime.replica.weights import Replica
from fedspzo.device_runtime.step.cost import step_flops
from fedspzo.device_runtime.step.estimator import draw_batches, draw_examples, measure, measure_examples
from fedspzo.device_runtime.step.prefix_cache import PrefixCache
from fedspzo.device_runtime.step.runner import Forward
from fedspzo.energy.steps import ForwardSteps

MakePlan = Callable[..., Plan]
FROZEN = (Block(3, 0, 1.0, 0.0), Block(5, 4, 1.0, 0.01))


@given(some.integers(1, 40), some.integers(1, 4), some.integers(1, 6), some.integers(0, 200))
def test_a_device_goes_through_its_examples_and_takes_the_last_batches_again(
    store: DataStore, examples: int, batch: int, replay: int, measured: int
) -> None:
    plan = Plan(1, 7, True, "rademacher", 1, batch, 1e-3, FROZEN, 60.0, False, sides=1, replay=replay)
    own = subset(store, np.arange(examples) % len(store))

    def draw(number: int) -> list[tuple[int, ...]]:
        return [tuple(drawn.tolist()) for drawn in draw_batches(plan, own, "a", 0, number)]

    batches = -(-examples // batch)
    if replay < batches:
        assert draw(measured) == [draw(number)[-1] for number in range(max(0, measured - replay), measured + 1)]
        epoch = [draw(number)[-1] for number in range(measured, measured + batches)]
    else:  # at last all of them, none twice
        epoch = draw(max(measured, batches))
    assert sorted(index for drawn in epoch for index in drawn) == list(range(examples))


def test_the_scalars_are_the_mean_of_all_batches_and_what_is_kept_is_not_computed_again(
    bundle: Bundle, store: DataStore, make_plan: MakePlan, tmp_path: Path
) -> None:
    forward, cache = Forward(create_engine("litert"), Replica(bundle)), PrefixCache(tmp_path / "prefix.sqlite")
    shape = bundle.manifest.shapes[0]
    for number in range(4):
        plan = make_plan(round=number + 1, blocks=FROZEN, sides=1, batch=2, replay=2)
        before = forward.flops
        found = measure(forward, store, plan, "a", cache, number)
        batches = draw_batches(plan, store, "a", 0, number)
        assert found.examples == sum(map(len, batches)) == 2 * min(number + 1, 3)
        assert number < 2 or forward.flops - before == step_flops(bundle.manifest, shape, plan)
        each, losses = measure_examples(forward, subset(store, np.concatenate(batches)), plan)
        assert found.scalars == pytest.approx(each.mean(axis=0), rel=1e-3, abs=1e-3)
        assert found.loss == pytest.approx(losses.mean(), rel=1e-5)
        forward.weights.apply(Entry(plan, (Contribution("", 1.0, found.scalars),)))


def test_without_replay_a_plan_draws_as_before(store: DataStore, make_plan: MakePlan) -> None:
    plan = make_plan()
    (drawn,) = draw_batches(plan, store, "a", 1, 9)
    assert np.array_equal(drawn, draw_examples(plan, store, "a", 1))
    replaying = make_plan(blocks=FROZEN, sides=1, steps=1, replay=3)
    assert decode(encode(replaying)) == replaying


def test_a_device_knows_after_a_restart_in_how_many_rounds_it_has_measured(
    bundle: Bundle, store: DataStore, make_plan: MakePlan, tmp_path: Path
) -> None:
    """The same plan gets the same answer; a round without it does not count; a damaged file starts again."""

    def answer(round: int) -> Result:
        state = DeviceState(tmp_path / "state", bundle, "device")
        try:
            plan = make_plan(round=round, base_seed=round, blocks=FROZEN, sides=1, batch=2, replay=2)
            found = Measurer(create_engine("litert"), state, lambda: store).answer(plan)
        finally:
            state.close()
        assert isinstance(found, Result)
        return found

    assert [answer(1).examples, answer(3).examples] == [2, 4]
    again = answer(3)
    assert (again.examples, answer(3).scalars) == (4, again.scalars)
    assert answer(4).examples == 6
    (tmp_path / "state" / MEASURED).write_bytes(b"\xff 3")
    assert answer(5).examples == 2
    assert answer(6).examples == 4


@pytest.mark.parametrize(
    "settings",
    [
        {"fanouts": (1, 4), "learning_rates": (0.1, 0.1), "scales": (1.0, 1.0)},
        {"steps": 2},
        {"privacy": "example"},
        {"first_every": 2, "fanouts": (1, 4), "learning_rates": (0.1, 0.1), "scales": (1.0, 1.0)},
    ],
)
def test_what_replay_does_not_go_with_is_said(settings: dict[str, object]) -> None:
    with raises("plan.replay", "replay", "leave out replay"):
        Job(replay=3, **settings)  # type: ignore[arg-type]


def test_energy_is_measured_on_steps_that_replay_as_devices_do(bundle: Bundle, store: DataStore) -> None:
    rates = {"fanouts": (0, 2), "scales": (1.0, 1.0), "learning_rates": (0.0, 0.01), "sides": 1}
    job = check_job(Job(rounds=6, cohort=1, batch=2, replay=2, split=(3,), **rates), bundle)  # type: ignore[arg-type]
    steps = ForwardSteps(job, Forward(create_engine("litert"), Replica(bundle)), store)
    spent = []
    for _ in range(2):
        for number in range(1, 6):
            before = steps.flops
            steps.take(number)
            spent.append(steps.flops - before)
        steps.restart()
    shape = bundle.manifest.shapes[0]
    assert spent[2:5] == [step_flops(bundle.manifest, shape, plan_round(job, 1))] * 3
    assert spent[:5] == spent[5:], "nothing is kept of the steps before"
