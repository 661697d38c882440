"""A frozen first block: not perturbed, not trained, and its activations are computed once an example."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from precision import SCORES, scalar_error
from refusals import raises

from fedspzo.device_runtime.data.store import DataStore
from fedspzo.device_runtime.engines.protocol import create_engine
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.protocol.entry import Contribution, Entry
from fedspzo.device_runtime.protocol.plan import Block, Plan
from fedspzo.device_runtime.replica.weights import Replica
from fedspzo.device_runtime.step.cost import step_flops
from fedspzo.device_runtime.step.estimator import Measurement, measure
from fedspzo.device_runtime.step.prefix_cache import Prefix, PrefixCache
from fedspzo.device_runtime.step.runner import Forward
from fedspzo.device_runtime.step.scores import evaluate

FROZEN = (Block(3, 0, 1.0, 0.0), Block(5, 4, 1.0, 0.01))
WHOLE = (Block(3, 1, 0.5, 0.01), Block(5, 4, 1.0, 0.01))


@pytest.fixture
def forward(bundle: Bundle) -> Forward:
    return Forward(create_engine("litert"), Replica(bundle))


def apply(forward: Forward, plan: Plan, measured: Measurement) -> None:
    forward.weights.apply(Entry(plan, (Contribution("", 1.0, measured.scalars),)))


def test_a_frozen_block_stays_as_it_is(forward: Forward, store: DataStore, make_plan: Callable[..., Plan]) -> None:
    plan = make_plan(blocks=FROZEN)
    replica = forward.weights
    before = {index: array.copy() for index, array in replica.trainable.items()}
    measured = measure(forward, store, plan, "a")
    assert len(measured.scalars) == plan.measured == 4
    shape = next(s for s in forward.manifest.shapes if s.groups == 1)
    assert forward.flops == step_flops(forward.manifest, shape, plan)
    apply(forward, plan, measured)
    frozen = set(replica.trainable_in(range(3)))
    for index, array in replica.trainable.items():
        assert np.array_equal(array, before[index]) == (index in frozen)


def test_a_frozen_block_is_the_limit_of_a_small_scale(
    forward: Forward, store: DataStore, make_plan: Callable[..., Plan]
) -> None:
    """The seeds of block 2 are those under the first perturbation of block 1."""
    tiny = (Block(3, 1, 1e-9, 0.0), FROZEN[1])
    frozen, limit = (measure(forward, store, make_plan(blocks=blocks, epsilon=1e-2), "a") for blocks in (FROZEN, tiny))
    assert frozen.scalars == pytest.approx(limit.scalars, rel=0, abs=scalar_error(SCORES, 1e-2))


def test_activations_are_kept_across_rounds_and_restarts(
    bundle: Bundle, store: DataStore, make_plan: Callable[..., Plan], tmp_path: Path
) -> None:
    plan = make_plan(blocks=FROZEN)
    again = make_plan(blocks=FROZEN, round=2, base_seed=plan.base_seed)  # the same examples and directions
    first = Forward(create_engine("litert"), Replica(bundle))
    whole = measure(first, store, plan, "a", PrefixCache(tmp_path / "prefix.sqlite"))
    apply(first, plan, whole)
    plain = measure(first, store, again, "a")
    prefix_flops = sum(first.manifest.shapes[0].graphs[stage.graph].flops for stage in first.manifest.stages[:3])
    for forward in (first, Forward(create_engine("litert"), Replica(bundle))):
        if forward is not first:
            apply(forward, plan, whole)
        before = forward.flops
        assert measure(forward, store, again, "a", PrefixCache(tmp_path / "prefix.sqlite")) == plain
        assert forward.flops - before == step_flops(bundle.manifest, bundle.manifest.shapes[0], plan) - prefix_flops


def test_a_prefix_that_has_moved_is_computed_anew(
    forward: Forward, store: DataStore, make_plan: Callable[..., Plan], tmp_path: Path
) -> None:
    cache = PrefixCache(tmp_path / "prefix.sqlite")
    measure(forward, store, make_plan(blocks=FROZEN), "a", cache)
    moving = make_plan(blocks=WHOLE)
    apply(forward, moving, measure(forward, store, moving, "a", cache))
    later = make_plan(blocks=FROZEN, round=2)
    assert measure(forward, store, later, "a", cache) == measure(forward, store, later, "a")


def test_evaluations_pass_the_frozen_stages_once(
    forward: Forward, store: DataStore, make_plan: Callable[..., Plan], tmp_path: Path
) -> None:
    """What they find is what they would find without, also after the stages behind the prefix have moved."""
    prefix = Prefix(forward, 3, PrefixCache(tmp_path / "prefix.sqlite"))
    spent = []
    for round in (1, 2, 3):
        plain, before = evaluate(forward, store), forward.flops
        assert evaluate(forward, store, prefix) == plain
        spent.append(forward.flops - before)
        plan = make_plan(blocks=FROZEN, round=round)
        apply(forward, plan, measure(forward, store, plan, "a"))
    graphs = [forward.manifest.shapes[0].graphs[stage.graph].flops for stage in forward.manifest.stages]
    batches = len(list(forward.batches(store)))
    assert spent == [batches * sum(graphs), *[batches * sum(graphs[3:])] * 2]


def test_an_evaluation_behind_a_prefix_that_has_moved_is_of_the_moved_one(
    forward: Forward, store: DataStore, make_plan: Callable[..., Plan], tmp_path: Path
) -> None:
    prefix = Prefix(forward, 3, PrefixCache(tmp_path / "prefix.sqlite"))
    first = evaluate(forward, store, prefix)
    moving = make_plan(blocks=WHOLE)
    apply(forward, moving, measure(forward, store, moving, "a"))
    assert evaluate(forward, store, prefix) == evaluate(forward, store) != first


@pytest.mark.parametrize("content", [b"this is no database" * 100, b""])
def test_a_damaged_cache_is_begun_anew(
    forward: Forward, store: DataStore, make_plan: Callable[..., Plan], tmp_path: Path, content: bytes
) -> None:
    file = tmp_path / "prefix.sqlite"
    file.write_bytes(content)
    plan = make_plan(blocks=FROZEN)
    expected = measure(forward, store, plan, "a")
    cache = PrefixCache(file)
    for _ in range(2):
        assert measure(forward, store, plan, "a", cache) == expected
    assert file.read_bytes().startswith(b"SQLite format 3")


def test_a_sector_that_was_lost_is_noticed(
    forward: Forward, store: DataStore, make_plan: Callable[..., Plan], tmp_path: Path
) -> None:
    file = tmp_path / "prefix.sqlite"
    plan = make_plan(blocks=FROZEN)
    expected = measure(forward, store, plan, "a", PrefixCache(file))
    content = bytearray(file.read_bytes())
    content[-300:-44] = bytes(256)
    file.write_bytes(content)
    assert measure(forward, store, plan, "a", PrefixCache(file)) == expected
    whole = file.read_bytes()
    assert b"CREATE TABLE activations" in whole
    file.write_bytes(whole.replace(b"CREATE TABLE activations", b"CREATE TABLE\xd9activations"))
    assert measure(forward, store, plan, "a", PrefixCache(file)) == expected
    file.write_bytes(content[:4096] + bytes(b ^ 0xFF for b in content[4096:]))
    for _ in range(2):
        assert measure(forward, store, plan, "a", PrefixCache(file)) == expected


def test_a_cache_has_a_bound(
    forward: Forward, store: DataStore, make_plan: Callable[..., Plan], tmp_path: Path
) -> None:
    cache = PrefixCache(tmp_path / "prefix.sqlite", most_bytes=5000)
    for round in range(1, 6):
        plan = make_plan(blocks=FROZEN, round=round, base_seed=round)
        assert measure(forward, store, plan, "a", cache) == measure(forward, store, plan, "a")
    assert (tmp_path / "prefix.sqlite").stat().st_size < 40_000


@pytest.mark.parametrize("fanouts", [(0,), (1, 0), (0, 0)])
def test_only_a_first_block_can_be_frozen(make_plan: Callable[..., Plan], fanouts: tuple[int, ...]) -> None:
    blocks = tuple(Block(5 - len(fanouts) + i + 1, fanout, 1.0, 0.1) for i, fanout in enumerate(fanouts))
    with raises("plan.fanout-not-positive", "freezes"):
        make_plan(blocks=blocks)
