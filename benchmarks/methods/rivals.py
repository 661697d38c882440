"""Published rivals in the study: simulated with weights in memory; the engine evaluates each perturbed model.

Directions are shared by all devices, and a round's scalars become one vector as a job's do. A forward pass counts as
it does for any method; what is added to weights does not. Each rival is there for the whole model, as published; for
the last layer behind a frozen prefix whose activations are kept; and for the labels' vectors alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from rules import (
    Curvature,
    LowRank,
    Momentum,
    Orthogonal,
    Preconditioned,
    Rule,
    Sparse,
    Tensors,
    factor,
    most_sensitive,
)
from settings import PUBLIC, Setting

from fedspzo.broker.rounds.aggregate import close_round
from fedspzo.broker.rounds.job import Job, plan_round
from fedspzo.broker.rounds.methods import METHODS, Method
from fedspzo.broker.rounds.recommend import MOST
from fedspzo.broker.simulation.driver import DIVERGED, Attendance, SimulatedRound, WithoutJournal
from fedspzo.broker.simulation.gradient import Backpropagation
from fedspzo.broker.simulation.partition import Shares
from fedspzo.device_runtime.data.store import load_data
from fedspzo.device_runtime.engines.protocol import create_engine
from fedspzo.device_runtime.errors import PlanError
from fedspzo.device_runtime.model.arrays import aligned_empty
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.protocol.codec import fingerprint
from fedspzo.device_runtime.protocol.messages import Result
from fedspzo.device_runtime.protocol.plan import Plan
from fedspzo.device_runtime.replica.weights import Replica
from fedspzo.device_runtime.step.estimator import draw_examples
from fedspzo.device_runtime.step.runner import Batch, Forward
from fedspzo.export.network.target import Target
from fedspzo.export.pipeline import export_bundle
from fedspzo.export.tasks import load_task

#: How the names of those end that train the labels' vectors alone.
LABELS = "-labels"
#: Share of the weights that Meerkat moves, and batches of public data that choose them.
SENSITIVE, PUBLIC_BATCHES = 1e-3, 32
#: Of the factors that directions are multiplied by on both sides: their covariance is the root of the gradients'.
POWER = 0.25


@dataclass(frozen=True)
class Rival:
    """A rival.

    Attributes:
        method: its settings; a first block that is there is frozen.
        make: the rule, for a setting and the weights that move.
    """

    method: Method
    make: Callable[[Setting, Tensors], Rule[Any]]


def _rivals() -> dict[str, Rival]:
    """Each for the whole model; as ``NAME-frozen`` for the last layer, as ``NAME-labels`` for the labels' vectors."""
    found = {}
    for name, (paper, title, count, rate, make) in _RULES.items():
        more = {"sides": 1}
        found[name] = Rival(Method(paper, title, count, rate, more=more), make)
        found[f"{name}-frozen"] = Rival(Method(paper, f"{title}, last layer", 16, rate, 0, more), make)
        if name in _RATES:
            labels = Method(paper, f"{title}, labels' vectors", MOST, _RATES[name], 0, more)
            found[name + LABELS] = Rival(labels, make)
    return found


def _sparse(setting: Setting, weights: Tensors) -> Sparse:
    squares = public_moments(setting, "squares", np.square)
    return Sparse(most_sensitive({index: squares[index] for index in weights}, SENSITIVE))


def _preconditioned(setting: Setting, weights: Tensors) -> Preconditioned:
    inputs = public_moments(setting, "inputs", lambda gradient: gradient @ gradient.T)
    outputs = public_moments(setting, "outputs", lambda gradient: gradient.T @ gradient)
    matrices = [index for index, array in weights.items() if array.ndim == 2]
    return Preconditioned({index: (factor(inputs[index], POWER), factor(outputs[index], POWER)) for index in matrices})


