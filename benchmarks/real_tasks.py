"""Real models on real tasks: before training, after a federated FedSPZO job, and after LoRA by backpropagation.

    python benchmarks/real_tasks.py DATA --runs runs/real-tasks     # hours; continues where it stopped

DATA holds a folder for each task, with ``train.jsonl``, ``test.jsonl`` and, for a task that the project does not have,
``task.toml``. The hub has the data as ``nyu-mll/glue`` (sst2, rte), ``aps/super_glue`` (cb, wic), ``rajpurkar/squad``,
``clinc_oos``, ``PolyAI/banking77``, ``fancyzhx/ag_news``, ``CogComp/trec``, ``snips_built_in_intents`` and ``hwu64``.

For a model and a task, jobs run with the settings that a job has which says nothing of its steps. LoRA runs the same
rounds, devices, shares and batches by FedAdam, for MiniLM at the better of two rates on another seed. A run is a file
in the folder.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import fedspzo
from fedspzo.broker.simulation.partition import subset
from fedspzo.device_runtime.engines.protocol import create_engine
from fedspzo.device_runtime.model.metrics import f1
from fedspzo.device_runtime.step.runner import Forward
from fedspzo.device_runtime.step.scores import generate, predict
from fedspzo.export.network.adapters import LowRank
from fedspzo.export.network.target import Target

TUNING_SEED = 0
#: Of the shares: what the devices hold is the same in every run, and directions, batches and cohorts differ.
DEVICES, COHORT, SKEW = 10, 4, "dirichlet:0.5"
RESAMPLES = 2000


@dataclass(frozen=True)
class Setting:
    """A model on a task.

    Attributes:
        model: as ``fedspzo export`` takes it.
        task: name of the folder of the data.
        length: tokens of an example.
        rounds: of each job.
        rates: of LoRA by FedAdam to choose from.
        tests: most examples to evaluate on.
        batch: examples of a step.
    """

    model: str
    task: str
    length: int
    rounds: int = 150
    rates: tuple[float, ...] = (5e-4, 2e-3)
    tests: int = 1000
    batch: int = 4

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.model}-{self.task}"


SETTINGS = (
    Setting("minilm", "clinc-phone", 24),
    Setting("minilm", "snips", 24),
    Setting("minilm", "trec", 24),
    Setting("minilm", "agnews", 64),
    Setting("minilm", "banking77", 32),
    Setting("minilm", "hwu64", 24),
    # 25 times MiniLM's work for a token: what fits into an evening of two cores.
    *(
        Setting("smollm2", task, length, 60, (1e-3,), 300)
        for task, length in (
            ("sst2", 48),
            ("trec", 32),
            ("snips", 32),
            ("wic", 48),
            ("agnews", 64),
            ("cb", 96),
        )
    ),
)


@dataclass(frozen=True)
class Runs:
    """The runs of a setting, in its folder."""

    setting: Setting
    data: Path
    folder: Path
    threads: int

    def bundle(self, lora: bool) -> fedspzo.Bundle:
        """What is trained: all weights, or adapters."""
        out = self.folder / ("lora" if lora else "bundle")
        if not out.exists():
            own = self.data / self.setting.task / "task.toml"
            formats = ["litert", "torch"] if lora else ["litert"]
            target = Target(
                formats, [self.setting.batch], [self.setting.length], adapters=LowRank(rank=8) if lora else None
            )
            fedspzo.export_model(self.setting.model, own if own.exists() else self.setting.task, out, target)
        return fedspzo.open_bundle(out)

    def start(self) -> list[float]:
        """Each test example's score before training."""
        return list(self._kept("start", lambda: self._scores(fedspzo.open_model(self.bundle(lora=False)))))

    def zeroth(self, seed: int) -> dict[str, Any]:
        """A FedSPZO job."""
        job = fedspzo.Job(rounds=self.setting.rounds, cohort=COHORT, seed=seed)
        return self._kept(f"fedspzo-{seed}", lambda: self._run(self.bundle(lora=False), job))

    def ceiling(self, seed: int) -> dict[str, Any]:
        """LoRA by backpropagation, at the better rate."""

        def run(seed: int, rate: float) -> dict[str, Any]:
            job = fedspzo.published_job(
                "fedadam", seed=seed, rounds=self.setting.rounds, cohort=COHORT, learning_rates=(rate,)
            )
            return self._kept(f"lora-{rate:g}-{seed}", lambda: self._run(self.bundle(lora=True), job, "fedadam"))

        rates = self.setting.rates
        best = rates[0]
        if len(rates) > 1:
            best = min(rates, key=lambda rate: run(TUNING_SEED, rate)["training_loss"])
        return run(seed, best)

    def _run(self, bundle: fedspzo.Bundle, job: fedspzo.Job, first_order: str | None = None) -> dict[str, Any]:
        begun = time.monotonic()
        run = fedspzo.simulate(
            bundle,
            self._file("train"),
            job,
            devices=DEVICES,
            partition=SKEW,
            threads=self.threads,
            first_order=first_order,
        )
        last = [closed.loss for closed in run.rounds[-10:]]
        return {
            "rounds": len(run.rounds),
            "training_loss": float(np.mean(last)),
            "seconds": time.monotonic() - begun,
            "scores": self._scores(run.model),
        }

    def _scores(self, model: fedspzo.Replica) -> list[float]:
        """Of each test example: whether it is right, or the F1 of what is generated."""
        store = fedspzo.load_data(self._file("test"), model.bundle)
        store = subset(store, store.sample(TUNING_SEED, self.setting.tests))
        forward = Forward(create_engine("litert", self.threads), model)
        if store.references:
            answers = generate(forward, store)
            return [f1([a], [r]) for a, r in zip(answers, store.references, strict=True)]
        right = predict(forward, store)[1].argmax(axis=1) == store.labels
        return right.astype(float).tolist()

    def _file(self, split: str) -> Path:
        return self.data / self.setting.task / f"{split}.jsonl"

    def _kept(self, name: str, make: Callable[[], Any]) -> Any:
        """What was made before, or now."""
        file = self.folder / f"{name}.json"
        if not file.exists():
            print(f"{self.setting.name}: {name}", flush=True)
            found = make()
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(found))
        return json.loads(file.read_text())


