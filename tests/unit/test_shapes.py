"""A bundle of several shapes: a batch goes through the cheapest graphs that it fits, and the numbers stay the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from precision import SCORES, loss_error

from fedspzo.device_runtime.data.store import DataStore
from fedspzo.device_runtime.engines.protocol import create_engine
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.model.task import Task
from fedspzo.device_runtime.protocol.plan import Block, Plan
from fedspzo.device_runtime.replica.weights import Replica
from fedspzo.device_runtime.step.cost import forecast_memory, step_flops
from fedspzo.device_runtime.step.estimator import measure
from fedspzo.device_runtime.step.runner import Forward
from fedspzo.device_runtime.step.scores import predict
from fedspzo.export.network.target import Target
from fedspzo.export.pipeline import export_bundle


@pytest.fixture(scope="module")
def several(checkpoint: Path, task: Task, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    target = Target(["litert"], batches=[1, 4], lengths=[6, 12])
    return export_bundle(str(checkpoint), {task.form: task}, target, tmp_path_factory.mktemp("shapes") / "b")


def examples(lengths: list[int]) -> DataStore:
    random = np.random.default_rng(0)
    ids = random.integers(5, 20, (len(lengths), 12), np.int32)
    count = len(lengths)
    return DataStore(ids, np.array(lengths, np.int32), np.zeros(count, np.int32), np.arange(count, dtype=np.int32) % 3)


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [([3], (1, 6)), ([6], (1, 6)), ([7], (1, 12)), ([6, 4], (4, 6)), ([3, 12], (4, 12)), ([5, 5, 5, 5], (4, 6))],
)
def test_the_cheapest_that_fits(several: Bundle, lengths: list[int], expected: tuple[int, int]) -> None:
    forward = Forward(create_engine("litert"), Replica(several))
    batch = forward.batch(examples(lengths), np.arange(len(lengths)))
    assert (batch.shape.batch, batch.shape.length) == expected
    assert batch.count == len(lengths)
    assert batch.feeds["mask"].shape == expected


def test_shapes_change_cost_and_not_numbers(several: Bundle, bundle: Bundle) -> None:
    store = examples([3, 12, 5, 6, 4, 11, 2, 6, 9])
    one, many = (Forward(create_engine("litert"), Replica(b)) for b in (bundle, several))
    for found, expected in zip(predict(many, store), predict(one, store), strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=loss_error(SCORES))
    assert many.flops < 0.8 * one.flops


def test_bundles_of_other_shapes_train_together(several: Bundle, bundle: Bundle) -> None:
    assert several.identity == bundle.identity


@pytest.mark.parametrize("sides", [1, 2])
def test_the_forecast_of_flops_is_what_a_step_does(several: Bundle, make_plan: Callable[..., Plan], sides: int) -> None:
    store = examples([3, 6, 5, 6])
    for blocks in (
        (Block(3, 2, 0.5, 1e-3), Block(5, 4, 1.0, 1e-3)),
        (Block(5, 3, 1.0, 1e-3),),
        (Block(2, 1, 1.0, 1e-3), Block(3, 2, 1.0, 1e-3), Block(5, 2, 1.0, 1e-3)),
    ):
        forward = Forward(create_engine("litert"), Replica(several))
        plan = make_plan(blocks=blocks, sides=sides)
        measure(forward, store, plan, "a")
        shape = next(s for s in several.manifest.shapes if (s.batch, s.length) == (4, 6))
        assert forward.flops == step_flops(several.manifest, shape, plan)


def test_the_forecast_of_memory_counts_what_is_held(several: Bundle, make_plan: Callable[..., Plan]) -> None:
    manifest = several.manifest
    blocks = (Block(3, 1, 0.5, 1e-3), Block(5, 4, 1.0, 1e-3))
    memory = forecast_memory(manifest, manifest.shapes[0], make_plan(blocks=blocks), "litert")
    replica = Replica(several)
    assert memory.weights == sum(array.nbytes for array in replica.trainable.values())
    layer = sum(replica.tensor(i).nbytes for i in manifest.stages[1].tensors)
    labels = next(i for i in manifest.stages[-1].tensors if manifest.tensors[i].name == "labels")
    assert memory.buffers == layer + replica.tensor(labels).nbytes
    signed = 4 * 12 * 32 * 4
    assert 5 * signed < memory.activations < 7 * signed, "those of block 1, and block 2's on their way through a stage"
    many = make_plan(blocks=(blocks[0], Block(5, 64, 1.0, 1e-3)))
    wider = forecast_memory(manifest, manifest.shapes[0], many, "litert")
    assert wider.activations == memory.activations, "paths go one by one"
    assert memory.total > memory.weights + memory.buffers
