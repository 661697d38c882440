"""The split estimator against the same computation written out naively, and against autograd."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from precision import SCORES, UNIT, loss_error, scalar_error
from refusals import raises

from fedspzo.device_runtime.data.store import DataStore
from fedspzo.device_runtime.directions.format import Direction, NumpyKernel
from fedspzo.device_runtime.engines import litert
from fedspzo.device_runtime.engines.protocol import create_engine
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.protocol.entry import Contribution, Entry
from fedspzo.device_runtime.protocol.plan import Block, Plan
from fedspzo.device_runtime.replica.weights import Replica, check_blocks
from fedspzo.device_runtime.step.estimator import draw_examples, measure
from fedspzo.device_runtime.step.runner import Forward
from fedspzo.device_runtime.step.scores import evaluate


def take(store: DataStore, indices: Sequence[int]) -> DataStore:
    at = list(indices)
    return DataStore(store.ids[at], store.lengths[at], store.starts[at], store.labels[at])


def naive_loss(forward: Forward, store: DataStore, indices: np.ndarray, weights: dict[int, np.ndarray]) -> float:
    """Loss of a whole forward pass with other weights."""
    batch = forward.batch(store, indices)
    outputs: list[np.ndarray] = []
    for stage in forward.manifest.stages:
        outputs = forward.run(stage, batch, outputs[0] if outputs else None, weights)
    return float(outputs[0][: batch.count].astype(np.float64).mean())


def naive_step(
    forward: Forward, store: DataStore, indices: np.ndarray, plan: Plan, theta: dict[int, np.ndarray]
) -> list[float]:
    """Two blocks, every branch with two whole forward passes over weights perturbed in a copy."""
    manifest, kernel = forward.manifest, NumpyKernel(plan.distribution)
    first, second = plan.blocks
    tensors = [
        {i for stage in manifest.stages[: first.stop] for i in stage.tensors if i in theta},
        {i for stage in manifest.stages[first.stop :] for i in stage.tensors if i in theta},
    ]
    scalars = []
    for i in range(first.fanout):
        for j in range(second.fanout):
            losses = []
            for sign in (1, -1):
                weights = {index: array.copy() for index, array in theta.items()}
                for block, path, members in ((first, (i,), tensors[0]), (second, (i, j), tensors[1])):
                    direction = Direction(plan.seed("", 0, path), sign * plan.epsilon * block.scale)
                    for index in members:
                        kernel.shift({index: weights[index]}, [direction], {index: weights[index]})
                aligned = {index: np.copyto(a := forward.scratch.take(w.shape), w) or a for index, w in weights.items()}
                losses.append(naive_loss(forward, store, indices, aligned))
            scalars.append((losses[0] - losses[1]) / (2 * plan.epsilon))
    return scalars


@pytest.fixture
def forward(bundle: Bundle) -> Forward:
    return Forward(create_engine("litert"), Replica(bundle))


@pytest.mark.parametrize("distribution", ["rademacher", "gaussian"])
@pytest.mark.parametrize("fanouts", [(1, 4), (2, 3), (3, 1)])
def test_split_estimator_equals_the_naive_one(
    bundle: Bundle, store: DataStore, make_plan: Callable[..., Plan], distribution: str, fanouts: tuple[int, int]
) -> None:
    forward = Forward(create_engine("litert"), Replica(bundle, ahead=True))  # which has all weights as inputs, as there
    blocks = (Block(2, fanouts[0], 0.5, 0.1), Block(5, fanouts[1], 1.0, 0.1))
    plan = make_plan(distribution=distribution, blocks=blocks)
    measured = measure(forward, store, plan, "a")
    theta = dict(forward.weights.trainable)
    expected = naive_step(forward, store, draw_examples(plan, store, "a", 0), plan, theta)
    # The same graphs on the same weights: only the scalar itself is rounded once more, to float32.
    np.testing.assert_allclose(measured.scalars, expected, rtol=2 * UNIT)


@pytest.mark.parametrize("distribution", ["rademacher", "gaussian"])
def test_weights_written_where_the_engine_has_them_measure_the_same(
    bundle: Bundle, store: DataStore, make_plan: Callable[..., Plan], distribution: str
) -> None:
    """Up to the rounding of products in another order, with local steps as well; plain inference is as before."""
    blocks = (Block(2, 2, 0.5, 1e-3), Block(5, 2, 1.0, 1e-3))
    plan = make_plan(steps=2, epsilon=1e-2, distribution=distribution, blocks=blocks)
    packing = Forward(create_engine("litert"), Replica(bundle))
    expected = measure(Forward(create_engine("litert"), Replica(bundle, ahead=True)), store, plan, "a")
    for _ in range(2):
        measured = measure(packing, store, plan, "a")
        np.testing.assert_allclose(measured.scalars, expected.scalars, rtol=0, atol=scalar_error(SCORES, plan.epsilon))
        assert measured.loss == pytest.approx(expected.loss, rel=0, abs=loss_error(SCORES))
        assert any(graph is not None for _, graph in packing._graphs._packed.values()) or platform.machine() != "x86_64"
        before = evaluate(packing, store).loss
    assert evaluate(Forward(create_engine("litert"), Replica(bundle)), store).loss == before


def test_weights_are_inputs_where_the_system_has_no_files_in_memory(
    bundle: Bundle, store: DataStore, make_plan: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(litert, "memory_files", lambda name: {})
    found, expected = (
        measure(Forward(create_engine("litert"), Replica(bundle, ahead=ahead)), store, make_plan(), "a")
        for ahead in (False, True)
    )
    assert found == expected


def test_weights_are_packed_where_python_makes_no_files_in_memory(
    bundle: Bundle, store: DataStore, make_plan: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on Android, where Python lacks the call."""
    expected = measure(Forward(create_engine("litert"), Replica(bundle)), store, make_plan(), "a")
    monkeypatch.delattr(os, "memfd_create")
    packing = Forward(create_engine("litert"), Replica(bundle))
    assert measure(packing, store, make_plan(), "a") == expected
    assert any(graph is not None for _, graph in packing._graphs._packed.values()) or platform.machine() != "x86_64"


