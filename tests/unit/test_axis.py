"""The axis that label words learn more slowly along: what it is, and that a network starts and ends as its rows say."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from models import make_checkpoint
from references import SENTENCES

from fedspzo.device_runtime.data.sources import Example
from fedspzo.device_runtime.data.store import tokenise
from fedspzo.device_runtime.engines.protocol import create_engine
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.replica.weights import Replica
from fedspzo.device_runtime.step.runner import Forward
from fedspzo.device_runtime.step.scores import predict
from fedspzo.export import pipeline
from fedspzo.export.answering import counted_labels
from fedspzo.export.network.target import Target
from fedspzo.export.pipeline import export_bundle
from fedspzo.export.prior.axis import axis_of
from fedspzo.export.tasks import load_task


@example(seed=253, shared=0.0, count=2)  # short, so that its rounding is a larger share of it
@given(seed=st.integers(0, 2**32 - 1), shared=st.floats(0.0, 30.0), count=st.integers(2, 40))
def test_states_vary_along_the_axis_as_along_what_is_steepest_besides(seed: int, shared: float, count: int) -> None:
    draw = np.random.default_rng(seed)
    states = draw.normal(size=(count, 24)) + shared * draw.normal(size=24)
    axis = axis_of(states).astype(np.float64)
    mean = states.mean(axis=0)
    assert np.linalg.norm(axis) <= 1.0
    if not axis.any():
        return
    way = mean / np.linalg.norm(mean)
    np.testing.assert_allclose(axis, (axis @ way) * way, atol=2e-4, err_msg="but for the rounding of its entries")
    along = states @ mean / np.linalg.norm(mean)
    rest = states - np.outer(along, mean / np.linalg.norm(mean))
    left = (1 - axis @ axis) * np.linalg.norm(along)  # the second moment along the mean, of what is learned
    steepest = np.linalg.norm(rest - rest.mean(axis=0), ord=2)
    assert left == pytest.approx(max(steepest, 0.1 * np.linalg.norm(along)), rel=2e-2)


def test_states_that_share_nothing_have_no_axis() -> None:
    assert not axis_of(np.array([[1.0, 0.0], [-1.0, 0.0]])).any()
    assert not axis_of(np.zeros((3, 4))).any()


@pytest.mark.parametrize("name", ["llama-3.2", "bert"])
def test_rows_as_they_count_give_the_networks_scores(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And those of the start are the model's own, which the export compares with transformers'."""
    bundles = {}
    for length in (0.9, 0.0):
        monkeypatch.setattr(pipeline, "steep_axis", lambda *_, length=length: np.full(32, length / 32**0.5, "float32"))
        bundles[length] = _export(name, tmp_path / f"{length}")
    bundle, plain = bundles.values()
    start = bundle.tensor(_place(bundle, "labels"))
    np.testing.assert_array_equal(counted_labels(bundle, start[0]), start[0])
    moved = (start + 0.1 * np.random.default_rng(0).normal(size=start.shape)).astype(np.float32)
    found = _scores(bundle, moved)
    assert np.abs(found - _scores(plain, moved)).max() > 1e-3
    np.testing.assert_allclose(_scores(plain, counted_labels(bundle, moved[0])[None]), found, atol=1e-4)


def test_a_model_whose_states_are_alike_has_an_axis(tmp_path: Path) -> None:
    bundle = _export("bert", tmp_path)
    axis, start = (bundle.tensor(_place(bundle, name)) for name in ("label_axis", "labels"))
    assert 0.0 < np.linalg.norm(axis) < 1.0
    np.testing.assert_allclose(bundle.tensor(_place(bundle, "label_along")), axis @ start[0], atol=1e-5)


def test_frozen_labels_have_no_axis(tmp_path: Path) -> None:
    bundle = _export("bert", tmp_path, freeze=["labels"])
    assert not bundle.tensor(_place(bundle, "label_axis")).any()


def _export(name: str, folder: Path, freeze: Sequence[str] = ()) -> Bundle:
    checkpoint = make_checkpoint(folder / "model", name)
    target = Target(batches=[2], lengths=[24], freeze=freeze)
    return export_bundle(str(checkpoint), load_task("sst2"), target, folder / "bundle")


def _place(bundle: Bundle, name: str) -> int:
    return [spec.name for spec in bundle.manifest.tensors].index(name)


def _scores(bundle: Bundle, labels: np.ndarray) -> np.ndarray:
    replica = Replica(bundle)
    replica.adopt({_place(bundle, "labels"): labels}, 1)
    store = tokenise(bundle, [Example({"sentence": text}, number % 2) for number, text in enumerate(SENTENCES)])
    return predict(Forward(create_engine("litert"), replica), store)[1]