def interval(before: Sequence[float], after: Sequence[Sequence[float]]) -> tuple[float, float, float]:
    """Mean gain and its 95 % interval, by the bootstrap over seeds and test examples.

    Args:
        before: [examples]; ``after``: [seeds][examples].
    """
    gains = np.asarray(after) - np.asarray(before)
    random = np.random.default_rng(0)
    seeds, examples = gains.shape
    drawn = [
        gains[random.integers(0, seeds, seeds)][:, random.integers(0, examples, examples)].mean()
        for _ in range(RESAMPLES)
    ]
    return float(gains.mean()), *map(float, np.percentile(drawn, (2.5, 97.5)))


def row(runs: Runs, seeds: Sequence[int]) -> str:
    """A row of the table, of the runs that there are."""
    before = runs.start()
    zeroth, first = ([made(seed)["scores"] for seed in seeds] for made in (runs.zeroth, runs.ceiling))
    gain, low, high = interval(before, zeroth)
    score = "F1" if runs.setting.task == "squad" else "accuracy"
    rounds = runs.zeroth(seeds[0])["rounds"]
    return (
        f"| {runs.setting.model} | {runs.setting.task} | {score} | {100 * np.mean(before):.1f} |"
        f" {100 * np.mean(zeroth):.1f} | {100 * gain:+.1f} ({100 * low:+.1f} to {100 * high:+.1f}) |"
        f" {100 * np.mean(first):.1f} | {rounds} |"
    )


def main() -> None:
    """Run what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--runs", type=Path, default=Path("runs/real-tasks"))
    parser.add_argument("--models", default="minilm,smollm2")
    parser.add_argument("--tasks", default="", help="by default all")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    tasks = options.tasks.split(",") if options.tasks else [setting.task for setting in SETTINGS]
    chosen = [
        Runs(setting, options.data, options.runs / setting.name, options.threads)
        for setting in SETTINGS
        if setting.model in options.models.split(",") and setting.task in tasks
    ]
    seeds = range(1, options.seeds + 1)
    for runs in chosen:  # before the ceilings, which take as long
        runs.start()
        for seed in seeds:
            runs.zeroth(seed)
    print("| model | task | score | before | after | gain (95 %) | LoRA, backpropagation | rounds |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for runs in chosen:
        print(row(runs, seeds), flush=True)


if __name__ == "__main__":
    main()
