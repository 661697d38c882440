"""FedSPZO's estimator (arXiv 2502.10239, section 3) for any number of blocks, walked stage by stage.

Weights in memory are never perturbed: for each stage and each perturbation, W + offsets ± ε·scale·z is written into two
stage buffers and the stage runs on them. All leaves go through a stage together, and the perturbations of a block start
from the same activations of the block before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from device_runtime.data import DataStore
from device_runtime.directions import Direction, derive_seed
from device_runtime.forward import Batch, Forward
from device_runtime.plan import Plan
from device_runtime.replica import Replica, block_stages, check_blocks


@dataclass(frozen=True)
class Measurement:
    """What a device measured for a plan.

    Attributes:
        scalars: float32 [steps · leaves], projected gradients (l₊ − l₋)/2ε.
        loss: mean of (l₊ + l₋)/2 over steps and leaves.
        examples: examples used over all steps.
    """

    scalars: tuple[float, ...]
    loss: float
    examples: int


@dataclass(frozen=True)
class _Branch:
    """A path of perturbations with the outputs of the last stage for + and −; the same lists while nothing differs."""

    path: tuple[int, ...]
    plus: list[np.ndarray]
    minus: list[np.ndarray]


def measure(forward: Forward[Replica], store: DataStore, plan: Plan, device: str) -> Measurement:
    """Carry out a plan on a device's examples.

    Several local steps need no changed weights: the steps so far are more directions in the sum that each stage's
    weights are shifted by.

    Raises:
        PlanError: the plan does not fit the bundle.
    """
    check_blocks(forward.bundle, plan)
    source = plan.source(device)
    offsets: list[list[Direction]] = [[] for _ in plan.blocks]
    scalars: list[float] = []
    losses: list[float] = []
    examples = 0
    for step in range(plan.steps):
        batch = forward.batch(store, draw_examples(plan, store, device, step))
        step_scalars, loss = measure_step(forward, batch, plan, source, step, offsets)
        scalars.extend(step_scalars)
        losses.append(loss)
        examples += batch.count
        for block, directions in zip(offsets, plan.updates(source, step, step_scalars), strict=True):
            block.extend(directions)
    return Measurement(tuple(scalars), float(np.mean(losses)), examples)


def draw_examples(plan: Plan, store: DataStore, device: str, step: int) -> np.ndarray:
    """Indices of the examples that a device draws for a local step: always the same for the same plan."""
    return store.sample(derive_seed(plan.base_seed, f"examples of {device}", step, 0, ()), plan.examples)


def measure_step(
    forward: Forward[Replica], batch: Batch, plan: Plan, source: str, step: int, offsets: Sequence[Sequence[Direction]]
) -> tuple[list[float], float]:
    """One step of the estimator: the scalar of every leaf, and the mean loss.

    Args:
        offsets: for each block, directions that its weights are already shifted by.
    """
    nothing: list[np.ndarray] = []
    branches = [_Branch((), nothing, nothing)]
    for index, stages in enumerate(block_stages(plan)):
        children = [
            _Branch((*branch.path, k), branch.plus, branch.minus)
            for branch in branches
            for k in range(plan.blocks[index].fanout)
        ]
        size = plan.epsilon * plan.blocks[index].scale
        perturbations = [Direction(plan.seed(source, step, child.path), size) for child in children]
        for stage in stages:
            advanced = _run_stage(forward, batch, plan.distribution, stage, children, perturbations, offsets[index])
            _release(forward, children)
            children = advanced
        branches = children
    pairs = [(_mean_loss(leaf.plus, batch), _mean_loss(leaf.minus, batch)) for leaf in branches]
    _release(forward, branches)
    scalars = [float(np.float32((above - below) / (2 * plan.epsilon))) for above, below in pairs]
    return scalars, float(np.mean(pairs))


def _run_stage(
    forward: Forward[Replica],
    batch: Batch,
    distribution: str,
    stage: int,
    branches: Sequence[_Branch],
    perturbations: Sequence[Direction],
    offsets: Sequence[Direction],
) -> list[_Branch]:
    """Every branch through one stage, each perturbation with its own two buffers' worth of weights."""
    replica = forward.weights
    trained = replica.trainable_in([stage])
    spec = forward.manifest.stages[stage]
    shared: dict[int, list[np.ndarray]] = {}

    def unperturbed(inputs: list[np.ndarray]) -> list[np.ndarray]:
        if id(inputs) not in shared:
            shared[id(inputs)] = forward.run(spec, batch, inputs[0] if inputs else None, {})
        return shared[id(inputs)]

    if not trained:
        return [_Branch(b.path, unperturbed(b.plus), unperturbed(b.minus)) for b in branches]
    kernel = replica.kernel(distribution)
    plus = {index: forward.pool.take(replica.tensor(index).shape) for index in trained}
    minus = {index: forward.pool.take(replica.tensor(index).shape) for index in trained}
    advanced = []
    for branch, direction in zip(branches, perturbations, strict=True):
        for index in trained:
            kernel.shift_pair(replica.tensor(index), offsets, direction, index, plus[index], minus[index])
        above = forward.run(spec, batch, branch.plus[0] if branch.plus else None, plus)
        below = forward.run(spec, batch, branch.minus[0] if branch.minus else None, minus)
        advanced.append(_Branch(branch.path, above, below))
    forward.release([*plus.values(), *minus.values()])
    return advanced


def _release(forward: Forward[Replica], branches: Sequence[_Branch]) -> None:
    distinct = {id(outputs): outputs for branch in branches for outputs in (branch.plus, branch.minus)}
    for outputs in distinct.values():
        forward.release(outputs)


def _mean_loss(outputs: list[np.ndarray], batch: Batch) -> float:
    return float(outputs[0][: batch.count].astype(np.float64).mean())
