"""Simulated runs of a planner's proposals: where they are run, and what is kept of them."""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fedspzo.broker.rounds.aggregate import ClosedRound
from fedspzo.broker.rounds.job import Job
from fedspzo.broker.server.store import ServerStore
from fedspzo.broker.simulation.driver import simulate
from fedspzo.broker.simulation.fleet import CALM, Fleet
from fedspzo.broker.simulation.partition import Shares, subset
from fedspzo.broker.simulation.workers import LocalWorkers, Work
from fedspzo.device_runtime.engines.protocol import create_engine
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.protocol.plan import Entry
from fedspzo.device_runtime.replica.weights import Replica
from fedspzo.device_runtime.step.runner import Forward
from fedspzo.device_runtime.step.scores import predict

#: Examples that a run's loss is the mean of.
SAMPLE = 128
#: Points of a whole run's curve.
POINTS = 6
#: A run whose loss is that many times the loss at the start is over.
DIVERGED = 2.0
#: A run has left a loss behind that it is so many times above.
LEFT = 1.03


@dataclass(frozen=True)
class Curve:
    """A run so far.

    Attributes:
        flops: operations of all devices, at each point.
        losses: on the sample.
        rounds: closed.
    """

    flops: tuple[float, ...]
    losses: tuple[float, ...]
    rounds: int

    @property
    def held(self) -> float:
        """The worse of the last two losses; infinite if the run diverged."""
        worst = max(self.losses[-2:])
        return worst if worst < DIVERGED * self.losses[0] else math.inf

    def reached(self, loss: float) -> float:
        """Operations until the loss was first at a value, by lines between the points; infinite if it never was."""
        for k in range(1, len(self.losses)):
            above, below = self.losses[k - 1], self.losses[k]
            if below <= loss < above:
                share = (above - loss) / (above - below)
                return self.flops[k - 1] + share * (self.flops[k] - self.flops[k - 1])
        return math.inf

    def until(self, loss: float) -> float:
        """The same where it stays there to the end; else infinite."""
        since = self.reached(loss)
        later = [held for flops, held in zip(self.flops, self.losses, strict=True) if flops >= since]
        return since if later and max(later) <= LEFT * loss else math.inf


class _Spent(Exception):
    """The run has spent what it may."""


@dataclass
class Ground:
    """What runs are run on.

    Attributes:
        bundle, engine, threads: see :class:`fedspzo.broker.simulation.workers.Work`.
        shares: the devices' examples.
        horizon: operations of all devices in a whole run.
        spent: operations of all runs so far, with those of their evaluation.
    """

    bundle: Bundle
    engine: str
    threads: int
    shares: Shares
    horizon: float
    spent: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        self._forward = Forward(create_engine(self.engine, self.threads), Replica(self.bundle))
        stores = [self.shares.of(device) for device in self.shares.devices[:SAMPLE]]
        each = math.ceil(SAMPLE / len(stores))
        self._sample = [subset(store, store.sample(0, each)) for store in stores]

    def run(self, job: Job, folder: Path, until: float, curve: Curve | None = None) -> Curve:
        """Begin a run, or go on with one, until it has spent a share of the horizon."""
        fleet = Fleet(self.shares.devices, CALM, job.seed)
        store = ServerStore(folder, self.bundle.identity)
        workers = LocalWorkers(Work(self.bundle.folder, self.engine, self.threads, None, lambda bundle: self.shares))
        replica = self._forward.weights
        replica.restore(None)
        waiting = list(store.journal.entries(0))
        workers.follow(waiting)
        flops, losses = ([0.0], [self._loss()]) if curve is None else (list(curve.flops), list(curve.losses))
        used = flops[-1]

        def observe(closed: ClosedRound, entry: Entry, more: int) -> None:
            nonlocal used
            used += more
            waiting.append(entry)
            if used >= self.horizon * len(flops) / POINTS or used >= self.horizon * until:
                replica.apply_all(waiting)
                waiting.clear()
                self.spent += used - flops[-1]
                flops.append(used)
                losses.append(self._loss())
                if used >= self.horizon * until or not losses[-1] < DIVERGED * losses[0]:
                    raise _Spent

        with suppress(_Spent):
            simulate(job, "default", fleet, workers, store, observe)
        return Curve(tuple(flops), tuple(losses), store.journal.last_round)

    def _loss(self) -> float:
        before = self._forward.flops
        losses = np.concatenate([predict(self._forward, store)[0] for store in self._sample])
        self.spent += self._forward.flops - before
        return float(losses.mean())
