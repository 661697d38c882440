"""One training run of a method on a setting, simulated: the loss against the operations that devices spent."""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rivals import LABELS, ON_LABELS, RIVALS, RivalTraining
from settings import Setting

from fedspzo.broker.rounds.job import Job, check_job
from fedspzo.broker.rounds.methods import METHODS
from fedspzo.broker.rounds.recommend import last_trained
from fedspzo.broker.server.store import ServerStore
from fedspzo.broker.simulation.curve import Budget, Curve, draw_curve
from fedspzo.broker.simulation.driver import Training, simulate
from fedspzo.broker.simulation.fleet import CALM, Behaviour, Fleet
from fedspzo.broker.simulation.partition import Shares, Skew, device_names, share_out, subset
from fedspzo.broker.simulation.workers import LocalWorkers, Work
from fedspzo.broker.simulation.zeroth_order import ZerothOrder
from fedspzo.device_runtime.engines.protocol import create_engine
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.replica.state import PREFIX
from fedspzo.device_runtime.replica.weights import Replica
from fedspzo.device_runtime.step.prefix_cache import Prefix, PrefixCache
from fedspzo.device_runtime.step.runner import Forward
from fedspzo.device_runtime.step.scores import evaluate, predict
from fedspzo.options.fields import add_options, given

DEVICES, COHORT, ALPHA = 10, 4, 0.5
#: What can be tuned: methods of jobs, and rivals.
COMPARABLE = {**METHODS, **ON_LABELS, **{name: rival.method for name, rival in RIVALS.items()}}
#: Trained weights of the model that the methods' own rates are for.
WEIGHTS = 10_647_552
#: Examples of the training set that a curve's loss is the mean of.
SAMPLE = 160
#: Points of a curve.
POINTS = 24
#: A run whose loss is that many times the loss at the start is over.
DIVERGED = 3.0


@dataclass(frozen=True)
class Conditions:
    """The fleet of a job: by default a small one that is calm.

    Attributes:
        devices: in the fleet.
        alpha: of the Dirichlet distribution that labels are shared out by.
        behaviour: how devices fail.
    """

    devices: int = DEVICES
    alpha: float = ALPHA
    behaviour: Behaviour = CALM


@dataclass(frozen=True)
class Choice:
    """What is tuned of a method.

    Attributes:
        method: one of :data:`COMPARABLE`.
        perturbations: directions.
        rate: learning rate for each of them, for :data:`WEIGHTS` trained weights; larger with fewer, in proportion. On
            labels' vectors as it is.
        batch: examples of a step.
        ratio: of a first block's learning rate to the last one's; None for the method's own.
    """

    method: str
    perturbations: int
    rate: float
    batch: int
    ratio: float | None = None


@dataclass(frozen=True)
class Trained:
    """A training run.

    Attributes:
        flops: operations of all devices so far, at each point.
        train: mean loss on a sample of the training set, at each point.
        test: mean loss on the test set, at the end.
        accuracy: on the test set, at the end.
        rounds: closed.
        points: of the curve of a whole run, which does not diverge.
    """

    flops: Sequence[float]
    train: Sequence[float]
    test: float
    accuracy: float
    rounds: int
    points: int = POINTS

    @property
    def smooth(self) -> Curve:
        """The training losses, each the median of itself and its neighbours: one lucky point is no progress."""
        padded = [self.train[0], *self.train, self.train[-1]]
        medians = (sorted(padded[k : k + 3])[1] for k in range(len(self.train)))
        return Curve(tuple(self.flops), tuple(medians), self.rounds)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def run_job(
    setting: Setting, job: Job, under: Conditions, budget: float, points: int = POINTS, rival: str = ""
) -> Trained:
    """Train until the devices have spent a budget of operations; whatever diverges ends early.

    Args:
        job: long enough; its seed is the partition's as well.
        under: the fleet.
        budget: operations of matrix products, of all devices; a step counts as a forward pass at least.
        points: of the curve.
        rival: one of ``rivals.RIVALS`` that trains; "" where the job does.
    """

    def shares(bundle: Bundle) -> Shares:
        return share_out(setting.train, under.devices, Skew(under.alpha), job.seed)

    fleet = Fleet(device_names(under.devices), under.behaviour, job.seed)
    if rival:
        training = RivalTraining(job, setting, RIVALS[rival], shares(setting.bundle))
        return run_training(setting, job, fleet, training, budget, points)
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        store = ServerStore(Path(folder), setting.bundle.identity)
        workers = LocalWorkers(Work(setting.bundle.folder, "litert", 1, None, shares))
        return run_training(setting, job, fleet, ZerothOrder(job, store, workers), budget, points)


