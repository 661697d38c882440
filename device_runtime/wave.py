"""All leaves on their way through the stages together: where their activations lie, and their step through one stage.

A *signed leaf* is a path of perturbations with + or −; their order is path 0 +, path 0 −, path 1 +, … Graphs that take
several at once (adapters: small weights over a base that all share) read the base once for a stack of them; graphs that
take one (full parameters: each leaf has weights of its own) run leaf by leaf.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from device_runtime.directions import Direction
from device_runtime.forward import Batch, Forward
from device_runtime.manifest import StageSpec
from device_runtime.replica import Replica


@dataclass(frozen=True)
class Wave:
    """Activations of all signed leaves between two stages.

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


def advance(forward: Forward[Replica], batch: Batch, stage: int, wave: Wave, perturbation: Perturbation) -> Wave:
    """All leaves through one stage; each path diverges where it first meets trained weights. ``wave`` is used up."""
    spec = forward.manifest.stages[stage]
    trained = forward.weights.trainable_in([stage])
    base = forward.widened([index for index in spec.tensors if index not in trained])  # once, for all runs
    if trained:
        advanced = _advance_perturbed(forward, batch, spec, trained, base, wave, perturbation)
    else:
        runs = (
            (size, forward.run(spec, forward.grouped(batch, size), arrays[0] if arrays else None, base))
            for size, arrays in wave.runs
        )
        advanced = Wave(wave.paths, tuple(runs))
    forward.release_widened(base)
    release(forward, wave)
    return advanced


def release(forward: Forward[Replica], wave: Wave) -> None:
    """Give a wave's arrays back to the pool."""
    for _, arrays in wave.runs:
        forward.release(arrays)


def _advance_perturbed(
    forward: Forward[Replica],
    batch: Batch,
    spec: StageSpec,
    trained: Sequence[int],
    base: Mapping[int, np.ndarray],
    wave: Wave,
    perturbation: Perturbation,
) -> Wave:
    replica, directions = forward.weights, perturbation.directions
    kernel = replica.kernel(perturbation.distribution)
    runs: list[tuple[int, list[np.ndarray]]] = []
    first = 0
    groups = forward.groups(batch)
    if spec.constants:  # of graphs with constants one is held at a time: all runs take the same
        groups = [max(size for size in groups if not 2 * len(directions) % size)]
    for size in partition(2 * len(directions), groups):
        buffers = {index: _Signed(forward, replica.tensor(index).shape, size) for index in trained}
        pairs = directions[first // 2 : (first + max(size, 2)) // 2]
        for pair, direction in enumerate(pairs):
            for index, buffer in buffers.items():
                plus, minus = buffer.leaf(2 * pair), buffer.leaf(2 * pair + 1)
                kernel.shift_pair(replica.trainable[index], perturbation.offsets, direction, index, plus, minus)
        for run in range(max(1, 2 // size)):
            weights = {**base, **{index: buffer.arrays[run] for index, buffer in buffers.items()}}
            hidden, copied = _gather(forward, batch, wave, range(first, first + size), len(directions))
            runs.append((size, forward.run(spec, forward.grouped(batch, size), hidden, weights)))
            forward.release(copied)
            first += size
        forward.release([array for buffer in buffers.values() for array in buffer.arrays])
    return Wave(len(directions), tuple(runs))


def partition(signed: int, groups: Sequence[int]) -> list[int]:
    """Sizes of the stacks that an even number of signed leaves goes through a stage in, the largest first.

    A size of 1 stands for the two runs of a path, + and −.

    Args:
        groups: the sizes that there are graphs for: 1, and even ones.
    """
    sizes = []
    for group in sorted(groups, reverse=True):
        count, signed = divmod(signed, group)
        sizes += [group] * count if group > 1 else [1] * (count // 2)
    return sizes


class _Signed:
    """One tensor's perturbed copies for a run of several leaves, or for the two runs of one path."""

    def __init__(self, forward: Forward[Replica], shape: tuple[int, ...], size: int) -> None:
        self.stacked = size > 1
        take = forward.pool.take
        self.arrays = [take((size, *shape[1:]))] if self.stacked else [take(shape), take(shape)]

    def leaf(self, signed: int) -> np.ndarray:
        """Where a signed leaf's copy goes."""
        return self.arrays[0][signed : signed + 1] if self.stacked else self.arrays[signed]


def _gather(
    forward: Forward[Replica], batch: Batch, wave: Wave, leaves: range, paths: int
) -> tuple[np.ndarray | None, list[np.ndarray]]:
    """The activation that some signed leaves of ``paths`` paths go on from, and what of it was copied together."""
    if not wave.runs[0][1]:
        return None, []
    under = paths // max(wave.paths, 1)
    parents = [(2 * (leaf // 2 // under) + leaf % 2) if wave.paths else 0 for leaf in leaves]
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
