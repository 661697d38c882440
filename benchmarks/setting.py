"""What the comparisons share: the model and its bundle, data, plans, our device, and figures held to bars."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from large_models import make_checkpoint

from fedspzo.device_runtime.data.store import DataStore
from fedspzo.device_runtime.engines.protocol import create_engine
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.protocol.entry import Contribution, Entry
from fedspzo.device_runtime.protocol.plan import Block, Plan
from fedspzo.device_runtime.replica.weights import Replica
from fedspzo.device_runtime.step.estimator import measure
from fedspzo.device_runtime.step.runner import Forward
from fedspzo.device_runtime.step.scores import predict

THREADS = 2
#: Perturbations of block 2 under the one of block 1, and of peers that perturb the whole model.
FANOUT = 8
EPSILON, LEARNING_RATE = 1e-3, 1e-6


def make_model(folder: Path, layers: int, **changes: Any) -> Path:
    """A checkpoint of RoBERTa-large's layer shapes with random weights."""
    make_checkpoint("roberta-large", folder / "model", num_hidden_layers=layers, **changes)
    return folder / "model"


def export(checkpoint: Path, engine: str, batches: Sequence[int], lengths: Sequence[int]) -> Bundle:
    """The checkpoint's bundle, beside it; everything is trained but the tables of tokens and positions."""
    bundle = checkpoint.parent / "bundle"
    command = [sys.executable, "-m", "fedspzo", "export", checkpoint, "--task", "sst2", "--engine", engine,
               "--freeze", "labels", "--out",
               bundle, "--batch", ",".join(map(str, batches)), "--max-length", ",".join(map(str, lengths))]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"the export failed: {done.stderr[-2000:]}")
    return Bundle(bundle)


def random_store(bundle: Bundle, batch: int, length: int) -> DataStore:
    """Examples of random tokens that fill a batch, the mask in the middle of each."""
    random = np.random.default_rng(0)
    ids = np.zeros((batch, bundle.manifest.length), np.int32)
    ids[:, :length] = random.integers(5, 500, (batch, length))
    labels = random.integers(0, 2, batch, np.int32)
    return DataStore(ids, np.full(batch, length, np.int32), np.full(batch, length // 2, np.int32), labels)


class OurDevice:
    """Our runtime with a bundle and one batch of data.

    Attributes:
        forward: the bundle's graphs over the replica.
        store: the data.
    """

    def __init__(self, bundle: Bundle, engine: str, store: DataStore) -> None:
        self.replica = Replica(bundle, threads=THREADS)
        self.forward = Forward(create_engine(engine, THREADS), self.replica)
        self.store = store

    def plan(self, *blocks: tuple[int, int]) -> Plan:
        """The next round's plan, with blocks of (stage after the last one, fan-out)."""
        cut = tuple(Block(stop, fanout, 1.0, LEARNING_RATE) for stop, fanout in blocks)
        return Plan(
            self.replica.round + 1, 7, True, "rademacher", 1, len(self.store), EPSILON, cut, 60.0, False
        )  # fmt: skip

    def whole(self, perturbations: int = 1) -> Plan:
        """Perturbations of the whole model."""
        return self.plan((self.stages, perturbations))

    def cut(self) -> Plan:
        """FedSPZO's: one perturbation of block 1, and under it several of block 2, the last sixth of the layers."""
        return self.plan((self.stages - 1 - (self.stages - 2) // 6, 1), (self.stages, FANOUT))

    @property
    def stages(self) -> int:
        """Number of stages."""
        return len(self.forward.manifest.stages)

    def measure(self, plan: Plan) -> tuple[float, ...]:
        """The scalars of a plan; the weights stay as they are."""
        return measure(self.forward, self.store, plan, "a").scalars

    def step(self, plan: Plan) -> None:
        """Measure a plan and apply what it found, as one round with one device does."""
        plan = replace(plan, round=self.replica.round + 1)
        self.replica.apply(Entry(plan, (Contribution("", 1.0, self.measure(plan)),)))

    def loss(self) -> float:
        """Mean loss by plain inference."""
        return float(predict(self.forward, self.store)[0].mean())


def time_in_turn(actions: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each action; all run in turn, after a first round that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(repeats + 1):
        for name, action in actions.items():
            started = time.perf_counter()
            action()
            seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(times[1:]) for name, times in seconds.items()}


@dataclass(frozen=True)
class Figure:
    """A figure, and the bar that it is held to.

    Attributes:
        name: what was measured.
        value: the figure, a ratio.
        bar: its limit, if it has one.
        at_least: whether the limit is a lower one.
    """

    name: str
    value: float
    bar: float | None = None
    at_least: bool = False

    @property
    def passed(self) -> bool:
        """Whether the figure keeps to its bar."""
        return self.bar is None or (self.value >= self.bar if self.at_least else self.value <= self.bar)

    def as_dict(self) -> dict[str, Any]:
        """The figure as JSON has it."""
        return {"name": self.name, "value": round(self.value, 3), "bar": self.said_bar, "passed": self.passed}

    @property
    def said_bar(self) -> str:
        """The bar in words."""
        return "" if self.bar is None else f"{'≥' if self.at_least else '≤'} {self.bar:g}"


def print_figures(figures: Sequence[Figure]) -> None:
    """A readable table."""
    width = max(len(figure.name) for figure in figures)
    for figure in figures:
        verdict = "" if figure.bar is None else "passed" if figure.passed else "MISSED"
        print(f"{figure.name:<{width}}  {figure.value:8.2f}  {figure.said_bar:>8}  {verdict}")
