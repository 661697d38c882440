"""Federated FedSPZO teaches a small decoder what backpropagation on its language had not: with forward passes alone."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
from language import opinion, train_decoder

from fedspzo.demo.processes import federation
from fedspzo.device_runtime.data.sources import Example
from fedspzo.device_runtime.data.store import load_data, tokenise
from fedspzo.device_runtime.engines.protocol import create_engine
from fedspzo.device_runtime.protocol.entry import Contribution, Entry
from fedspzo.device_runtime.protocol.plan import Block, Plan
from fedspzo.device_runtime.replica.weights import Replica
from fedspzo.device_runtime.step.estimator import measure
from fedspzo.device_runtime.step.runner import Forward
from fedspzo.device_runtime.step.scores import evaluate
from fedspzo.export.network.target import Target
from fedspzo.export.pipeline import export_bundle
from fedspzo.export.tasks import load_task
from fedspzo.run_folder import open_run

ROUNDS = 80
JOB = ["--rounds", ROUNDS, "--devices", 3, "--cohort", 3, "--split", 1, "--fanouts", "2,4", "--scales", "0.5,1",
       "--learning-rates", "4e-3,1.6e-2", "--evaluate-every", 40]  # fmt: skip


def test_a_decoder_learns_a_task(tmp_path: Path) -> None:
    """It knows verdicts on plain sentences; here the opinion often comes before a "but", which it never saw."""
    checkpoint, run = tmp_path / "decoder", tmp_path / "run"
    run.mkdir()
    train_decoder(checkpoint)
    bundle = export_bundle(str(checkpoint), load_task("sst2"), Target(["litert"], [8], [20]), run / "bundle")
    draw = random.Random(5)

    def write(name: str, count: int) -> Path:
        path = tmp_path / f"{name}.jsonl"
        records = ({"sentence": text, "label": int(good)} for text, good in (opinion(draw, 0.7) for _ in range(count)))
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        return path

    devices = {f"phone-{i}": write(f"phone-{i}", 60) for i in range(3)}
    held_out = write("held-out", 200)
    with federation(run / "bundle", devices, held_out, run, "litert", list(map(str, JOB))) as events:
        progress = list(events)
    store = load_data(held_out, bundle)
    before = evaluate(Forward(create_engine("litert"), Replica(bundle)), store)
    after = evaluate(Forward(create_engine("litert"), open_run(run)), store)
    print(before, after)
    assert 0.5 < before.scores["accuracy"] < 0.8
    assert after.scores["accuracy"] > 0.9
    assert after.loss < before.loss / 3
    digests = {device["digest"] for device in progress[-1]["devices"].values()}
    assert digests == {progress[-1]["server_digest"]} == {open_run(run).digest().hex()}


@pytest.mark.parametrize(
    "sixteen", [pytest.param("bfloat16", marks=pytest.mark.slow), pytest.param("float16", marks=pytest.mark.matrix)]
)
def test_sixteen_bits_learn_as_well(sixteen: str, tmp_path: Path) -> None:
    """The same rounds over weights of 16 bits: the training loss is within 3 % of float32's."""
    train_decoder(tmp_path / "decoder")
    losses = {}
    for weights in ("float32", sixteen):
        target = Target(["litert"], [8], [20], weights=weights)
        bundle = export_bundle(str(tmp_path / "decoder"), load_task("sst2"), target, tmp_path / weights)
        draw = random.Random(5)
        stores = [
            tokenise(bundle, [Example({"sentence": text}, int(good)) for text, good in opinions])
            for opinions in ([opinion(draw, 0.7) for _ in range(60)] for _ in range(3))
        ]
        forward = Forward(create_engine("litert"), Replica(bundle))
        blocks = (Block(1, 2, 0.5, 4e-3), Block(len(bundle.manifest.stages), 4, 1.0, 1.6e-2))
        for round in range(1, ROUNDS + 1):
            plan = Plan(round, 7 * round + 1, True, "rademacher", 1, 8, 1e-3, blocks, 60.0, False)
            scalars = np.mean([measure(forward, store, plan, str(i)).scalars for i, store in enumerate(stores)], axis=0)
            forward.weights.apply(Entry(plan, (Contribution("", 1.0, tuple(map(float, np.float32(scalars)))),)))
        losses[weights] = np.mean([evaluate(forward, store).loss for store in stores])
    print(losses)
    assert losses["float32"] < 0.1
    assert losses[sixteen] <= 1.03 * losses["float32"]