@pytest.mark.parametrize("fanouts", [(1, 4, 2), (0, 2, 3), (2, 1, 1)])
def test_one_sided_differences_are_around_the_centre(
    bundle: Bundle, store: DataStore, make_plan: Callable[..., Plan], fanouts: tuple[int, ...]
) -> None:
    """Each direction of each block alone: (l(θ + εz) − l(θ)) / ε, with whole forward passes over weights in a copy."""
    forward = Forward(create_engine("litert"), Replica(bundle, ahead=True))
    blocks = tuple(Block(stop, fanout, 0.5, 0.1) for stop, fanout in zip((2, 3, 5), fanouts, strict=True))
    plan = make_plan(blocks=blocks, sides=1)
    measured = measure(forward, store, plan, "a")
    drawn, kernel = draw_examples(plan, store, "a", 0), NumpyKernel("rademacher")
    centre = naive_loss(forward, store, drawn, {})
    assert measured.loss == pytest.approx(centre, rel=1e-6)
    expected = []
    for block, stages in enumerate((range(2), range(2, 3), range(3, 5))):
        for path in plan.paths(block):
            moved = {}
            for index in forward.weights.trainable_in(stages):
                moved[index] = forward.scratch.take(forward.weights.trainable[index].shape)
                direction = Direction(plan.seed("", 0, path), plan.epsilon * 0.5)
                kernel.shift({index: forward.weights.trainable[index]}, [direction], {index: moved[index]})
            expected.append((naive_loss(forward, store, drawn, moved) - centre) / plan.epsilon)
    assert len(set(expected)) == len(expected) == plan.scalars
    np.testing.assert_allclose(measured.scalars, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sides", [1, 2])
def test_local_steps_equal_rounds_of_one_device(
    forward: Forward, bundle: Bundle, store: DataStore, make_plan: Callable[..., Plan], sides: int
) -> None:
    """Three local steps, whose offsets are never written to the weights, end where applying each in turn would."""
    plan = make_plan(steps=3, sides=sides, epsilon=1e-2)
    each = plan.measured
    scalars = measure(forward, store, plan, "a").scalars
    stepped = Forward(create_engine("litert"), Replica(bundle))
    kernel = NumpyKernel("rademacher")
    for step in range(3):
        found = naive_step_at(stepped, store, plan, step)
        here = scalars[each * step : each * (step + 1)]
        np.testing.assert_allclose(here, found, rtol=0, atol=scalar_error(SCORES, plan.epsilon, sides))
        stages = (range(3), range(3, 5))
        for block, updates in zip(stages, plan.updates("", step, here), strict=True):
            for index in stepped.weights.trainable_in(block):
                weights = stepped.weights.trainable[index]
                kernel.shift({index: weights}, updates, {index: weights})


def naive_step_at(forward: Forward, store: DataStore, plan: Plan, step: int) -> list[float]:
    """A step measured from the weights as they are now."""
    from fedspzo.device_runtime.step.estimator import measure_step

    batch = forward.batch(store, draw_examples(plan, store, "a", step))
    return measure_step(forward, batch, plan, "", step, [[], []])[0]


def test_three_blocks(forward: Forward, store: DataStore, make_plan: Callable[..., Plan]) -> None:
    blocks = (Block(2, 2, 1.0, 0.1), Block(3, 2, 1.0, 0.1), Block(5, 2, 1.0, 0.1))
    measured = measure(forward, store, make_plan(blocks=blocks), "a")
    assert len(measured.scalars) == len(set(measured.scalars)) == 8


def test_weights_are_never_left_perturbed(forward: Forward, store: DataStore, make_plan: Callable[..., Plan]) -> None:
    before = forward.weights.digest()
    measure(forward, store, make_plan(steps=2), "a")
    assert forward.weights.digest() == before


@pytest.mark.parametrize("fanouts", [(1, 1), (1, 8), (2, 4)])
def test_flops_of_a_step(
    forward: Forward, store: DataStore, make_plan: Callable[..., Plan], fanouts: tuple[int, int]
) -> None:
    """Σ 2·P_b·F_b: block 1 once for each of its perturbations, block 2 for each of its own."""
    flops = [forward.manifest.shapes[0].graphs[stage.graph].flops for stage in forward.manifest.stages]
    plan = make_plan(blocks=(Block(3, fanouts[0], 1.0, 0.1), Block(5, fanouts[1], 1.0, 0.1)))
    measure(forward, store, plan, "a")
    branches = fanouts[0] * fanouts[1]
    assert forward.flops == 2 * fanouts[0] * sum(flops[:3]) + 2 * branches * sum(flops[3:])


@pytest.mark.parametrize("sides", [1, 2])
def test_a_step_allocates_no_activations_after_the_first(
    forward: Forward, store: DataStore, make_plan: Callable[..., Plan], sides: int
) -> None:
    plan = make_plan(blocks=(Block(3, 2, 1.0, 0.1), Block(5, 3, 1.0, 0.1)), sides=sides)
    measure(forward, store, plan, "a")
    held = {shape: len(arrays) for shape, arrays in forward.scratch._free.items()}
    for _ in range(3):
        measure(forward, store, plan, "a")
    assert {shape: len(arrays) for shape, arrays in forward.scratch._free.items()} == held


def test_fewer_examples_than_a_batch(forward: Forward, store: DataStore, make_plan: Callable[..., Plan]) -> None:
    """Padding rows repeat an example and count for nothing."""
    small = take(store, [0, 1])
    measured = measure(forward, small, make_plan(), "a")
    assert measured.examples == 2
    swapped = take(store, [1, 0])
    again = measure(forward, swapped, make_plan(), "a")
    np.testing.assert_allclose(measured.loss, again.loss, rtol=0, atol=loss_error(SCORES))


@pytest.mark.parametrize(("distribution", "sides"), [("rademacher", 2), ("gaussian", 2), ("rademacher", 1)])
def test_expectation_is_the_gradient(
    bundle: Bundle, store: DataStore, make_plan: Callable[..., Plan], distribution: str, sides: int
) -> None:
    """Over many directions the estimate's mean tends to the gradient that autograd finds, block by block."""
    forward = Forward(create_engine("litert"), Replica(bundle))
    blocks = (Block(3, 8, 0.5, 1.0), Block(5, 8 if sides == 2 else 64, 1.0, 1.0))
    plans = [
        make_plan(round=r, base_seed=r, distribution=distribution, blocks=blocks, sides=sides) for r in range(1, 33)
    ]
    fixed = take(store, range(4))
    estimate = {index: np.zeros(array.shape, np.float64) for index, array in forward.weights.trainable.items()}
    kernel = NumpyKernel(distribution)
    for plan in plans:
        scalars = measure(forward, fixed, plan, "a").scalars
        for stages, updates in zip((range(3), range(3, 5)), plan.updates("", 0, scalars), strict=True):
            for index in forward.weights.trainable_in(stages):
                step = np.zeros(estimate[index].shape, np.float32)
                kernel.shift({index: step}, updates, {index: step})
                estimate[index] -= step.astype(np.float64) / len(plans)
    gradient = autograd_gradient(forward, fixed)
    for stages, directions in ((range(3), 8 * 32), (range(3, 5), 64 * 32)):
        indices = forward.weights.trainable_in(stages)
        found = np.concatenate([estimate[i].ravel() for i in indices])
        exact = np.concatenate([gradient[i].ravel() for i in indices])
        # E|ĝ − g|² ≈ (d/n)·|g|², so their inner product concentrates on |g|² within a few times |g|²/√n.
        slope = float(found @ exact) / float(exact @ exact)
        assert abs(slope - 1) < 6 * np.sqrt(2 / directions), (distribution, slope)
        cosine = float(found @ exact) / float(np.linalg.norm(found) * np.linalg.norm(exact))
        assert cosine > 0.5 / np.sqrt(1 + exact.size / directions)


def autograd_gradient(forward: Forward, store: DataStore) -> dict[int, np.ndarray]:
    """Gradient of the mean loss, from the exported PyTorch programs."""
    bundle = forward.weights.bundle
    weights = {i: torch.tensor(array, requires_grad=True) for i, array in forward.weights.trainable.items()}
    programs = {
        g.name: torch.export.load(bundle.folder / g.files["torch"]).module()
        for g in bundle.manifest.shapes[0].graphs.values()
    }
    batch = forward.batch(store, np.arange(len(store)))
    hidden = torch.tensor(batch.feeds["rows"])
    for stage in bundle.manifest.stages:
        graph = bundle.manifest.shapes[0].graphs[stage.graph]
        feeds = [hidden if name == "hidden" else torch.tensor(batch.feeds[name]) for name in graph.feeds]
        tensors = [weights[i] if i in weights else torch.tensor(forward.weights.tensor(i)) for i in stage.tensors]
        hidden = programs[stage.graph](*feeds, *tensors)[0]
    hidden.mean().backward()
    return {i: tensor.grad.numpy() for i, tensor in weights.items() if tensor.grad is not None}


def test_rounds_with_a_small_step_reduce_the_loss(
    bundle: Bundle, store: DataStore, make_plan: Callable[..., Plan]
) -> None:
    forward = Forward(create_engine("litert"), Replica(bundle))
    before = evaluate(forward, store).loss
    for round in range(1, 31):
        blocks = (Block(3, 1, 0.25, 2e-4), Block(5, 8, 1.0, 3e-3))
        plan = make_plan(round=round, base_seed=round, blocks=blocks)
        scalars = measure(forward, store, plan, "a").scalars
        forward.weights.apply(Entry(plan, (Contribution("", 1.0, scalars),)))
    assert evaluate(forward, store).loss < before - 0.1


@pytest.mark.parametrize(
    ("changes", "kind", "named"),
    [
        ({"blocks": (Block(4, 1, 1.0, 0.1),)}, "plan.other-network", "4"),
        ({"batch": 5}, "plan.batch-above-bundle", "not 5"),
    ],
)
def test_a_plan_that_does_not_fit_the_bundle(
    forward: Forward,
    store: DataStore,
    make_plan: Callable[..., Plan],
    changes: dict[str, object],
    kind: str,
    named: str,
) -> None:
    with raises(kind, named):
        measure(forward, store, make_plan(**changes), "a")


def test_a_block_with_nothing_to_train(bundle: Bundle, make_plan: Callable[..., Plan]) -> None:
    frozen = Bundle(bundle.folder)
    tensors = (replace(spec, trainable=spec.trainable and spec.name != "labels") for spec in bundle.manifest.tensors)
    frozen.manifest = replace(bundle.manifest, tensors=tuple(tensors))
    plan = make_plan(blocks=(Block(4, 1, 1.0, 0.1), Block(5, 1, 1.0, 0.1)))
    check_blocks(bundle, plan)
    with raises("plan.nothing-to-train", "stages 4 to 4"):
        check_blocks(frozen, plan)


def test_there_is_no_autograd_on_the_device() -> None:
    """Forward passes only: no source of the runtime names what backpropagation needs."""
    sources = list((Path(__file__).parents[2] / "device_runtime").rglob("*.py"))
    assert len(sources) > 10
    for path in sources:
        text = path.read_text(encoding="utf-8")
        assert not [word for word in ("backward", "requires_grad", "autograd.", "enable_grad") if word in text], path
