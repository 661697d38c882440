"""Scores of all tokens in slices of the table: the losses and answers of the whole, in a slice's memory."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from models import make_checkpoint, wide
from refusals import raises

from fedspzo.broker.simulation.gradient import Backpropagation
from fedspzo.device_runtime.data.sources import Example
from fedspzo.device_runtime.data.store import DataStore, tokenise
from fedspzo.device_runtime.engines.protocol import create_engine
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.model.manifest import MANIFEST, GraphSpec
from fedspzo.device_runtime.model.manifest_reader import parse_manifest
from fedspzo.device_runtime.protocol.plan import Block, Plan
from fedspzo.device_runtime.replica.weights import Replica
from fedspzo.device_runtime.step.cost import forecast_inference
from fedspzo.device_runtime.step.estimator import measure
from fedspzo.device_runtime.step.generation import generate
from fedspzo.device_runtime.step.runner import Forward
from fedspzo.device_runtime.step.scores import predict
from fedspzo.device_runtime.step.sliced import answer_losses, stack
from fedspzo.device_runtime.step.streamed import FOLDER
from fedspzo.export.lowering.graphs import _slices
from fedspzo.export.network.adapters import LowRank
from fedspzo.export.network.target import Target
from fedspzo.export.pipeline import export_bundle
from fedspzo.export.tasks import load_task

ROWS = 64
SCORES = st.floats(-80, 80, width=32)


@given(st.data(), st.integers(1, 3), st.integers(1, 4), st.integers(2, 40))
def test_losses_and_scores_of_slices_are_those_of_the_whole(
    data: st.DataObject, batch: int, answer: int, tokens: int
) -> None:
    scores = data.draw(arrays.arrays(np.float32, (tokens, batch, answer), elements=SCORES))
    chosen = data.draw(arrays.arrays(np.int64, (batch, answer), elements=st.integers(0, tokens - 1)))
    lengths = data.draw(arrays.arrays(np.int64, (batch,), elements=st.integers(1, answer)))
    cuts = sorted(data.draw(st.sets(st.integers(1, tokens - 1))))
    mask = (np.arange(answer) < lengths[:, None]).astype(np.float32)
    own = np.take_along_axis(scores, chosen[None], axis=0)[0]
    wide_scores = scores.astype(np.float64)
    whole = np.log(np.exp(wide_scores - wide_scores.max(axis=0)).sum(axis=0)) + wide_scores.max(axis=0)
    parts = (np.logaddexp.reduce(part, axis=0) for part in np.split(scores, cuts))
    found = answer_losses(parts, own, mask, np.empty(batch, np.float32))
    np.testing.assert_allclose(found, ((whole - own) * mask).sum(axis=1) / lengths, rtol=1e-5, atol=1e-4)
    first = scores[:, :, 0]
    np.testing.assert_array_equal(stack(np.split(first, cuts), np.empty_like(first)), first)


@given(st.integers(1, 300_000), st.integers(1, 64))
def test_slices_cover_a_table_in_order(rows: int, eighths: int) -> None:
    width = 8 * eighths
    slices = _slices(rows, width)
    assert [row for edges in slices for row in (edges.start, edges.stop)][1:-1:2] == [
        edges.start for edges in slices[1:]
    ]
    assert (slices[0].start, slices[-1].stop) == (0, rows)
    assert all(0 < len(each) <= 8192 + 64 for each in slices)
    assert all(each.start * width % 64 == 0 for each in slices)
    assert len({len(each) for each in slices[:-1]}) <= 1


@pytest.mark.parametrize(("rows", "count"), [(128_256, 16), (151_936, 32), (256_000, 32), (32_000, 4), (8_192, 1)])
def test_tables_of_common_models_have_slices_of_one_size(rows: int, count: int) -> None:
    """One graph then serves all of them."""
    slices = _slices(rows, 2048)
    assert len(slices) == count
    assert len({len(each) for each in slices}) == 1


def exported(folder: Path, checkpoint: Path, target: Target, rows: int) -> Bundle:
    """A bundle with at most so many rows of its table in a slice."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fedspzo.export.lowering.graphs.SLICE_ROWS", rows)
        export_bundle(str(checkpoint), load_task("squad"), target, folder)
    return Bundle(folder)


