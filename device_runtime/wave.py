"""Leaves on their way through the stages: where their activations lie, and their step through one stage.

A *signed leaf* is a path of perturbations with + or −; their order is path 0 +, path 0 −, path 1 +, … Graphs that take
several at once (adapters: small weights over a base that all share) read the base once for a stack of them; graphs that
take one (full parameters: each leaf has weights of its own) run leaf by leaf. The weights of a run are made just before
it, or where there is a core to spare while the run before it goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, wait
from dataclasses import dataclass, replace

import numpy as np

from device_runtime.directions import Direction
from device_runtime.forward import Batch, Forward
from device_runtime.manifest import StageSpec
from device_runtime.phases import IDLE, PERTURB
from device_runtime.replica import Replica


@dataclass(frozen=True)
class Wave:
    """Activations of the signed leaves that are on their way, between two stages.

    Attributes:
        paths: paths that have diverged; 0 while nothing is perturbed and one activation stands for all.
        runs: for each run of the last stage, the signed leaves in it and the graph's outputs, stacked by leaf.
    """

    paths: int
    runs: tuple[tuple[int, list[np.ndarray]], ...]

    def outputs(self, signed: int, output: int, batch: int) -> np.ndarray:
        """A signed leaf's rows of an output."""
        for size, arrays in self.runs:
            if signed < size:
                return arrays[output][signed * batch : (signed + 1) * batch]
            signed -= size
        raise IndexError("there is no such leaf")


#: Before the first stage.
START = Wave(0, ((1, []),))


@dataclass(frozen=True)
class Perturbation:
    """How a block's weights are perturbed.

    Attributes:
        offsets: directions that they are shifted by in any case.
        directions: one for each path of the block.
        distribution: of the directions.
    """

    offsets: Sequence[Direction]
    directions: Sequence[Direction]
    distribution: str


@dataclass(frozen=True)
class Passage:
    """How the leaves go through one stage.

    Attributes:
        stage: the stage.
        trained: its trained tensors.
        perturbation: of its block.
        runs: signed leaves that go through together; none where nothing is trained, and all run as they came.
        packed: tensor index → where the engine has perturbed weights in its own layout; empty where they are inputs.
    """

    stage: StageSpec
    trained: Sequence[int]
    perturbation: Perturbation
    runs: Sequence[range]
    packed: Mapping[int, np.ndarray]

    @classmethod
    def of(cls, forward: Forward[Replica], batch: Batch, stage: int, perturbation: Perturbation) -> Passage:
        """The passage through a stage, with the graphs that there are for this batch."""
        spec = forward.manifest.stages[stage]
        trained = forward.weights.trainable_in([stage]) if perturbation.directions else []
        signed, groups = 2 * len(perturbation.directions), forward.groups(batch)
        if spec.constants:  # of graphs with constants one is held at a time: all runs take the same
            groups = [max(size for size in groups if not signed % size)]
        # The engine has room for one leaf's weights, and computes with them while others would be made ahead.
        alone = trained and groups == [1] and forward.weights.ahead is None
        packed = forward.packed(batch.shape, spec, trained) if alone else {}
        return cls(spec, trained, perturbation, partition(signed, groups) if trained else [], packed)


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
        direction = perturbation.directions[leaves[0] // 2]
        signed = replace(direction, coefficient=-direction.coefficient if leaves[0] % 2 else direction.coefficient)
        return arrays, lambda: kernel.shift(stored, [*perturbation.offsets, signed], arrays)
    arrays = {index: forward.pool.take((len(leaves), *shape[1:])) for index, shape in shapes.items()}

    def fill() -> None:
        for at in range(0, len(leaves), 2):
            plus, minus = ({index: array[k : k + 1] for index, array in arrays.items()} for k in (at, at + 1))
            direction = perturbation.directions[(leaves[0] + at) // 2]
            kernel.shift_pair(stored, perturbation.offsets, direction, plus, minus)

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
        paths = len(passage.perturbation.directions)
        last = _last_uses(wave, passage.runs, paths)
        for number, leaves in enumerate(passage.runs):
            weights = next(perturbed)
            hidden, copied = _gather(forward, batch, wave, leaves, paths)
            grouped = forward.grouped(batch, len(leaves))
            runs.append((len(leaves), forward.run(spec, grouped, hidden, {**base, **weights})))
            forward.release([*copied, *(weights[index] for index in weights.keys() - passage.packed.keys())])
            for used, (_, arrays) in enumerate(wave.runs):
                if last[used] == number and not keep:
                    forward.release(arrays)
    else:
        paths = wave.paths
        for size, arrays in wave.runs:
            hidden = arrays[0] if arrays else None
            runs.append((size, forward.run(spec, forward.grouped(batch, size), hidden, base)))
            forward.release(arrays)
    forward.release_widened(base)
    return Wave(paths, tuple(runs))


def release(forward: Forward[Replica], wave: Wave) -> None:
    """Give a wave's arrays back to the pool."""
    for _, arrays in wave.runs:
        forward.release(arrays)


def partition(signed: int, groups: Sequence[int]) -> list[range]:
    """The stacks that an even number of signed leaves goes through a stage in, the largest first.

    Args:
        groups: the sizes that there are graphs for: 1, and even ones.
    """
    runs: list[range] = []
    for group in sorted(groups, reverse=True):
        start = runs[-1].stop if runs else 0
        runs += [range(at, at + group) for at in range(start, signed - group + 1, group)]
    return runs


def _parents(wave: Wave, leaves: range, paths: int) -> list[int]:
    """The signed leaves of a wave that signed leaves of ``paths`` paths go on from."""
    under = paths // max(wave.paths, 1)
    return [(2 * (leaf // 2 // under) + leaf % 2) if wave.paths else 0 for leaf in leaves]


def _last_uses(wave: Wave, runs: Sequence[range], paths: int) -> list[int]:
    """For each run of a wave, the number of the last of the next stage's runs that goes on from it."""
    owners = [number for number, (size, _) in enumerate(wave.runs) for _ in range(size)]
    last = [0] * len(wave.runs)
    for number, leaves in enumerate(runs):
        for parent in _parents(wave, leaves, paths):
            last[owners[parent]] = number
    return last


def _gather(
    forward: Forward[Replica], batch: Batch, wave: Wave, leaves: range, paths: int
) -> tuple[np.ndarray | None, list[np.ndarray]]:
    """The activation that some signed leaves of ``paths`` paths go on from, and what of it was copied together."""
    if not wave.runs[0][1]:
        return None, []
    parents = _parents(wave, leaves, paths)
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