def run_training(
    setting: Setting, job: Job, fleet: Fleet, training: Training, budget: float, points: int = POINTS
) -> Trained:
    """The same with some other way to train, which stands at θ₀."""
    forward = Forward(create_engine("litert", 1), Replica(setting.bundle))
    sample = subset(setting.train, np.random.default_rng(0).choice(len(setting.train), SAMPLE, replace=False))
    rounds = simulate(job, fleet, training)
    shape = min((s for s in setting.bundle.manifest.shapes if s.batch >= job.batch), key=lambda s: (s.batch, s.length))
    forward_pass = sum(shape.graphs[stage.graph].flops for stage in setting.bundle.manifest.stages)
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        prefix = Prefix(forward, job.frozen, PrefixCache(Path(folder) / PREFIX))

        def loss() -> float:
            training.advance(forward.weights)
            return float(predict(forward, sample, prefix)[0].mean())

        curve = draw_curve(rounds, loss, Budget(budget, points, DIVERGED, job.cohort * forward_pass))
    final = evaluate(forward, setting.test)
    return Trained(curve.flops, curve.losses, final.loss, final.scores["accuracy"], curve.rounds, points)


def make_trial_job(bundle: Bundle, choice: Choice, seed: int) -> Job:
    """The job of a choice, long enough for any budget."""
    method, manifest = COMPARABLE[choice.method], bundle.manifest
    own = {"batch": choice.batch}
    if choice.method.endswith(LABELS):
        cut = {"split": (last_trained(manifest),)}
        return make_job(bundle, {**method.settings(choice.perturbations, choice.rate), **cut, **own}, seed)
    trained = sum(math.prod(spec.shape) for spec in manifest.tensors if spec.trainable)
    settings = method.settings(choice.perturbations, choice.rate * WEIGHTS / trained, choice.ratio)
    return make_job(bundle, {**settings, **own}, seed)


def read_options(options: Mapping[str, str]) -> dict[str, Any]:
    """The job's settings that options of ``fedspzo simulate`` give, as ``fedspzo plan`` proposes them."""
    parser = argparse.ArgumentParser()
    add_options(parser, Job)
    return given(parser.parse_args([word for pair in options.items() for word in pair]), Job)


def make_job(bundle: Bundle, settings: Mapping[str, Any], seed: int) -> Job:
    """A job, long enough for any budget."""
    own = {"final_rate": 1.0, **settings, "rounds": 1_000_000, "cohort": COHORT, "quorum": 1, "seed": seed}
    return check_job(Job(**own), bundle)


def forward_pass(bundle: Bundle) -> int:
    """Operations of a forward pass of the whole network, of its largest batch."""
    shape = max(bundle.manifest.shapes, key=lambda shape: (shape.batch, shape.length))
    return sum(shape.graphs[stage.graph].flops for stage in bundle.manifest.stages)


def count_rounds(setting: Setting, job: Job, budget: float) -> int:
    """Rounds that a budget of operations lasts, at a forward pass of each device, by the lengths of drawn batches."""
    forward = Forward(create_engine("litert", 1), Replica(setting.bundle))
    drawn = (forward.batch(setting.train, setting.train.sample(seed, job.batch)).shape for seed in range(SAMPLE))
    passes = [sum(shape.graphs[stage.graph].flops for stage in setting.bundle.manifest.stages) for shape in drawn]
    return round(budget / (job.cohort * float(np.mean(passes))))


def kept(file: Path, described: Any, run: Callable[[], Trained]) -> Trained:
    """What a run came to, from its file if there is one; ``described`` is written beside it, for people."""
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".partial")
        partial.write_text(json.dumps({"run": described, "curve": run().as_dict()}), encoding="utf-8")
        partial.replace(file)
    return Trained(**json.loads(file.read_text(encoding="utf-8"))["curve"])


def geometric_mean(values: Sequence[float]) -> float:
    """Of positive numbers."""
    return float(np.exp(np.mean(np.log(values))))
