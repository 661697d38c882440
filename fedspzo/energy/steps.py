"""Steps whose energy is measured: by forward passes as devices take them, or by backpropagation to compare with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

from fedspzo.broker.rounds.adaptive import Pace
from fedspzo.broker.rounds.aggregate import close_round
from fedspzo.broker.rounds.job import Job, plan_round
from fedspzo.broker.simulation.first_order import Algorithm, device_update, server_update
from fedspzo.broker.simulation.gradient import Backpropagation, Gradient, Tensors
from fedspzo.device_runtime.data.store import DataStore
from fedspzo.device_runtime.platform.profiling import APPLY
from fedspzo.device_runtime.protocol.messages import Result
from fedspzo.device_runtime.replica.state import PREFIX
from fedspzo.device_runtime.replica.weights import Replica
from fedspzo.device_runtime.step.estimator import draw_examples, measure
from fedspzo.device_runtime.step.prefix_cache import PrefixCache
from fedspzo.device_runtime.step.runner import Forward

_DEVICE = "energy"


class Steps(Protocol):
    """Rounds with one device, of one step each, at a learning rate that only the job's ``adapt`` changes."""

    @property
    def flops(self) -> int:
        """Operations of matrix products so far."""

    def take(self, number: int) -> float:
        """Take step ``number``, from 1 on, and apply it to the weights; returns its loss."""

    def restart(self) -> None:
        """Go back to the bundle's weights."""


class ForwardSteps:
    """:class:`Steps` by forward passes, as devices take them."""

    def __init__(self, job: Job, forward: Forward[Replica], store: DataStore) -> None:
        """Make ready."""
        self._job, self._forward, self._store = _of_one_step(job), forward, store
        self._begin()

    def _begin(self) -> None:
        self._pace = Pace(self._job, ())
        # What a device has on its disk; it goes with the steps.
        self._kept = TemporaryDirectory(prefix="fedspzo-") if self._job.replay else None
        self._cache = PrefixCache(Path(self._kept.name) / PREFIX) if self._kept else None

    @property
    def flops(self) -> int:
        """Operations of matrix products so far."""
        return self._forward.flops

    def take(self, number: int) -> float:
        """Measure along the directions of round ``number``, and go along them."""
        plan = self._pace.plan(number)
        measured = measure(self._forward, self._store, plan, _DEVICE, self._cache, number - 1)
        result = Result(number, b"", measured.scalars, measured.loss, measured.examples, 0.0, b"")
        entry = close_round(plan, {_DEVICE: result}, votes=self._job.votes)
        with self._forward.recorder.phase(APPLY):
            self._forward.weights.apply(entry)
        self._pace.follow(entry)
        return measured.loss

    def restart(self) -> None:
        """Go back to the bundle's weights."""
        self._forward.weights.restore(None)
        self._begin()


class GradientSteps:
    """:class:`Steps` by backpropagation in PyTorch, which devices do not have."""

    def __init__(self, job: Job, algorithm: Algorithm, backpropagation: Backpropagation, store: DataStore) -> None:
        """Make ready."""
        self._job, self._algorithm, self._backpropagation = _of_one_step(job), algorithm, backpropagation
        self._store = store
        self.flops = 0
        self._state = algorithm.start(backpropagation.start())

    def take(self, number: int) -> float:
        """Take the gradient on the examples of round ``number``, and a step along it."""
        plan = plan_round(self._job, number)

        def gradient(at: Tensors, step: int) -> Gradient:
            return self._backpropagation(at, self._store, draw_examples(plan, self._store, _DEVICE, step))

        update = device_update(self._algorithm, self._state.weights, plan, gradient)
        self._state = server_update(self._algorithm, self._state, plan, {_DEVICE: update})
        self.flops += update.flops
        return update.loss

    def restart(self) -> None:
        """Go back to the bundle's weights."""
        self._state = self._algorithm.start(self._backpropagation.start())


def _of_one_step(job: Job) -> Job:
    return replace(job, steps=1, final_rate=1.0)
