"""Leaves on their way through the stages: where their activations lie, and their step through one stage.

A *leaf* is a path of perturbations, two-sided with + or − (path 0 +, path 0 −, path 1 +, …). Graphs that take several
at once (adapters: small weights over a base that all share) read the base once for a stack of them; graphs that take
one (full parameters: each leaf has weights of its own) run leaf by leaf. The weights of a run are made just before it,
or where there is a core to spare while the run before it goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, wait
from dataclasses import dataclass, replace

import numpy as np

from fedspzo.device_runtime.directions.format import Direction
from fedspzo.device_runtime.model.manifest import StageSpec
from fedspzo.device_runtime.platform.profiling import IDLE, PERTURB
from fedspzo.device_runtime.replica.weights import Replica
from fedspzo.device_runtime.step.runner import Batch, Forward


@dataclass(frozen=True)
class Wave:
    """Activations of the leaves that are on their way, between two stages.

    Attributes:
        runs: for each run of the last stage, the leaves in it and the graph's outputs, stacked by leaf; while nothing
            is perturbed, one leaf stands for all.
    """

    runs: tuple[tuple[int, list[np.ndarray]], ...]

    @property
    def leaves(self) -> int:
        """How many leaves there are."""
        return sum(size for size, _ in self.runs)

    def outputs(self, leaf: int, output: int, batch: int) -> np.ndarray:
        """A leaf's rows of an output."""
        for size, arrays in self.runs:
            if leaf < size:
                return arrays[output][leaf * batch : (leaf + 1) * batch]
            leaf -= size
        raise IndexError("there is no such leaf")


#: Before the first stage.
START = Wave(((1, []),))


@dataclass(frozen=True)
class Perturbation:
    """How a block's weights are perturbed.

    Attributes:
        offsets: directions that they are shifted by in any case.
        shifts: for each leaf, what they are shifted by besides, or nothing.
        distribution: of the directions.
    """

    offsets: Sequence[Direction]
    shifts: Sequence[Direction | None]
    distribution: str

    def of(self, leaf: int) -> list[Direction]:
        """All that a leaf's weights are shifted by."""
        shift = self.shifts[leaf]
        return [*self.offsets, shift] if shift else [*self.offsets]

    def opposite(self, leaf: int) -> Direction | None:
        """A leaf's own shift, if that of the next leaf is the same with the other sign."""
        shift, after = (*self.shifts, None)[leaf : leaf + 2]
        if shift and after and (shift.seed, shift.coefficient) == (after.seed, -after.coefficient):
            return shift
        return None


def both_signs(directions: Sequence[Direction]) -> list[Direction | None]:
    """The shifts of two-sided leaves."""
    return [replace(d, coefficient=sign * d.coefficient) for d in directions for sign in (1, -1)]


@dataclass(frozen=True)
class Passage:
    """How the leaves go through one stage.

    Attributes:
        block: the block of the plan that the stage is in.
        stage: the stage.
        trained: those of its tensors that are shifted, stacked by leaf, or written to the engine.
        perturbation: of its block.
        runs: leaves that go through together; none where that is nothing, and all run as they came.
        packed: tensor index → where the engine has shifted weights in its own layout; empty where they are inputs.
    """

    block: int
    stage: StageSpec
    trained: Sequence[int]
    perturbation: Perturbation
    runs: Sequence[range]
    packed: Mapping[int, np.ndarray]

    @classmethod
    def of(cls, forward: Forward[Replica], batch: Batch, block: int, stage: int, perturbation: Perturbation) -> Passage:
        """The passage through a stage, with the graphs that there are for this batch."""
        spec = forward.manifest.stages[stage]
        leaves, groups = len(perturbation.shifts), forward.groups(batch)
        shifted = perturbation.offsets or any(perturbation.shifts)
        stacked = leaves > 1 and max(groups) > 1  # such graphs take a copy of the weights for each leaf
        trainable = forward.weights.trainable_in([stage])
        if spec.constants:  # of graphs with constants one is held at a time: all runs take the same
            groups = [max(size for size in groups if not leaves % size)]
        # The engine has room for one leaf's weights, and computes with them while others would be made ahead.
        alone = groups == [1] and forward.weights.ahead is None
        packed = forward.packed(batch.shape, spec, trainable) if alone else {}
        # Such graphs round otherwise: differences are between runs of one kind.
        trained = trainable if shifted or stacked or packed else []
        return cls(block, spec, trained, perturbation, partition(leaves, groups) if trained else [], packed)


#: The arrays that a run takes for a stage's trained tensors: tensor index → array from the pool.
Perturbed = Mapping[int, np.ndarray]


def perturb(
    forward: Forward[Replica], passages: Sequence[Passage], ahead: Executor | None
) -> Generator[Perturbed, None, None]:
    """Weights for all runs of some passages, in order; whoever takes them gives them back to the pool.

    Args:
        ahead: makes the next run's weights while its caller works on what it was given; without it they are made when
            they are asked for, in half the memory.
    """
    tasks = (_perturb_run(forward, passage, leaves) for passage in passages for leaves in passage.runs)
    phase = forward.recorder.phase

    def make_in_phase(make: Callable[[], None]) -> None:
        with phase(PERTURB):
            make()

    if ahead is None:
        for weights, make in tasks:
            make_in_phase(make)
            yield weights
        return
    waiting: list[tuple[Perturbed, Future[None]]] = []
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
    finally:  # whoever stops half-way finds the kernel at rest
        wait([done for _, done in waiting])