def public_moments(setting: Setting, name: str, moment: Callable[[np.ndarray], np.ndarray]) -> dict[int, np.ndarray]:
    """Of each trained tensor, the mean of a function of its gradients on public data of other labels; made once.

    Args:
        name: of what is kept.
        moment: of a gradient, without an axis for branches.
    """
    kept = setting.place / PUBLIC / f"{name}.npz"
    if not kept.exists():
        public = _public_bundle(setting)
        store = load_data(setting.place / PUBLIC / "train.jsonl", public)
        backpropagation = Backpropagation(public)
        start, size = backpropagation.start(), public.manifest.batch
        order = np.random.default_rng(0).permutation(len(store))
        found: dict[str, np.ndarray] = {}
        for number in range(PUBLIC_BATCHES):
            gradient = backpropagation(start, store, order[number * size : (number + 1) * size]).tensors
            for index, array in _matrices(gradient).items():
                tensor = public.manifest.tensors[index].name
                found[tensor] = found.get(tensor, 0.0) + moment(array) / PUBLIC_BATCHES
        np.savez(kept, **found)
    specs = setting.bundle.manifest.tensors
    with np.load(kept) as loaded:
        return {index: loaded[spec.name] for index, spec in enumerate(specs) if spec.name in loaded}


def _public_bundle(setting: Setting) -> Bundle:
    """The same model, exported for the labels of the public data."""
    place = setting.place / PUBLIC
    if not (place / "bundle").exists():
        target = Target(["torch"], [8], [max(shape.length for shape in setting.bundle.manifest.shapes)])
        model, _ = setting.name.split("-", 1)
        export_bundle(model, load_task(str(place / "task.toml")), target, place / "bundle")
    return Bundle(place / "bundle")


