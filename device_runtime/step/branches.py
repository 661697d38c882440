"""Branches on their way through the stages: where their activations lie, and their step through one stage.

A *branch* is a path of perturbations, two-sided with + or − (path 0 +, path 0 −, path 1 +, …). One that has passed the
last stage is a *query*: a perturbed evaluation of the loss.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from fedspzo.device_runtime.replica.weights import Replica
from fedspzo.device_runtime.step.objectives import Outputs
from fedspzo.device_runtime.step.runner import Batch, Forward
from fedspzo.device_runtime.step.stage_pass import PerturbedWeights, StagePass


@dataclass(frozen=True)
class Activations:
    """What a stage gave for some branches, or what the last one gave: losses and logits.

    Attributes:
        runs: for each run of the stage, the branches in it and the graph's outputs, stacked by branch; while nothing is
            perturbed, one branch stands for all.
    """

    runs: tuple[tuple[int, list[np.ndarray]], ...]

    @property
    def branches(self) -> int:
        """How many branches there are."""
        return sum(size for size, _ in self.runs)

    def outputs(self, branch: int, output: int, batch: int) -> np.ndarray:
        """A branch's rows of an output, [batch, …]."""
        for size, arrays in self.runs:
            if branch < size:
                return arrays[output][branch * batch : (branch + 1) * batch]
            branch -= size
        raise IndexError("there is no such branch")

    def ends(self, batch: Batch) -> Iterator[Outputs]:
        """Of each branch that has passed the last stage, what it gave for the examples that count."""
        count, none = batch.count, np.zeros((batch.count, 0), np.float32)
        for size, (losses, *logits) in self.runs:
            for start in range(0, size * batch.shape.batch, batch.shape.batch):
                rows = slice(start, start + count)
                yield Outputs(losses[rows].astype(np.float64), logits[0][rows] if logits else none)


#: Before the first stage.
START = Activations(((1, []),))


def advance(
    forward: Forward[Replica],
    batch: Batch,
    stage_pass: StagePass,
    before: Activations,
    perturbed: Iterator[PerturbedWeights],
    keep: bool = False,
) -> Activations:
    """All branches through one stage; paths part where they first meet perturbed weights.

    Args:
        before: what the branches start from.
        perturbed: gives the weights of each run.
        keep: leave ``before`` as it is; else its arrays are released.
    """
    spec = stage_pass.stage
    base = forward.widened([index for index in spec.tensors if index not in stage_pass.trained])  # once, for all runs
    runs: list[tuple[int, list[np.ndarray]]] = []
    if stage_pass.runs:
        count = len(stage_pass.perturbations.by_branch)
        last = _last_uses(before, stage_pass.runs, count)
        for number, branches in enumerate(stage_pass.runs):
            weights = next(perturbed)
            hidden, copied = _gather(forward, batch, before, branches, count)
            grouped = forward.grouped(batch, len(branches))
            written, alike = bool(stage_pass.packed), before.branches == 1
            outputs = forward.run(spec, grouped, hidden, {**base, **weights}, packed=written, alike=alike)
            runs.append((len(branches), outputs))
            forward.release([*copied, *(weights[index] for index in weights.keys() - stage_pass.packed.keys())])
            for used, (_, arrays) in enumerate(before.runs):
                if last[used] == number and not keep:
                    forward.release(arrays)
    else:
        for size, arrays in before.runs:
            hidden = arrays[0] if arrays else None
            runs.append((size, forward.run(spec, forward.grouped(batch, size), hidden, base)))
            if not keep:
                forward.release(arrays)
    forward.release_widened(base)
    return Activations(tuple(runs))


def release(forward: Forward[Replica], activations: Activations) -> None:
    """Release all arrays of some activations."""
    for _, arrays in activations.runs:
        forward.release(arrays)


def _parents(before: Activations, branches: range, count: int) -> list[int]:
    """The branches that some of ``count`` branches start from; where paths part, each keeps its sign."""
    if before.branches in (1, count):
        return [0 if before.branches == 1 else branch for branch in branches]
    under = count // before.branches
    return [2 * (branch // 2 // under) + branch % 2 for branch in branches]


def _last_uses(before: Activations, runs: Sequence[range], count: int) -> list[int]:
    """For each run of the stage before, the number of the last of the next stage's runs that starts from it."""
    owners = [number for number, (size, _) in enumerate(before.runs) for _ in range(size)]
    last = [0] * len(before.runs)
    for number, branches in enumerate(runs):
        for parent in _parents(before, branches, count):
            last[owners[parent]] = number
    return last


def _gather(
    forward: Forward[Replica], batch: Batch, before: Activations, branches: range, count: int
) -> tuple[np.ndarray | None, list[np.ndarray]]:
    """The activation that some of ``count`` branches start from, and what of it was copied together."""
    if not before.runs[0][1]:
        return None, []
    parents = _parents(before, branches, count)
    start = 0
    for size, arrays in before.runs:
        if parents == list(range(start, start + size)):
            return arrays[0], []
        start += size
    rows = batch.shape.batch
    gathered = forward.scratch.take((len(branches) * rows, *before.runs[0][1][0].shape[1:]))
    for at, parent in enumerate(parents):
        gathered[at * rows : (at + 1) * rows] = before.outputs(parent, 0, rows)
    return gathered, [gathered]