def head(bundle: Bundle) -> GraphSpec:
    return bundle.manifest.shapes[0].graphs[bundle.manifest.stages[-1].graph]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> list[Bundle]:
    """A model whose scores are bent, with its table whole and in slices."""
    folder = tmp_path_factory.mktemp("slices")
    checkpoint = make_checkpoint(folder / "model", "gemma2", num_hidden_layers=1, layer_types=["full_attention"])
    target = Target(["torch"], [2], [48], answer_tokens=6)
    return [exported(folder / f"bundle-{rows}", checkpoint, target, rows) for rows in (1 << 20, ROWS)]


@pytest.fixture(scope="module")
def quantised(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The export compares each head with PyTorch's over the whole table."""
    folder = tmp_path_factory.mktemp("slices")
    checkpoint = make_checkpoint(folder / "model", "llama-3.2", **{**wide("llama-3.2"), "num_hidden_layers": 1})
    target = Target(batches=[2], lengths=[48], answer_tokens=6, adapters=LowRank(4), groups=[2], weights="int4")
    return exported(folder / "bundle", checkpoint, target, ROWS)


def questions(bundle: Bundle) -> DataStore:
    contexts = ("Rome is a city.", "one two three four five six seven", "the end")
    fields = ({"title": "Rome", "question": "what is Rome?", "context": context} for context in contexts)
    return tokenise(bundle, [Example(field, 0, ("a city",)) for field in fields])


@pytest.mark.slow
def test_losses_and_answers(pair: list[Bundle]) -> None:
    whole, slices = map(head, pair)
    assert not whole.slices
    assert len(slices.slices) > 2
    assert whole.flops == slices.flops
    assert pair[0].identity == pair[1].identity  # they train together
    forwards = [Forward(create_engine("torch"), Replica(bundle)) for bundle in pair]
    store = questions(pair[0])
    expected, found = (predict(forward, store)[0] for forward in forwards)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    expected_answers, answers = (generate(forward, store) for forward in forwards)
    assert answers == expected_answers
    assert forwards[0].flops == forwards[1].flops


@pytest.mark.slow
def test_gradients(pair: list[Bundle]) -> None:
    whole, slices = map(Backpropagation, pair)
    store, indices = questions(pair[0]), np.arange(2)
    expected, found = (each(each.start(), store, indices) for each in (whole, slices))
    assert found.loss == pytest.approx(expected.loss, rel=1e-5)
    for index, gradient in expected.tensors.items():
        np.testing.assert_allclose(found.tensors[index], gradient, atol=1e-5)


@pytest.mark.slow
def test_streamed(
    quantised: Bundle, make_plan: Callable[..., Plan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slices come from files of their own, and nothing changes; less than the table counts as memory."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    manifest, store = quantised.manifest, questions(quantised)
    plan = make_plan(batch=2, epsilon=1e-2, blocks=(Block(len(manifest.stages), 4, 1.0, 1.0),), sides=1)
    forwards = [Forward(create_engine("litert", within=way), Replica(quantised)) for way in (None, 10**9)]
    expected, found = (
        (measure(forward, store, plan, "a"), generate(forward, store), predict(forward, store)[0].tolist())
        for forward in forwards
    )
    assert found == expected
    assert len(list((tmp_path / "fedspzo" / FOLDER).glob("*.packed"))) > len(head(quantised).slices) > 2
    kept, streamed = (forecast_inference(manifest, "litert", way).frozen for way in (False, True))
    assert streamed < kept


@pytest.mark.slow
def test_slices_that_leave_out_rows_are_refused(pair: list[Bundle], tmp_path: Path) -> None:
    record = json.loads((pair[1].folder / MANIFEST).read_text())
    graph = record["shapes"][0]["graphs"][pair[1].manifest.stages[-1].graph]
    for wrong in (graph["slices"][1:], graph["slices"][:-1], [*graph["slices"][:1], *graph["slices"]]):
        altered = copy.deepcopy(record)
        altered["shapes"][0]["graphs"][graph["name"]]["slices"] = wrong
        with raises("bundle.manifest-damaged"):
            parse_manifest(tmp_path, json.dumps(altered))
