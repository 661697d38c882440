"""One suite over all engines: the same loss, scalars and digests, and refusals that say what is wrong."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from refusals import raises
from transformers import AutoModel, AutoTokenizer

from fedspzo.device_runtime.data.store import DataStore
from fedspzo.device_runtime.engines import litert
from fedspzo.device_runtime.engines.packed import find_panels
from fedspzo.device_runtime.engines.protocol import SUFFIXES, Linear, create_engine
from fedspzo.device_runtime.model.arrays import aligned_empty
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.model.task import Task
from fedspzo.device_runtime.protocol.entry import Contribution, Entry
from fedspzo.device_runtime.protocol.plan import Plan
from fedspzo.device_runtime.replica.weights import Replica
from fedspzo.device_runtime.step.estimator import measure
from fedspzo.device_runtime.step.graphs import load_graph
from fedspzo.device_runtime.step.runner import Forward
from fedspzo.device_runtime.step.scores import predict

ENGINES = tuple(SUFFIXES)


@pytest.mark.parametrize("engine", ENGINES)
def test_loss_equals_transformers(engine: str, bundle: Bundle, checkpoint: Path, task: Task, store: DataStore) -> None:
    """Against transformers' own model and tokenizer, unmodified, and torch's own loss."""
    model, tokenizer = AutoModel.from_pretrained(checkpoint).eval(), AutoTokenizer.from_pretrained(checkpoint)

    def embed(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state
        return torch.nn.functional.normalize((hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True))

    with torch.inference_mode():
        described = tokenizer([label.text for label in task.labels], return_tensors="pt", padding=True)
        labels = embed(described["input_ids"], described["attention_mask"])
        mask = torch.from_numpy((np.arange(store.ids.shape[1]) < store.lengths[:, None]).astype(np.int64))
        logits = 20 * embed(torch.from_numpy(store.ids).long(), mask) @ labels.T
        loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(store.labels).long())
    losses, found = predict(Forward(create_engine(engine), Replica(bundle)), store)
    assert losses.mean() == pytest.approx(float(loss), abs=1e-4)
    np.testing.assert_allclose(found, logits.numpy(), atol=1e-3)


def test_engines_agree(bundle: Bundle, store: DataStore, make_plan: Callable[..., Plan]) -> None:
    """Losses and scalars within the engines' arithmetic; digests exactly, once all apply the same entries."""
    plan = make_plan(steps=2)
    measured = {}
    digests = set()
    for engine in ENGINES:
        forward = Forward(create_engine(engine), Replica(bundle))
        measured[engine] = measure(forward, store, plan, "a")
        entry = Entry(plan, (Contribution("", 1.0, measured[ENGINES[0]].scalars),))
        forward.weights.apply(entry)
        digests.add(forward.weights.digest())
    assert len(digests) == 1
    reference = measured["torch"]
    scale = float(np.abs(reference.scalars).max())
    for engine in ENGINES:
        assert measured[engine].loss == pytest.approx(reference.loss, abs=1e-4)
        np.testing.assert_allclose(measured[engine].scalars, reference.scalars, rtol=0.01, atol=0.01 * scale)


@pytest.mark.parametrize("engine", ENGINES)
def test_weights_changed_in_place_take_effect(engine: str, bundle: Bundle, store: DataStore) -> None:
    forward = Forward(create_engine(engine), Replica(bundle))
    before = predict(forward, store)[0].mean()
    for weights in forward.weights.trainable.values():
        weights[...] *= 1.1
    assert abs(predict(forward, store)[0].mean() - before) > 1e-3


@pytest.mark.parametrize("engine", ENGINES)
def test_a_damaged_graph_is_one_sentence(engine: str, tmp_path: Path) -> None:
    path = tmp_path / f"graph{SUFFIXES[engine]}"
    path.write_bytes(b"not a graph at all" * 10)
    with raises("engine.load-failed", path, "export the bundle again"):
        create_engine(engine).load(path)


