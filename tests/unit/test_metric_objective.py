"""A decoder learns to fill slots from a metric of what it generates: no loss, no gradient, and answers unseen by it."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from language import ORDER_WORDS, order, text_of_orders, train_decoder

import fedspzo
from fedspzo.device_runtime.data.store import load_data
from fedspzo.device_runtime.engines.protocol import create_engine
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.protocol.objective import Objective
from fedspzo.device_runtime.protocol.plan import Block, Plan
from fedspzo.device_runtime.replica.weights import Replica
from fedspzo.device_runtime.step import answers
from fedspzo.device_runtime.step.estimator import measure_examples
from fedspzo.device_runtime.step.runner import Forward
from fedspzo.device_runtime.step.sampling import Sampling
from fedspzo.export.network.target import Target
from fedspzo.export.pipeline import export_bundle
from fedspzo.export.tasks import load_task

TASK = """
target = "slots"
[generation]
template = "{text} It is"
answer = " {slots}</s>"
answer_tokens = 4
metrics = ["exact_match"]
"""
JOB = fedspzo.Job(
    rounds=40, objective="metric:exact_match", fanouts=(0, 16), scales=(1.0, 80.0), learning_rates=(0.0, 0.02), sides=1
)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A decoder that often says the colour first, where a request begins with "get"."""
    folder = tmp_path_factory.mktemp("orders")
    train_decoder(folder / "model", seed=1, words=ORDER_WORDS, sentence=text_of_orders)
    (folder / "orders.toml").write_text(TASK)
    target = Target(["litert"], [16], [20])
    return export_bundle(str(folder / "model"), load_task(str(folder / "orders.toml")), target, folder / "bundle")


def write_orders(path: Path, count: int, seed: int) -> Path:
    draw = random.Random(seed)
    records = ({"text": text, "slots": slots} for text, slots in (order(draw) for _ in range(count)))
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.mark.slow
def test_slots_are_learnt_from_a_metric_alone(bundle: Bundle, tmp_path: Path) -> None:
    data, held_out = write_orders(tmp_path / "train.jsonl", 240, 1), write_orders(tmp_path / "held-out.jsonl", 200, 2)
    before = fedspzo.evaluate(bundle, held_out).scores["exact_match"]
    run = fedspzo.simulate(bundle, data, JOB, devices=4, held_out=held_out)
    assert run.evaluation is not None
    after = run.evaluation.scores["exact_match"]
    print(f"exact match {before:.1%} -> {after:.1%}")
    assert before < 0.6
    assert after >= before + 0.1


@pytest.mark.slow
def test_common_noise_takes_variance_away(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of drawn answers' scalars, over draws of the noise: at least 3 times lower. They need a smaller ε than others."""
    store = load_data(write_orders(tmp_path / "few.jsonl", 16, 3), bundle)
    forward, stages = Forward(create_engine("litert"), Replica(bundle)), len(bundle.manifest.stages)
    blocks = (Block(stages - 2, 0, 1.0, 0.0), Block(stages, 16, 50.0, 0.1))
    objective = Objective(JOB.objective, 1.0, 1.0, temperature=1.0)
    noise, drawn = [0], answers.Sampling

    def measured(sampling: Callable[..., Sampling]) -> np.ndarray:
        monkeypatch.setattr(answers, "Sampling", sampling)
        plan = Plan(1, 7, True, "rademacher", 1, 16, JOB.epsilon, blocks, 60.0, False, sides=1, objective=(objective,))
        rows = []
        for _ in range(6):
            noise[0] += 1
            rows.append(measure_examples(forward, store, plan)[0].mean(axis=0))
        return np.array(rows)

    common = measured(lambda temperature, seed: drawn(temperature, seed=noise[0]))
    monkeypatch.setattr(answers, "generate", _with_own_noise(answers.generate))
    independent = measured(drawn)
    ratio = independent.var(axis=0, ddof=1).mean() / common.var(axis=0, ddof=1).mean()
    print(f"variance {ratio:.1f} times lower; {np.mean(common != 0):.0%} of the scalars are not zero")
    assert ratio >= 3


def _with_own_noise(generate: Callable[..., list[str]]) -> Callable[..., list[str]]:
    """Every query draws with noise of its own."""
    seeds = iter(range(1 << 20))
    return lambda forward, texts, sampling: generate(forward, texts, replace(sampling, seed=next(seeds)))
