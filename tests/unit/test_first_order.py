"""First-order methods in simulation: their gradients, algorithms and counts, and the command from start to end."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from precision import SCORES, loss_error
from refusals import raises, refused
from tiny import BATCH, LENGTH, TASK

from fedspzo.broker.simulation.first_order import ALGORITHMS, Algorithm, Update, device_update, payload, server_update
from fedspzo.broker.simulation.gradient import Backpropagation, Gradient
from fedspzo.cli import main
from fedspzo.device_runtime.data.store import DataStore
from fedspzo.device_runtime.engines.protocol import create_engine
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.model.manifest import MANIFEST
from fedspzo.device_runtime.protocol.plan import Block, Plan
from fedspzo.device_runtime.replica.weights import Replica
from fedspzo.device_runtime.step.runner import Forward
from fedspzo.device_runtime.step.scores import predict
from fedspzo.export.network.adapters import LowRank
from fedspzo.export.network.target import Target
from fedspzo.export.pipeline import export_bundle

RANK = 4
DRAWN = np.array([3, 0, 11])


@pytest.fixture(scope="session")
def lora_folder(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lora") / "bundle"
    target = Target(["litert", "torch"], [BATCH], [LENGTH], adapters=LowRank(RANK, 8.0))
    export_bundle(str(checkpoint), {TASK.form: TASK}, target, folder)
    return folder


@pytest.fixture
def plan(make_plan: Callable[..., Plan]) -> Plan:
    return make_plan(blocks=(Block(5, 1, 1.0, 0.1),), steps=3)


@pytest.mark.parametrize("name", ["bundle_folder", pytest.param("lora_folder", marks=pytest.mark.slow)])
def test_gradient_is_that_of_the_devices_loss(name: str, request: pytest.FixtureRequest, store: DataStore) -> None:
    """Along each tensor's own gradient, LiteRT's losses differ by its norm."""
    bundle = Bundle(request.getfixturevalue(name))
    backpropagation = Backpropagation(bundle)
    random = np.random.default_rng(4)
    weights = {
        index: array + 0.05 * random.standard_normal(array.shape, np.float32)  # adapters start at a stationary point
        for index, array in backpropagation.start().items()
    }
    found = backpropagation(weights, store, DRAWN)
    replica = Replica(bundle)
    forward = Forward(create_engine("litert"), replica)
    drawn = DataStore(store.ids[DRAWN], store.lengths[DRAWN], store.starts[DRAWN], store.labels[DRAWN])

    def loss(moved: Mapping[int, np.ndarray]) -> float:
        replica.adopt(moved, 1)
        return float(predict(forward, drawn)[0].mean())

    assert found.loss == pytest.approx(loss(weights), rel=0, abs=loss_error(SCORES))
    assert found.examples == len(DRAWN)
    norms, slopes = [], []
    for index, gradient in found.tensors.items():
        assert gradient.shape == weights[index].shape
        norm = float(np.linalg.norm(gradient))
        step = gradient * np.float32(5e-3 / max(norm, 1e-9))
        above, below = (loss({**weights, index: weights[index] + sign * step}) for sign in (1, -1))
        norms.append(norm)
        slopes.append((above - below) / 1e-2)
    np.testing.assert_allclose(slopes, norms, rtol=0.02, atol=2e-3)
    assert max(norms) > 0.1


@pytest.mark.slow
def test_counted_operations(bundle: Bundle, lora_folder: Path, store: DataStore) -> None:
    """Backwards, a product costs as much as forwards for each of its factors that has something trained before it."""

    def counted(found: Bundle) -> tuple[int, int]:
        shape = found.manifest.shapes[0]
        forward = sum(shape.graphs[stage.graph].flops for stage in found.manifest.stages)
        backpropagation = Backpropagation(found)
        return forward, backpropagation(backpropagation.start(), store, DRAWN).flops - forward

    rows, width, inner, layers = BATCH * LENGTH, 32, 64, 3
    head = 2 * BATCH * width * len(TASK.labels)
    attention = 2 * 2 * rows * LENGTH * width * layers
    square, wide = 2 * rows * width * width, 2 * rows * width * inner
    forward, backward = counted(bundle)
    assert forward == (4 * square + 2 * wide) * layers + attention + head
    trained_before = any(bundle.manifest.tensors[i].trainable for i in bundle.manifest.stages[0].tensors)
    assert backward == 2 * forward - (0 if trained_before else 3 * square)

    lora = Bundle(lora_folder)
    names = [spec.name for spec in lora.manifest.tensors if spec.trainable and ".lora_A" in spec.name]
    assert len(names) == 6 * layers, "all maps have adapters"
    narrow, broad = 2 * rows * width * RANK, 2 * rows * inner * RANK
    adapters = (4 * 2 * narrow + 2 * (narrow + broad)) * layers
    lora_forward, lora_backward = counted(lora)
    assert lora_forward == forward + adapters
    first = 3 * (square + narrow)  # inputs of the first layer's queries, keys and values, which nothing trained made
    assert lora_backward == (4 * square + 2 * wide) * layers + 2 * (attention + adapters + head) - first


@pytest.mark.slow
def test_adapters_and_labels_alone_are_trained(lora_folder: Path) -> None:
    bundle = Bundle(lora_folder)
    weights = Backpropagation(bundle).start()
    names = {bundle.manifest.tensors[index].name for index in weights}
    assert all(".lora_" in name for name in names - {"labels"})
    assert payload(weights) == 4 * (RANK * (4 * 64 + 2 * (32 + 64)) * 3 + 32 * len(TASK.labels))


def bowl(centre: float, examples: int) -> Callable[[Mapping[int, np.ndarray], int], Gradient]:
    """Gradient of |w − centre|²/2."""

    def gradient(weights: Mapping[int, np.ndarray], step: int) -> Gradient:
        return Gradient({0: weights[0] - np.float32(centre)}, float(step), examples, 10)

    return gradient


def test_fedavg_averages_by_examples_what_local_steps_reach(plan: Plan) -> None:
    algorithm, start = ALGORITHMS["fedavg"], {0: np.array([1.0, -2.0], np.float32)}
    updates = {
        "a": device_update(algorithm, start, plan, bowl(0.5, 3)),
        "b": device_update(algorithm, start, plan, bowl(-1.0, 1)),
    }
    assert updates["a"].examples == 9
    assert updates["a"].loss == 1.0
    assert updates["a"].flops == 30
    state = server_update(algorithm, algorithm.start(start), plan, updates)
    reached = [centre + 0.9**3 * (start[0] - centre) for centre in (0.5, -1.0)]
    np.testing.assert_allclose(state.weights[0], 0.75 * reached[0] + 0.25 * reached[1], rtol=1e-6)
    assert start[0].tolist() == [1.0, -2.0], "the state before is as it was"


def test_one_local_step_of_fedavg_is_fedsgd(bundle: Bundle, store: DataStore, make_plan: Callable[..., Plan]) -> None:
    plan = make_plan(blocks=(Block(5, 1, 1.0, 0.03),))
    backpropagation = Backpropagation(bundle)
    start, states = backpropagation.start(), []
    for algorithm in (ALGORITHMS["fedavg"], ALGORITHMS["fedsgd"]):
        updates = {
            name: device_update(algorithm, start, plan, lambda at, step, drawn=drawn: backpropagation(at, store, drawn))
            for name, drawn in (("a", DRAWN), ("b", np.array([7])))
        }
        states.append(server_update(algorithm, algorithm.start(start), plan, updates))
    assert any(np.abs(states[0].weights[index] - start[index]).max() > 1e-3 for index in start)
    for index in start:
        np.testing.assert_allclose(states[0].weights[index], states[1].weights[index], atol=1e-6)


def test_fedadam_is_adam_on_the_mean_gradient(plan: Plan) -> None:
    algorithm, random = Algorithm(adam=True), np.random.default_rng(0)
    start = random.standard_normal((3, 2), np.float32)
    parameter = torch.nn.Parameter(torch.tensor(start))
    adam, state = torch.optim.Adam([parameter], lr=0.1), algorithm.start({0: start})
    for _ in range(5):
        gradients = random.standard_normal((2, 3, 2), np.float32)
        updates = {
            name: Update({0: gradient}, 0.0, examples, 0)
            for name, gradient, examples in zip("ab", gradients, (3, 1), strict=True)
        }
        state = server_update(algorithm, state, plan, updates)
        parameter.grad = torch.tensor(0.75 * gradients[0] + 0.25 * gradients[1])
        adam.step()
    np.testing.assert_allclose(state.weights[0], parameter.detach().numpy(), rtol=1e-5)


Command = Callable[..., list[dict[str, object]]]


@pytest.fixture
def command(
    bundle_folder: Path, tmp_path: Path, write_examples: Callable[[Path, int], Path],
    capsys: pytest.CaptureFixture[str],
) -> Command:  # fmt: skip
    """Simulate in a state folder of that name; gives what was printed, or the error as its only line."""
    data = write_examples(tmp_path / "data.jsonl", 60)

    def simulate(state: str, *options: object, bundle: Path = bundle_folder) -> list[dict[str, object]]:
        given = ["simulate", bundle, "--data", data, "--state", tmp_path / state, "--json", "--devices", 8,
                 "--rounds", 6, *options]  # fmt: skip
        status = main(list(map(str, given)))
        out, err = capsys.readouterr()
        return [{"error": err}] if status else [json.loads(line) for line in out.splitlines()]

    return simulate


def test_rounds_are_those_of_the_zeroth_order_simulation(command: Command) -> None:
    """The same devices see the same batches: the losses at θ₀ agree, and who answers when."""
    behaviour = ["--dropout", 0.3, "--available", 0.6, "--step-seconds", "lognormal:20,1", "--over-selection", 1.5,
                 "--quorum", 1]  # fmt: skip
    found = [
        command(name, "--method", name, "--learning-rates", rates, *behaviour)
        for name, rates in (("fedsgd", "0"), ("fedspzo-one-sided", "0,0"))
    ]
    rounds = [[line for line in lines if "loss" in line] for lines in found]
    assert len(rounds[0]) == 6
    assert len({line["virtual_seconds"] for line in rounds[0]}) > 1
    for first, zeroth in zip(*rounds, strict=True):
        assert first["loss"] == pytest.approx(zeroth["loss"], rel=0, abs=loss_error(SCORES))
        assert (first["results"], first["virtual_seconds"]) == (zeroth["results"], zeroth["virtual_seconds"])
    assert found[0][-1]["counts"] == found[1][-1]["counts"]
    assert found[0][-1]["server_digest"] == found[1][-1]["server_digest"], "θ₀"


@pytest.mark.parametrize("method", list(ALGORITHMS))
def test_a_run_is_a_model_that_other_commands_read(
    command: Command, method: str, bundle_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, data = tmp_path / "run", str(tmp_path / "data.jsonl")
    shutil.copytree(bundle_folder, run / "bundle")
    options = ["--method", method, "--learning-rates", 0.01, "--held-out", data, "--evaluate-every", 3]
    lines = command("run/server", *options)
    held_out = [line for line in lines if "held_out_loss" in line]
    assert [line["round"] for line in held_out] == [0, 3, 6]
    assert held_out[-1]["held_out_loss"] < held_out[0]["held_out_loss"]  # type: ignore[operator]
    size = payload(Backpropagation(Bundle(bundle_folder)).start())
    closed = next(line for line in lines if "loss" in line)
    assert (closed["device_bytes_up"], closed["device_bytes_down"]) == (size, size)
    assert main(["evaluate", str(run), "--data", data, "--json"]) == 0
    evaluated = json.loads(capsys.readouterr().out)
    assert evaluated["after 6 rounds"]["loss"] == pytest.approx(held_out[-1]["held_out_loss"])
    assert main(["predict", str(run), "wake me"]) == 0
    assert main(["materialize", str(run), "--out", str(tmp_path / "checkpoint")]) == 0
    assert "checkpoint of round 6" in capsys.readouterr().out
    again = command("again", *options)
    assert again[-1]["server_digest"] == lines[-1]["server_digest"]
    assert command("other", *options, "--seed", 1)[-1]["server_digest"] != lines[-1]["server_digest"]


@pytest.mark.slow
def test_a_run_with_adapters(command: Command, lora_folder: Path, tmp_path: Path) -> None:
    lines = command("state", "--method", "fedadam", "--learning-rates", 0.03, bundle=lora_folder)
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < losses[0]  # type: ignore[operator]
    snapshot = Replica(Bundle(lora_folder), tmp_path / "state" / "snapshots" / "00000006.safetensors")
    assert snapshot.round == 6
    assert snapshot.digest().hex() == lines[-1]["server_digest"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["fedsgd", "--steps", 2], "fedsgd takes one gradient of each device; for local --steps use --method fedavg"),
        (["fedavg", "--fanouts", 4], "leave out --split, --fanouts and --scales [job.directions-of-first-order]"),
        (["fedavg", "--workers", 2], "leave out workers and ray [simulation.workers-of-first-order]"),
        (["fedavg", "--cohort", 4, "--mode", "secure"], "leave out --mode and --privacy [job.secrecy-of-first-order]"),
        (["fedsgd", "--privacy", "device"], "leave out --mode and --privacy [job.secrecy-of-first-order]"),
        (["fedsgd", "--learning-rates", 1e30], "learning_rates lies between -1e+09 and 1e+09"),
        (["fedavg", "--learning-rates", 1e8], "fedavg diverged in round"),
    ],
)
def test_options_that_do_not_go_with_a_method(command: Command, options: list[object], sentence: str) -> None:
    assert sentence in str(command("state", "--method", *options))


def test_runs_are_not_mixed(command: Command) -> None:
    assert command("first", "--method", "fedsgd")[-1]["finished"]
    assert "rounds of another run, which fedavg cannot continue" in str(command("first", "--method", "fedavg"))
    assert "is not of this journal, but of a first-order method" in str(command("first"))
    assert command("zeroth", "--fanouts", "1,1")[-1]["finished"]
    assert "rounds of another run, which fedsgd cannot continue" in str(command("zeroth", "--method", "fedsgd"))


def test_a_bundle_without_graphs_for_pytorch(command: Command, bundle_folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(bundle_folder, tmp_path / "bundle")
    record = json.loads((copy / MANIFEST).read_text())
    for graph in record["shapes"][0]["graphs"].values():
        del graph["files"]["torch"]
    (copy / MANIFEST).write_text(json.dumps(record))
    with raises("bundle.no-torch-graphs", "litert", "--engine litert,torch"):
        Backpropagation(Bundle(copy))
    assert "export it with --engine litert,torch" in str(command("state", "--method", "fedavg", bundle=copy))


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (["server", "bundle", "--state", "state", "--method", "fedavg"], "fedavg needs backpropagation, which devices"),
        (["simulate", "bundle", "--data", "x", "--state", "state", "--method", "fedsgd:4"], "leave out ':4'"),
    ],
)
def test_methods_that_are_refused(given: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert sentence in refused(capsys, *given)