@pytest.mark.parametrize("engine", ["litert", "executorch"])
def test_arrays_of_another_shape_are_refused(engine: str, bundle: Bundle) -> None:
    graph = load_graph(bundle, create_engine(engine), bundle.manifest.shapes[0].graphs["embedding"])
    with raises("engine.array-count", "5 arrays, not 1"):
        graph.run([aligned_empty((3, 3))], [])
    with raises("engine.array-shape", "(3, 3)"):
        graph.run([aligned_empty((3, 3))] * 5, [aligned_empty((3, 3))])


def test_unknown_and_missing_engines(bundle_folder: Path, tmp_path: Path) -> None:
    with raises("engine.unknown", "'onnx'", "choose one of litert, executorch, torch, tflite"):
        create_engine("onnx")
    for threads in (0, -1, 10**9):
        with raises("engine.threads", str(threads), "--threads"):
            create_engine("torch", threads)
    import json
    import shutil

    folder = tmp_path / "bundle"
    shutil.copytree(bundle_folder, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    for graph in manifest["shapes"][0]["graphs"].values():
        name = graph["files"].pop("torch")
        del manifest["files"][name], manifest["sizes"][name]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with raises("bundle.no-graphs", "litert, executorch", "--engine torch"):
        Forward(create_engine("torch"), Replica(Bundle(folder)))


def pack(linear: Linear, panel: int) -> np.ndarray:
    """As XNNPACK does: in panels of some outputs, their biases first, each map at a multiple of 128 bytes."""
    outputs, inputs = linear.weight.shape
    bias = np.zeros(outputs, np.float32) if linear.bias is None else linear.bias
    packed = np.concatenate([bias[:, None], linear.weight], axis=1).reshape(outputs // panel, panel, 1 + inputs)
    flat = packed.transpose(0, 2, 1).reshape(-1)
    return np.concatenate([flat, np.zeros(-flat.size % 32, np.float32)])


def maps(*shapes: tuple[int, int]) -> list[Linear]:
    random = np.random.default_rng(0)
    weights = [random.standard_normal(shape, np.float32) for shape in shapes]
    return [Linear(w, random.standard_normal(len(w), np.float32) if at % 2 else None) for at, w in enumerate(weights)]


@pytest.mark.parametrize("panel", [8, 16, 32, 64])
def test_panels_are_found_in_any_order(panel: int) -> None:
    linear = maps((64, 33), (128, 5), (1088, 64))
    packed = np.concatenate([np.zeros(32, np.float32), *(pack(linear[at], panel) for at in (2, 0, 1))])
    found = find_panels(packed, linear)
    assert found is not None
    for panels, constants in zip(found, linear, strict=True):
        np.testing.assert_array_equal(panels.weight.reshape(constants.weight.shape[::-1]), constants.weight.T)
        if constants.bias is not None:
            np.testing.assert_array_equal(panels.bias.reshape(-1), constants.bias)
    found[1].weight[0, 0, 0] = 99
    assert 99 in packed


def test_weights_that_are_not_packed_as_expected_are_left_alone() -> None:
    linear = maps((64, 32), (64, 32))
    header = np.zeros(32, np.float32)
    other = linear[0].weight.reshape(2, 32, 16, 2).transpose(0, 2, 1, 3).reshape(-1)  # two inputs together
    assert find_panels(np.concatenate([header, np.zeros(64, np.float32), other]), linear[:1]) is None
    twice = np.concatenate([header, pack(linear[0], 32), pack(linear[0], 32)])
    assert find_panels(twice, [linear[0], linear[0]]) is None  # which is which?
    assert find_panels(twice[:-64], linear) is None
    assert find_panels(np.empty(0, np.float32), linear) is None


def test_what_an_engine_says_while_it_loads(capfd: pytest.CaptureFixture[str]) -> None:
    """TensorFlow Lite's notes are left out; errors are not, whoever writes them."""
    with litert._without_notes():
        os.write(2, b"INFO: Created TensorFlow Lite XNNPACK delegate for CPU.\nERROR: no memory\n")
        os.write(2, b"cut off")
    os.write(2, b", and what follows\n")
    assert capfd.readouterr().err == "ERROR: no memory\ncut off, and what follows\n"