#: Name → paper, what it does, number of directions, rate for each of them, rule.
_RULES: Mapping[str, tuple[str, str, int, float, Callable[[Setting, Tensors], Rule[Any]]]] = {
    "momentum": ("1964", "steps along a decaying mean of the estimates", 5, 8e-5, lambda *_: Momentum()),
    "hiso": ("2506.02370", "directions scaled by a learned diagonal curvature", 5, 8e-5, lambda *_: Curvature(1e-3)),
    "lozo": ("2410.07698, 2511.16652", "low-rank directions", 5, 8e-5, lambda *_: LowRank()),
    "zo-muon": ("2602.17155", "orthogonal steps in a seeded subspace", 5, 4e-3, lambda *_: Orthogonal()),
    "zo-mopi": ("2605.09034", "the same, of a few directions of the momentum", 5, 1e-2, lambda *_: Orthogonal(frame=8)),
    "meerkat": ("2506.03337", "0.1 % of the weights, chosen on public data", 5, 2.5e-4, _sparse),
    "kronecker": ("1802.09568", "directions by Kronecker factors of public gradients", 5, 8e-5, _preconditioned),
}
#: Rate for each direction where the labels' vectors move: what moves them as far as a job's defaults do. Meerkat has
#: none: public labels are others.
_RATES = {"momentum": 8e-5, "hiso": 8e-5, "lozo": 8e-5, "zo-muon": 4e-4, "zo-mopi": 4e-4}
RIVALS = _rivals()
#: Methods of jobs on the labels' vectors, which are otherwise there for the whole model or for the last layer.
ON_LABELS = {
    f"frozen{LABELS}": replace(METHODS["frozen"], perturbations=MOST, rate=8e-5),
    f"frozen-own{LABELS}": replace(METHODS["frozen-own"], perturbations=MOST // 4, rate=3.2e-4),
    f"fzoo{LABELS}": replace(METHODS["fzoo"], perturbations=MOST, rate=3.2e-4, first=0),
}


def _matrices(tensors: Tensors) -> dict[int, np.ndarray]:
    """The same memory, without the axis of 1 that stored matrices have for branches."""
    return {index: array.reshape(array.shape[-2:]) for index, array in tensors.items()}


class RivalTraining(WithoutJournal):
    """A :class:`fedspzo.broker.simulation.driver.Training` of a rule; it starts from θ₀.

    Attributes:
        weights: those that move, after the last closed round.
    """

    def __init__(self, job: Job, setting: Setting, rival: Rival, shares: Shares) -> None:
        """``job`` measures one-sided, one step a round, and all of its blocks but the last are frozen."""
        super().__init__(job)
        self._shares = shares
        self._forward = Forward(create_engine("litert", 1), Replica(setting.bundle))
        stages = setting.bundle.manifest.stages
        *_, moved = plan_round(job, 1).stages()
        self._prefix, self._moved = stages[: moved.start], stages[moved.start :]
        indices = self._forward.weights.trainable_in(moved)
        self.weights = {index: self._forward.weights.trainable[index].copy() for index in indices}
        self._perturbed = {index: aligned_empty(array.shape) for index, array in self.weights.items()}
        self._rule = rival.make(setting, _matrices(self.weights))
        self._state = self._rule.start(_matrices(self.weights))
        self._kept: dict[tuple[int, bytes], np.ndarray] = {}
        self.round = 0

    def train(self, plan: Plan, attendance: Attendance) -> SimulatedRound:
        """Losses at the centre and along each direction on each device's examples, and the rule's step."""
        before, devices = self._forward.flops, sorted(attendance.seconds)
        self._state = self._rule.begin(self._state, plan.round)
        (*_, block), number = plan.blocks, len(plan.blocks) - 1
        seeds = [plan.seed("", 0, path) for path in plan.paths(number)]
        losses = np.empty((len(devices), 1 + block.fanout))
        for query, terms in enumerate([[], *([(seed, plan.epsilon)] for seed in seeds)]):
            for index, array in self._perturbed.items():
                array[...] = self.weights[index]
            if terms:
                self._rule.add(self._state, _matrices(self._perturbed), terms)
            losses[:, query] = [self._loss(plan, device) for device in devices]
        if not np.isfinite(losses).all():
            raise PlanError(DIVERGED, f"the model diverged in round {plan.round}")
        sizes = [min(plan.batch, len(self._shares.of(device))) for device in devices]
        scalars = (losses[:, 1:] - losses[:, :1]) / plan.epsilon
        results = {
            device: Result(plan.round, fingerprint(plan), tuple(own.tolist()), float(centre), size, 0.0, b"")
            for device, own, centre, size in zip(devices, scalars, losses[:, 0], sizes, strict=True)
        }
        (shared,) = close_round(plan, results).contributions
        weights = _matrices(self.weights)
        gradient = {index: np.zeros_like(array) for index, array in weights.items()}
        mean = [(seed, scalar / len(seeds)) for seed, scalar in zip(seeds, shared.scalars, strict=True)]
        self._rule.add(self._state, gradient, mean)
        self._state, along = self._rule.step(self._state, gradient)
        for index, array in weights.items():
            array -= np.float32(block.learning_rate) * along[index]
        self.round = plan.round
        self._served.update(dict.fromkeys(devices, plan.round))
        return SimulatedRound(
            round=plan.round,
            loss=math.fsum(losses[:, 0]) / len(devices),
            devices=tuple(devices),
            seconds=attendance.closed,
            step_seconds=0.0,
            asked=attendance.asked,
            flops=self._forward.flops - before,
        )

    def advance(self, replica: Replica) -> None:
        """Give a replica the weights."""
        if self.round:
            replica.adopt(self.weights, self.round)

    def _loss(self, plan: Plan, device: str) -> float:
        """Mean over the examples that a device draws, with the perturbed weights."""
        store = self._shares.of(device)
        batch = self._forward.batch(store, draw_examples(plan, store, device, 0))
        outputs = self._reached(batch)
        for stage in self._moved:
            previous = outputs
            own = {index: self._perturbed[index] for index in stage.tensors if index in self._perturbed}
            outputs = self._forward.run(stage, batch, previous[0] if previous else None, own)
            self._forward.release(previous)
        found = float(outputs[0][: batch.count].astype(np.float64).mean())
        self._forward.release(outputs)
        return found

    def _reached(self, batch: Batch) -> list[np.ndarray]:
        """Activations before the first stage that moves, each example's kept, as devices keep them."""
        if not self._prefix:
            return []
        keys = [(batch.shape.length, row.tobytes()) for row in batch.ids[: batch.count]]
        if not all(key in self._kept for key in keys):
            outputs = self._forward.run_all(self._prefix, batch)
            self._kept.update((key, row.copy()) for key, row in zip(keys, outputs[0], strict=False))
            self._forward.release(outputs)
        rows = [self._kept[key] for key in keys]
        hidden = self._forward.scratch.take((batch.shape.batch, *rows[0].shape))
        hidden[...] = [*rows, *rows[-1:] * (batch.shape.batch - batch.count)]
        return [hidden]
