"""The pass of some branches through one stage: which of them run together, and the perturbed weights of each run.

Graphs that take several branches at once (adapters: small weights over a base that all share) read the base once for a
stack of them; graphs that take one (full parameters: each branch has weights of its own) run branch by branch. The
weights of a run are made just before it, or, where there is a core to spare, during the run before it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Executor, Future, wait
from dataclasses import dataclass, replace

import numpy as np

from fedspzo.device_runtime.directions.format import Direction
from fedspzo.device_runtime.model.manifest import StageSpec
from fedspzo.device_runtime.platform.profiling import IDLE, PERTURB
from fedspzo.device_runtime.replica.weights import Replica
from fedspzo.device_runtime.step.runner import Batch, Forward


@dataclass(frozen=True)
class Perturbations:
    """How a block's weights are perturbed.

    Attributes:
        offsets: directions that are added for every branch: the local steps so far.
        by_branch: for each branch, the direction that is added for it alone, ±ε included; None where nothing is added.
        distribution: of the directions.
    """

    offsets: Sequence[Direction]
    by_branch: Sequence[Direction | None]
    distribution: str

    def of(self, branch: int) -> list[Direction]:
        """All directions that are added to a branch's weights."""
        own = self.by_branch[branch]
        return [*self.offsets, own] if own else [*self.offsets]

    def pair_at(self, branch: int) -> Direction | None:
        """A branch's own direction, if that of the next branch is the same with the other sign."""
        own, after = (*self.by_branch, None)[branch : branch + 2]
        if own and after and (own.seed, own.coefficient) == (after.seed, -after.coefficient):
            return own
        return None


def both_signs(directions: Sequence[Direction]) -> list[Direction | None]:
    """Two-sided perturbations: each direction as it is, then with the other sign."""
    return [replace(d, coefficient=sign * d.coefficient) for d in directions for sign in (1, -1)]


@dataclass(frozen=True)
class StagePass:
    """How some branches pass through one stage.

    Attributes:
        block: the block of the plan that the stage is in.
        stage: the stage.
        trained: those of its tensors that are perturbed, stacked by branch, or written to the engine.
        perturbations: of its block.
        runs: the branches of each run of the graph; empty where no weights are made, and branches run as they came.
        packed: tensor index → where the engine has perturbed weights in its own layout; empty where they are inputs.
    """

    block: int
    stage: StageSpec
    trained: Sequence[int]
    perturbations: Perturbations
    runs: Sequence[range]
    packed: Mapping[int, np.ndarray]

    @classmethod
    def of(
        cls,
        forward: Forward[Replica],
        batch: Batch,
        block: int,
        stage: int,
        perturbations: Perturbations,
        groups: Sequence[int],
    ) -> StagePass:
        """The pass through a stage, where ``groups`` of branches, one among them, may go through a graph together."""
        spec = forward.manifest.stages[stage]
        branches = len(perturbations.by_branch)
        perturbed = perturbations.offsets or any(perturbations.by_branch)
        stacked = branches > 1 and max(groups) > 1  # such graphs take a copy of the weights for each branch
        trainable = forward.weights.trainable_in([stage])
        if spec.constants:  # of graphs with constants one is held at a time: all runs take the same
            groups = [max(size for size in groups if not branches % size)]
        # The engine has room for one branch's weights, and computes with them while others would be made ahead.
        alone = groups == [1] and forward.weights.ahead is None
        packed = forward.packed(batch.shape, spec, trainable) if alone else {}
        # Such graphs round otherwise: differences are between runs of one kind.
        trained = trainable if perturbed or stacked or packed else []
        return cls(block, spec, trained, perturbations, partition(branches, groups) if trained else [], packed)


def partition(branches: int, groups: Sequence[int]) -> list[range]:
    """The stacks that branches go through a stage in, the largest first.

    Args:
        groups: the sizes that there are graphs for, 1 among them.
    """
    runs: list[range] = []
    for group in sorted(groups, reverse=True):
        start = runs[-1].stop if runs else 0
        runs += [range(at, at + group) for at in range(start, branches - group + 1, group)]
    return runs


#: The arrays that a run takes for a stage's trained tensors: tensor index → scratch array, or where the engine has it.
PerturbedWeights = Mapping[int, np.ndarray]


def perturbed_weights(
    forward: Forward[Replica], passes: Sequence[StagePass], ahead: Executor | None
) -> Generator[PerturbedWeights, None, None]:
    """Weights for all runs of some passes, in order; the caller releases each after its run.

    Args:
        ahead: makes the next run's weights while the caller works on those before; without it they are made when they
            are asked for, in half the memory.
    """
    tasks = (_prepare(forward, stage_pass, branches) for stage_pass in passes for branches in stage_pass.runs)
    phase = forward.recorder.phase

    def make_in_phase(make: Callable[[], None]) -> None:
        with phase(PERTURB):
            make()

    if ahead is None:
        for weights, make in tasks:
            make_in_phase(make)
            yield weights
        return
    waiting: list[tuple[PerturbedWeights, Future[None]]] = []
    try:
        for weights, make in tasks:
            waiting.append((weights, ahead.submit(make_in_phase, make)))
            if len(waiting) > 1:
                made, done = waiting.pop(0)
                with phase(IDLE):
                    done.result()
                yield made
        for made, done in waiting:
            with phase(IDLE):
                done.result()
            yield made
    finally:  # a caller that stops halfway finds the kernel at rest
        wait([done for _, done in waiting])


def _prepare(
    forward: Forward[Replica], stage_pass: StagePass, branches: range
) -> tuple[PerturbedWeights, Callable[[], None]]:
    """Arrays for one run, and what fills them."""
    replica, perturbations = forward.weights, stage_pass.perturbations
    kernel = replica.kernel(perturbations.distribution)
    stored = {index: replica.trainable[index] for index in stage_pass.trained}
    shapes = {index: weights.shape for index, weights in stored.items()}
    if len(branches) == 1:
        inputs = {index: forward.scratch.take(s) for index, s in shapes.items() if index not in stage_pass.packed}
        arrays = {**stage_pass.packed, **inputs}
        return arrays, lambda: kernel.shift(stored, perturbations.of(branches[0]), arrays)
    arrays = {index: forward.scratch.take((len(branches), *shape[1:])) for index, shape in shapes.items()}

    def fill() -> None:
        rows = [{index: array[k : k + 1] for index, array in arrays.items()} for k in range(len(branches))]
        at = 0
        while at < len(branches):
            direction = perturbations.pair_at(branches[at])
            if direction and at + 1 < len(branches):
                kernel.shift_pair(stored, perturbations.offsets, direction, rows[at], rows[at + 1])
                at += 2
            else:
                kernel.shift(stored, perturbations.of(branches[at]), rows[at])
                at += 1

    return arrays, fill
