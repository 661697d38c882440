"""The peers that the benchmarks compare with: they do what their papers say, on our loss and our trained tensors."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import report
import torch
from exact_gradients import LayerByLayer
from models import make_checkpoint, wide
from peers import (
    Authors,
    Peer,
    adam,
    add_lora,
    backpropagation_step,
    decomfl_step,
    decomfl_step_keeping,
    load_peer,
    mezo_step,
)
from precision import UNIT, scalar_error
from setting import Figure, OurDevice, make_model, random_store
from static import StaticModel

from fedspzo.broker.simulation.gradient import Backpropagation
from fedspzo.device_runtime.data.sources import Example
from fedspzo.device_runtime.data.store import DataStore, tokenise
from fedspzo.device_runtime.directions.format import Direction
from fedspzo.device_runtime.engines.protocol import create_engine
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.replica.weights import Replica
from fedspzo.device_runtime.step.runner import Forward
from fedspzo.export.checkpoint import Checkpoint
from fedspzo.export.network.adapters import LowRank
from fedspzo.export.network.target import Target
from fedspzo.export.pipeline import export_bundle
from fedspzo.export.tasks import load_task

BATCH, LENGTH, SEED, STEP = 3, 16, 5, 1e-2
#: The peers' own steps are tested in float64, where losses of about 1 are off by less than 1e-12 after thousands of
#: operations (2⁻⁵³ each), so that what is left is what the step does.
ERROR = 1e-12 / STEP


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("peers")
    return make_model(
        folder, 2, vocab_size=600, hidden_size=32, num_attention_heads=4, intermediate_size=48, initializer_range=0.3
    )


@pytest.fixture(scope="module")
def bundle(checkpoint: Path) -> Bundle:
    target = Target(["torch"], [BATCH], [LENGTH], freeze=["labels"])  # which the peers' model has no copy of
    return export_bundle(str(checkpoint), load_task("sst2"), target, checkpoint.parent / "bundle")


@pytest.fixture(scope="module")
def store(bundle: Bundle) -> DataStore:
    return random_store(bundle, BATCH, LENGTH)


@pytest.fixture
def peer(checkpoint: Path, bundle: Bundle, store: DataStore) -> Peer:
    return load_peer(checkpoint, bundle, store)


@pytest.fixture
def exact(peer: Peer) -> Peer:
    """The same in float64."""
    peer.model.double()
    return peer


def weights(peer: Peer) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in peer.trained]


def projected(peer: Peer, directions: list[torch.Tensor], size: float) -> float:
    """(l₊ − l₋)/2ε on copies of the model, one set to each side."""
    losses = []
    for sign in (1, -1):
        moved = copy.deepcopy(peer)
        with torch.no_grad():
            for parameter, z in zip(moved.trained, directions, strict=True):
                parameter.add_(z, alpha=sign * size)
            losses.append(float(moved.loss()))
    return (losses[0] - losses[1]) / (2 * size)


def assert_moved(peer: Peer, before: list[torch.Tensor], gradients: list[torch.Tensor], rate: float) -> None:
    """Weights are where the update leads.

    Perturbing and restoring them in place leaves errors of float64. A sum of some directions, which are drawn in
    float32, may be kept in float32 and be off by 2⁻²⁴ of its largest terms at each addition.
    """
    for now, old, gradient in zip(weights(peer), before, gradients, strict=True):
        bound = 8 * UNIT * rate * float(gradient.abs().max())
        torch.testing.assert_close(now, old - rate * gradient.double(), rtol=0, atol=bound)


def test_all_compute_the_same_loss(checkpoint: Path, bundle: Bundle, store: DataStore, peer: Peer) -> None:
    ours = OurDevice(bundle, "torch", store)
    fed = ours.forward.batch(store, np.arange(BATCH))
    static = StaticModel(checkpoint, bundle, "torch", 2, fed)
    assert ours.loss() == pytest.approx(float(peer.loss().detach()), rel=1e-4)
    assert static.forward() == pytest.approx(ours.loss(), rel=1e-4)


def test_peers_train_what_we_train(bundle: Bundle, store: DataStore, peer: Peer) -> None:
    ours = OurDevice(bundle, "torch", store)
    assert sum(p.numel() for p in peer.trained) == sum(w.size for w in ours.replica.trainable.values())


def test_our_scalar_is_the_peers_on_our_direction(bundle: Bundle, store: DataStore, exact: Peer) -> None:
    ours = OurDevice(bundle, "torch", store)
    plan = replace(ours.whole(), epsilon=STEP)
    direction = Direction(plan.seed("", 0, (0,)), 1.0)
    parameters = dict(exact.model.named_parameters())
    found = {}
    for index, start in ours.replica.trainable.items():
        spec, plus = bundle.manifest.tensors[index], np.empty_like(start)
        ours.replica.kernel("rademacher").shift({index: start}, [direction], {index: plus})
        z = np.sign(plus - start)
        found[id(parameters[spec.source])] = torch.from_numpy(z[0].T.copy() if spec.transposed else z)
    directions = [found[id(parameter)] for parameter in exact.trained]
    expected, error = projected(exact, directions, STEP), scalar_error(float(exact.loss().detach()), STEP)
    assert abs(expected) > 100 * error
    assert ours.measure(plan)[0] == pytest.approx(expected, abs=error)


def test_mezo(exact: Peer) -> None:
    before, rate = weights(exact), 0.1
    torch.manual_seed(SEED)
    z = [torch.normal(mean=0.0, std=1.0, size=w.shape) for w in before]
    expected = projected(exact, z, STEP)
    found = mezo_step(exact.loss, exact.trained, SEED, STEP, rate)
    assert abs(expected) > 100 * ERROR
    assert found == pytest.approx(expected, abs=ERROR)
    assert_moved(exact, before, [found * direction for direction in z], rate)


@pytest.mark.parametrize("keeping", [False, True])
def test_decomfl(exact: Peer, keeping: bool) -> None:
    before, count, rate = weights(exact), 3, 0.1
    directions = []
    for perturbation in range(count):
        generator = torch.Generator().manual_seed(SEED * count + perturbation)
        if keeping:
            sizes = [w.numel() for w in before]
            parts = torch.randn(sum(sizes), generator=generator).split(sizes)
            directions.append([part.view(w.shape) for part, w in zip(parts, before, strict=True)])
        else:
            directions.append([torch.randn(w.shape, generator=generator) for w in before])
    expected = [projected(exact, z, STEP) for z in directions]
    step = decomfl_step_keeping if keeping else decomfl_step
    found = step(exact.loss, exact.trained, count, SEED, STEP, rate)
    assert found == pytest.approx(expected, abs=ERROR)
    means = [
        sum(scalar * z[tensor] for scalar, z in zip(found, directions, strict=True)) / count
        for tensor in range(len(before))
    ]
    assert_moved(exact, before, means, rate)


@pytest.mark.parametrize("lora", [False, True])
def test_backpropagation_lowers_the_loss(peer: Peer, lora: bool) -> None:
    frozen = peer.model.roberta.embeddings.word_embeddings.weight.clone()
    if lora:
        add_lora(peer.model)
        assert sum(p.numel() for p in peer.trained) == 2 * 2 * (8 * 32 + 32 * 8)  # layers · (query, value) · (A, B)
    start, optimizer = float(peer.loss().detach()), adam(peer.trained)
    for group in optimizer.param_groups:
        group["lr"] = 1e-3
    for _ in range(5):
        backpropagation_step(peer.loss, optimizer)
    assert float(peer.loss().detach()) < start
    assert torch.equal(peer.model.roberta.embeddings.word_embeddings.weight, frozen)


def test_figures_keep_to_their_bars() -> None:
    assert Figure("a ratio", 2.0).passed
    assert Figure("a ratio", 1.08, 1.08).passed
    assert not Figure("a ratio", 1.1, 1.08).passed
    assert not Figure("a speed-up", 2.0, 2.2, at_least=True).passed


def test_the_documented_figures_are_those_of_the_results() -> None:
    assert report.TABLE.read_text(encoding="utf-8") == report.table(report.load_results())


def test_each_processor_has_a_column_and_keeps_it_empty_until_it_is_measured() -> None:
    results = report.load_results()
    assert all(any(kind in name for name in results) for kind in report.PROCESSORS)
    one = next(one for one in results.values() if one)
    rows = report.table({"one": one, "another": one, "none": {}}).splitlines()
    for number, row in enumerate(rows):
        if row.startswith("| ---"):
            assert rows[number - 1].endswith("| one | another | none |")
            cells = [cell.strip() for cell in rows[number + 1].split("|")[-5:-1]]
            assert cells[1] == cells[2] != cells[3] == ""


def test_a_folder_without_the_authors_program_is_refused(peer: Peer, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="does not hold DeComFL's program .*; clone https://github.com/"):
        Authors(tmp_path, peer, 2, recommended=True)


@pytest.mark.slow
def test_a_layer_at_a_time_gives_the_same_gradient(tmp_path: Path) -> None:
    """As backpropagation through the whole bundle does, with the same codes for its base."""
    model = make_checkpoint(tmp_path / "model", "llama-3.2", **wide("llama-3.2"))
    target = Target(["torch"], [BATCH], [LENGTH], adapters=LowRank(4), weights="int4")
    bundle = export_bundle(str(model), load_task("sst2"), target, tmp_path / "bundle")
    store = tokenise(bundle, [Example({"sentence": "it was a good film"[n:]}, n % 2) for n in range(BATCH)])
    ours = LayerByLayer(bundle, Checkpoint(str(model)), 1e-3)
    draw = torch.Generator().manual_seed(SEED)
    for leaf in ours.leaves.values():
        leaf.data += 0.1 * torch.randn(leaf.shape, generator=draw)
    batch = Forward(create_engine("torch"), Replica(bundle)).batch(store, np.arange(BATCH))
    loss = ours.gradient(batch.feeds, batch.count)
    values = {index: leaf.detach().numpy() for index, leaf in ours.leaves.items()}
    whole = Backpropagation(bundle)(values, store, np.arange(BATCH))
    assert loss == pytest.approx(whole.loss, rel=1e-5)
    for index, leaf in ours.leaves.items():
        assert leaf.grad is not None
        np.testing.assert_allclose(leaf.grad.numpy(), whole.tensors[index], rtol=1e-3, atol=1e-6)
    losses = [ours.step(batch.feeds, batch.count) for _ in range(20)]
    assert losses[-1] < losses[0]
