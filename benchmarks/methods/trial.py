"""One training run of a method on a setting, simulated: the loss against the operations that devices spent."""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from settings import Setting

from fedspzo.broker.planner import ground
from fedspzo.broker.rounds.aggregate import ClosedRound
from fedspzo.broker.rounds.job import Job
from fedspzo.broker.server.store import ServerStore
from fedspzo.broker.simulation.driver import simulate
from fedspzo.broker.simulation.fleet import CALM, Fleet
from fedspzo.broker.simulation.partition import Shares, Skew, share_out, subset
from fedspzo.broker.simulation.workers import LocalWorkers, Work
from fedspzo.commands import server
from fedspzo.device_runtime.engines.protocol import create_engine
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.protocol.plan import Entry
from fedspzo.device_runtime.replica.weights import Replica
from fedspzo.device_runtime.step.runner import Forward
from fedspzo.device_runtime.step.scores import evaluate
from fedspzo.options.methods import METHODS

DEVICES, COHORT, ALPHA = 10, 4, 0.5
#: Trained weights of the model that the methods' own rates are for.
WEIGHTS = 10_647_552
#: Examples of the training set that a curve's loss is the mean of.
SAMPLE = 160
#: Points of a curve.
POINTS = 24


@dataclass(frozen=True)
class Choice:
    """What is tuned of a method.

    Attributes:
        method: one of ``fedspzo.options.methods.METHODS``.
        perturbations: directions.
        rate: learning rate for each of them, for :data:`WEIGHTS` trained weights; larger with fewer, in proportion.
        batch: examples of a step.
        ratio: of a first block's learning rate to the last one's; None for the method's own.
    """

    method: str
    perturbations: int
    rate: float
    batch: int
    ratio: float | None = None


@dataclass(frozen=True)
class Curve:
    """A training run.

    Attributes:
        flops: operations of all devices so far, at each point.
        train: mean loss on a sample of the training set, at each point.
        test: mean loss on the test set, at the end.
        accuracy: on the test set, at the end.
        rounds: closed.
    """

    flops: list[float]
    train: list[float]
    test: float
    accuracy: float
    rounds: int

    @property
    def smooth(self) -> list[float]:
        """The training losses, each the median of itself and its neighbours: one lucky point is no progress."""
        padded = [self.train[0], *self.train, self.train[-1]]
        return [sorted(padded[k : k + 3])[1] for k in range(len(self.train))]

    def reached(self, target: float) -> float:
        """Operations until the smoothed loss is at a target; infinite if it never is."""
        return self._course.reached(target)

    def held(self, target: float) -> float:
        """The same where the loss stays there to the end of the run; else infinite."""
        return self._course.until(target)

    @property
    def _course(self) -> ground.Curve:
        return ground.Curve(tuple(self.flops), tuple(self.smooth), self.rounds)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


class _Spent(Exception):
    """The budget is used up."""


def run_job(setting: Setting, job: Job, devices: int, budget: float) -> Curve:
    """Train until the devices have spent a budget of operations; whatever diverges ends early.

    Args:
        job: long enough; its seed is the partition's as well.
        budget: operations of matrix products, of all devices.
    """
    forward = Forward(create_engine("litert", 1), Replica(setting.bundle))
    sample = subset(setting.train, np.random.default_rng(0).choice(len(setting.train), SAMPLE, replace=False))
    flops, losses, waiting = [0.0], [evaluate(forward, sample).loss], []
    spent = 0.0

    def shares(bundle: Bundle) -> Shares:
        return share_out(setting.train, devices, Skew(ALPHA), job.seed)

    def observe(closed: ClosedRound, entry: Entry, used: int) -> None:
        nonlocal spent
        spent += used
        waiting.append(entry)
        if spent >= budget * len(losses) / POINTS:
            forward.weights.apply_all(waiting)
            waiting.clear()
            flops.append(spent)
            losses.append(evaluate(forward, sample).loss)
            if spent >= budget or not losses[-1] < 3 * losses[0]:
                raise _Spent

    fleet = Fleet([f"device-{number}" for number in range(1, devices + 1)], CALM, job.seed)
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        store = ServerStore(Path(folder), setting.bundle.identity)
        workers = LocalWorkers(Work(setting.bundle.folder, "litert", 1, None, shares))
        with suppress(_Spent):
            simulate(job, "default", fleet, workers, store, observe)
        rounds = store.journal.last_round
    final = evaluate(forward, setting.test)
    return Curve(flops, losses, final.loss, final.scores["accuracy"], rounds)


def make_trial_job(bundle: Bundle, choice: Choice, seed: int) -> Job:
    """The job of a choice, long enough for any budget."""
    trained = sum(math.prod(spec.shape) for spec in bundle.manifest.tensors if spec.trainable)
    settings = METHODS[choice.method].settings(choice.perturbations, choice.rate * WEIGHTS / trained, choice.ratio)
    options = {f"--{option.replace('_', '-')}": value for option, value in settings.items()}
    return replace(make_job(bundle, options, seed), examples=choice.batch)


def make_job(bundle: Bundle, options: Mapping[str, Any], seed: int) -> Job:
    """The job of options as ``fedspzo simulate`` takes them, long enough for any budget."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--devices", type=int, default=DEVICES)
    server.add_job_options(parser)
    own = {**options, "--rounds": 1_000_000, "--cohort": COHORT, "--seed": seed}
    given = [[option] if value is True else [option, str(value)] for option, value in own.items()]
    return server.make_job(parser.parse_args([word for words in given for word in words]), bundle)


def geometric_mean(values: Sequence[float]) -> float:
    """Of positive numbers."""
    return float(np.exp(np.mean(np.log(values))))
