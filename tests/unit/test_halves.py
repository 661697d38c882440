"""Weights of 16 bits at rest: exact widening, unbiased rounding, and rounds that lose no step and agree everywhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models import five_examples, make_checkpoint
from precision import loss_error
from refusals import raises
from safetensors.torch import load_file, save_file

from fedspzo.device_runtime.directions.format import Direction, NumpyKernel, Step
from fedspzo.device_runtime.directions.halves import DTYPES, narrow, widen
from fedspzo.device_runtime.engines.protocol import create_engine
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.model.manifest import WEIGHTS
from fedspzo.device_runtime.model.stored import widened
from fedspzo.device_runtime.protocol.entry import Contribution, Entry
from fedspzo.device_runtime.protocol.plan import Block, Plan
from fedspzo.device_runtime.replica.weights import Replica
from fedspzo.device_runtime.step.estimator import measure
from fedspzo.device_runtime.step.runner import Forward
from fedspzo.device_runtime.step.scores import predict
from fedspzo.export.answering import counted_labels
from fedspzo.export.materialize import write_checkpoint
from fedspzo.export.network.target import Target
from fedspzo.export.pipeline import export_bundle
from fedspzo.export.tasks import load_task

TYPES = ("bfloat16", "float16")


def stored(numbers: np.ndarray, dtype: str) -> np.ndarray:
    rounded = torch.from_numpy(np.asarray(numbers, np.float32)).to(getattr(torch, dtype))
    return rounded.view(torch.int16).numpy().view(DTYPES[dtype])


@pytest.mark.parametrize("dtype", TYPES)
def test_widening_is_torchs(dtype: str) -> None:
    every = np.arange(1 << 16, dtype=np.uint16).view(DTYPES[dtype])
    expected = torch.from_numpy(every.view(np.int16)).view(getattr(torch, dtype)).float().numpy()
    np.testing.assert_array_equal(widen(every, np.empty(every.shape, np.float32)), expected)


@pytest.mark.parametrize("dtype", TYPES)
@given(numbers=st.lists(st.floats(-60000, 60000, width=32).filter(lambda x: abs(x) > 1e-4), min_size=1, max_size=20))
def test_rounding_is_to_a_neighbour_and_unbiased(dtype: str, numbers: list[float]) -> None:
    """The mean over all random numbers is the number itself."""
    every = np.arange(0, 1 << 16, dtype=np.uint16)
    for number in numbers:
        out = np.empty(every.shape, DTYPES[dtype])
        narrow(np.full(every.shape, number, np.float32), every, out)
        found = widened(out).astype(np.float64)
        assert len(np.unique(found)) <= 2
        spacing = 2.0 ** (np.floor(np.log2(abs(number))) - (7 if dtype == "bfloat16" else 10))
        assert np.abs(found - number).max() < spacing
        assert abs(found.mean() - np.float32(number)) <= 1e-4 * spacing


@pytest.mark.parametrize("dtype", TYPES)
@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=1), st.integers(0, 65535))
def test_what_needs_no_rounding_stays(dtype: str, numbers: list[float], random: int) -> None:
    exact = stored(np.array(numbers, np.float32), dtype)
    out = np.empty_like(exact)
    narrow(widened(exact).copy(), np.full(exact.shape, random, np.uint16), out)
    np.testing.assert_array_equal(widened(out), widened(exact))


@pytest.mark.parametrize(("dtype", "golden"), [("bfloat16", "ea768309881c5667"), ("float16", "be90f2240fafce2e")])
def test_golden_step(dtype: str, golden: str) -> None:
    """The bits of a step may never change: replicas of all versions must agree."""
    import hashlib

    weights = stored(np.linspace(-2, 2, 140_000, dtype=np.float32), dtype)
    kernel = NumpyKernel("rademacher")
    kernel.step({5: weights}, [Step([Direction(7, 1e-3), Direction(8, -3e-4)], 99)])
    assert hashlib.sha256(weights.tobytes()).hexdigest()[:16] == golden


@pytest.mark.parametrize("dtype", TYPES)
def test_small_steps_add_up(dtype: str) -> None:
    """A thousand steps of a fiftieth of the spacing: to the nearest they would all vanish."""
    weights = stored(np.ones(4096, np.float32), dtype)
    spacing = 2.0**-7 if dtype == "bfloat16" else 2.0**-10
    kernel = NumpyKernel("rademacher")
    sign = np.zeros(4096, np.float32)
    kernel.shift({0: sign}, [Direction(3, 1.0)], {0: sign})
    for round in range(1000):
        kernel.step({0: weights}, [Step([Direction(3, spacing / 50)], round)])
    moved = (widened(weights) - 1) * sign
    assert abs(moved.mean() / (20 * spacing) - 1) < 0.05


@pytest.mark.parametrize("flush", [False, True])
def test_every_16_bit_number_widens_exactly(flush: bool) -> None:
    """Also where some library has made this thread take subnormal numbers for 0."""
    stored = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    stored = stored[np.isfinite(stored)]
    expected = stored.astype(np.float32)
    try:
        torch.set_flush_denormal(flush)
        out = widen(stored, np.empty(stored.shape, np.float32))
    finally:
        torch.set_flush_denormal(False)
    np.testing.assert_array_equal(out.view(np.uint32), expected.view(np.uint32))


@pytest.fixture(scope="module", params=TYPES)
def bundle16(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("halves")
    checkpoint = make_checkpoint(folder / "model", "llama-untied")
    target = Target(["litert"], [2], [24], weights=request.param)
    return export_bundle(str(checkpoint), load_task("sst2"), target, folder / "bundle")


def test_a_bundle_is_the_rounded_model(bundle16: Bundle, tmp_path: Path) -> None:
    """The same numbers as a float32 bundle of a checkpoint whose matrices were rounded, in half the space."""
    dtype = next(spec.dtype for spec in bundle16.manifest.tensors if spec.trainable and len(spec.shape) == 3)
    source = Path(bundle16.source)
    rounded = tmp_path / "rounded"
    rounded.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (rounded / name).write_bytes((source / name).read_bytes())
    tensors = load_file(source / "model.safetensors")
    save_file(
        {
            name: tensor.to(getattr(torch, dtype)).float() if tensor.ndim == 2 and name != "lm_head.weight" else tensor
            for name, tensor in tensors.items()
        },
        rounded / "model.safetensors",
        metadata={"format": "pt"},
    )
    whole = export_bundle(str(rounded), load_task("sst2"), Target(["litert"], [2], [24]), tmp_path / "whole")
    store = five_examples(whole)
    losses = [predict(Forward(create_engine("litert"), Replica(b)), store)[0] for b in (whole, bundle16)]
    np.testing.assert_allclose(losses[1], losses[0], rtol=0, atol=loss_error(float(losses[0].max())))
    sizes = [(b.folder / WEIGHTS).stat().st_size for b in (whole, bundle16)]
    assert sizes[1] < 0.62 * sizes[0]


def test_replicas_agree_and_come_back(bundle16: Bundle, make_plan: Callable[..., Plan], tmp_path: Path) -> None:
    replica, follower = Replica(bundle16), Replica(bundle16)
    stages = len(bundle16.manifest.stages)
    blocks = (Block(2, 1, 0.5, 1e-3), Block(stages, 2, 1.0, 1e-2))
    store = five_examples(bundle16)
    forward = Forward(create_engine("litert"), replica)
    for round in range(1, 6):
        plan = make_plan(round=round, base_seed=round, batch=2, blocks=blocks)
        entry = Entry(plan, (Contribution("", 1.0, measure(forward, store, plan, "a").scalars),))
        replica.apply(entry)
        follower.apply(entry)
    assert replica.digest() == follower.digest() != Replica(bundle16).digest()
    replica.save_snapshot(tmp_path / "snapshot")
    assert Replica(bundle16, tmp_path / "snapshot").digest() == replica.digest()
    write_checkpoint(replica, tmp_path / "out")
    written = load_file(tmp_path / "out" / "model.safetensors")
    labels = load_file(tmp_path / "out" / "labels.safetensors")["labels"].numpy()
    for index, weights in replica.trainable.items():
        spec = bundle16.manifest.tensors[index]
        if spec.name == "labels":
            np.testing.assert_array_equal(labels, counted_labels(bundle16, widened(weights)[0]).T)
            continue
        expected = widened(weights)[0].T if spec.transposed else widened(weights)
        np.testing.assert_array_equal(written[spec.source].numpy(), expected)


def test_numbers_beyond_the_range(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "m", "llama-3.2")
    tensors = load_file(checkpoint / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"][0, 0] = 1e5
    save_file(tensors, checkpoint / "model.safetensors", metadata={"format": "pt"})
    with raises("model.number-too-large", "'model.layers.0.mlp.up_proj.weight'", "float16"):
        export_bundle(
            str(checkpoint), load_task("sst2"), Target(["torch"], [1], [16], weights="float16"), tmp_path / "b"
        )
    with raises("export.unknown-dtype", "'int3'", "float32, float16, bfloat16, int8, int4"):
        Target(["torch"], [1], [16], weights="int3")
