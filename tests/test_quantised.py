"""A quantised, frozen base under adapters: codes and scales, the same numbers as PyTorch on the rounded weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models import five_examples, make_checkpoint
from safetensors.torch import load_file, save_file

from device_runtime.bundle import Bundle
from device_runtime.engines import create_engine
from device_runtime.errors import ExportError
from device_runtime.estimator import measure
from device_runtime.evaluation import predict
from device_runtime.forward import Forward
from device_runtime.manifest import WEIGHTS
from device_runtime.plan import Block, Contribution, Entry, Plan
from device_runtime.replica import Replica
from device_runtime.stored import GROUP, quantise, widened
from export.adapters import Adapters
from export.pipeline import export_bundle
from export.target import Target
from export.tasks import load_task

BITS = {"int8": 8, "int4": 4}
ENGINES = ("litert", "executorch")


@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(1, 40), st.sampled_from(list(BITS)))
def test_codes_are_within_half_a_step(seed: int, groups: int, width: int, dtype: str) -> None:
    matrix = np.random.default_rng(seed).standard_normal((1, GROUP * groups, width)).astype(np.float32)
    matrix[:, :GROUP, 0] = 0  # a group of zeros
    found = quantise(matrix, dtype)
    assert found.shape == matrix.shape
    error = np.abs(widened(found) - matrix).reshape(groups, GROUP, width)
    # Half a step, and what float16 takes from the largest of a group.
    assert (error <= found.scales.astype(np.float32)[:, None] * (0.5 + 2.0**-4)).all()
    assert found.codes.nbytes == matrix.size * BITS[dtype] // 8


def test_golden_codes() -> None:
    """The layout of four bits: the low halves of a group's bytes are its first 16 rows, the high ones its last."""
    matrix = np.zeros((1, GROUP, 2), np.float32)
    matrix[0, :, 0] = np.arange(GROUP) % 8 * 0.5
    matrix[0, 31, 1] = -7
    found = quantise(matrix, "int4")
    assert found.scales.tolist() == [[0.5, 1.0]]
    assert found.codes[0, :, 0].tolist() == [(8 + i % 8) * 17 for i in range(16)]
    assert found.codes[0, :, 1].tolist() == [0x88] * 15 + [0x18]
    np.testing.assert_array_equal(widened(found), matrix)


@pytest.fixture(scope="module", params=["int4", pytest.param("int8", marks=pytest.mark.slow)])
def bundle_q(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("quantised")
    checkpoint = make_checkpoint(folder / "model", "llama-untied", hidden_size=64, intermediate_size=96)
    target = Target(ENGINES, [2], [24], adapters=Adapters(4), groups=[4], weights=request.param)
    return export_bundle(str(checkpoint), load_task("sst2"), target, folder / "bundle")


def moved(bundle: Bundle) -> Replica:
    """A replica whose adapters have been trained somewhat."""
    replica, random = Replica(bundle), np.random.default_rng(1)
    for weights in replica.trainable.values():
        weights += 0.2 * random.standard_normal(weights.shape, np.float32)
    return replica


def test_numbers_are_those_of_the_rounded_weights(
    bundle_q: Bundle, make_plan: Callable[..., Plan], tmp_path: Path
) -> None:
    """Losses and scalars equal a float base's whose checkpoint holds what the codes stand for."""
    source = Path(bundle_q.manifest.model["source"])
    rounded = tmp_path / "rounded"
    rounded.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (rounded / name).write_bytes((source / name).read_bytes())
    tensors = load_file(source / "model.safetensors")
    replica = moved(bundle_q)
    kinds = set()
    for index, spec in enumerate(bundle_q.manifest.tensors):
        if spec.dtype in BITS:
            kinds.add(spec.dtype)
            tensors[spec.source] = torch.from_numpy(np.ascontiguousarray(widened(replica.tensor(index))[0].T))
        elif spec.dtype == "bfloat16":
            tensors[spec.source] = tensors[spec.source].bfloat16().float()
    assert len(kinds) == 1
    save_file(tensors, rounded / "model.safetensors", metadata={"format": "pt"})
    target = Target(ENGINES, [2], [24], adapters=Adapters(4), groups=[4])
    whole = export_bundle(str(rounded), load_task("sst2"), target, tmp_path / "whole")
    store = five_examples(whole)
    plan = make_plan(examples=2, epsilon=1e-2, blocks=(Block(2, 1, 0.5, 1.0), Block(4, 3, 1.0, 1.0)))
    for engine in ENGINES:
        ours, floats = (Forward(create_engine(engine), moved(b)) for b in (bundle_q, whole))
        np.testing.assert_allclose(predict(ours, store)[0], predict(floats, store)[0], atol=1e-5)
        scalars = [np.array(measure(forward, store, plan, "a").scalars) for forward in (ours, floats)]
        np.testing.assert_allclose(scalars[0], scalars[1], atol=0.01 * np.abs(scalars[1]).max())
        entry = Entry(plan, (Contribution("", 1.0, (1.0, -2.0, 0.5)),))
        for forward in (ours, floats):
            forward.weights.apply(entry)
        assert ours.weights.digest() == floats.weights.digest()
    sizes = [(b.folder / WEIGHTS).stat().st_size for b in (whole, bundle_q)]
    assert sizes[1] < 0.6 * sizes[0]


def test_what_cannot_be_quantised(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="weights of int4 stay as they are: train adapters over them"):
        Target(["torch"], [1], [16], weights="int4")