def _perturb_run(forward: Forward[Replica], passage: Passage, leaves: range) -> tuple[Perturbed, Callable[[], None]]:
    """Arrays for one run, and what fills them."""
    replica, perturbation = forward.weights, passage.perturbation
    kernel = replica.kernel(perturbation.distribution)
    stored = {index: replica.trainable[index] for index in passage.trained}
    shapes = {index: weights.shape for index, weights in stored.items()}
    if len(leaves) == 1:
        pooled = {index: forward.pool.take(shape) for index, shape in shapes.items() if index not in passage.packed}
        arrays = {**passage.packed, **pooled}
        return arrays, lambda: kernel.shift(stored, perturbation.of(leaves[0]), arrays)
    arrays = {index: forward.pool.take((len(leaves), *shape[1:])) for index, shape in shapes.items()}

    def fill() -> None:
        rows = [{index: array[k : k + 1] for index, array in arrays.items()} for k in range(len(leaves))]
        at = 0
        while at < len(leaves):
            direction = perturbation.opposite(leaves[at])
            if direction and at + 1 < len(leaves):
                kernel.shift_pair(stored, perturbation.offsets, direction, rows[at], rows[at + 1])
                at += 2
            else:
                kernel.shift(stored, perturbation.of(leaves[at]), rows[at])
                at += 1

    return arrays, fill


def advance(
    forward: Forward[Replica],
    batch: Batch,
    passage: Passage,
    wave: Wave,
    perturbed: Iterator[Perturbed],
    keep: bool = False,
) -> Wave:
    """All leaves through one stage; each path diverges where it first meets trained weights.

    Args:
        perturbed: gives the weights of each run.
        keep: leave ``wave`` as it is; else it is used up.
    """
    spec = passage.stage
    base = forward.widened([index for index in spec.tensors if index not in passage.trained])  # once, for all runs
    runs: list[tuple[int, list[np.ndarray]]] = []
    if passage.runs:
        count = len(passage.perturbation.shifts)
        last = _last_uses(wave, passage.runs, count)
        for number, leaves in enumerate(passage.runs):
            weights = next(perturbed)
            hidden, copied = _gather(forward, batch, wave, leaves, count)
            grouped = forward.grouped(batch, len(leaves))
            runs.append((len(leaves), forward.run(spec, grouped, hidden, {**base, **weights})))
            forward.release([*copied, *(weights[index] for index in weights.keys() - passage.packed.keys())])
            for used, (_, arrays) in enumerate(wave.runs):
                if last[used] == number and not keep:
                    forward.release(arrays)
    else:
        for size, arrays in wave.runs:
            hidden = arrays[0] if arrays else None
            runs.append((size, forward.run(spec, forward.grouped(batch, size), hidden, base)))
            if not keep:
                forward.release(arrays)
    forward.release_widened(base)
    return Wave(tuple(runs))


def release(forward: Forward[Replica], wave: Wave) -> None:
    """Give a wave's arrays back to the pool."""
    for _, arrays in wave.runs:
        forward.release(arrays)


def partition(leaves: int, groups: Sequence[int]) -> list[range]:
    """The stacks that leaves go through a stage in, the largest first.

    Args:
        groups: the sizes that there are graphs for, 1 among them.
    """
    runs: list[range] = []
    for group in sorted(groups, reverse=True):
        start = runs[-1].stop if runs else 0
        runs += [range(at, at + group) for at in range(start, leaves - group + 1, group)]
    return runs


def _parents(wave: Wave, leaves: range, count: int) -> list[int]:
    """The leaves of a wave that some of ``count`` leaves go on from; where paths branch, each keeps its sign."""
    if wave.leaves in (1, count):
        return [0 if wave.leaves == 1 else leaf for leaf in leaves]
    under = count // wave.leaves
    return [2 * (leaf // 2 // under) + leaf % 2 for leaf in leaves]


def _last_uses(wave: Wave, runs: Sequence[range], count: int) -> list[int]:
    """For each run of a wave, the number of the last of the next stage's runs that goes on from it."""
    owners = [number for number, (size, _) in enumerate(wave.runs) for _ in range(size)]
    last = [0] * len(wave.runs)
    for number, leaves in enumerate(runs):
        for parent in _parents(wave, leaves, count):
            last[owners[parent]] = number
    return last


def _gather(
    forward: Forward[Replica], batch: Batch, wave: Wave, leaves: range, count: int
) -> tuple[np.ndarray | None, list[np.ndarray]]:
    """The activation that some of ``count`` leaves go on from, and what of it was copied together."""
    if not wave.runs[0][1]:
        return None, []
    parents = _parents(wave, leaves, count)
    start = 0
    for size, arrays in wave.runs:
        if parents == list(range(start, start + size)):
            return arrays[0], []
        start += size
    rows = batch.shape.batch
    gathered = forward.pool.take((len(leaves) * rows, *wave.runs[0][1][0].shape[1:]))
    for at, parent in enumerate(parents):
        gathered[at * rows : (at + 1) * rows] = wave.outputs(parent, 0, rows)
    return gathered, [gathered]
