"""Losses of answers that perturbed models generate: how far each is from right, by a metric.

A generated token depends on those before it, so branches share nothing: each perturbation's model generates on its own,
with weights in buffers of the perturbed tensors' size. All draw with the same noise (see
:class:`fedspzo.device_runtime.step.sampling.Sampling`), so that what differs between two answers is the weights' doing.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from fedspzo.device_runtime.data.store import DataStore
from fedspzo.device_runtime.directions.format import Direction
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.model.stored import Stored
from fedspzo.device_runtime.platform.profiling import PERTURB, forward_block
from fedspzo.device_runtime.protocol.plan import Plan
from fedspzo.device_runtime.replica.weights import Replica
from fedspzo.device_runtime.step.generation import generate
from fedspzo.device_runtime.step.runner import Forward
from fedspzo.device_runtime.step.sampling import Sampling

#: An answer and what is right → how far the answer is from right.
Judge = Callable[[str, Sequence[str]], float]


@dataclass(frozen=True)
class Perturbed:
    """A replica's weights, some of them replaced; see :class:`fedspzo.device_runtime.step.runner.ModelWeights`."""

    bundle: Bundle
    replica: Replica
    arrays: Mapping[int, np.ndarray]

    def tensor(self, index: int) -> Stored:
        """A tensor as it is stored; not to be written."""
        return self.arrays[index] if index in self.arrays else self.replica.tensor(index)


def query_answers(
    forward: Forward[Replica],
    texts: DataStore,
    plan: Plan,
    owner: str,
    step: int,
    offsets: Sequence[Sequence[Direction]],
    sampling: Sampling,
    judge: Judge,
) -> list[np.ndarray]:
    """The losses of all queries of a local step on some texts, float64 [texts] each, in the order of the scalars.

    Args:
        owner, step, offsets: see :func:`fedspzo.device_runtime.step.estimator.measure_step`.
        sampling: how tokens are chosen, by every query alike.
        judge: the loss of one answer.
    """
    losses = []
    for own in queries(plan, owner, step):
        with _perturbed(forward, plan, offsets, own) as perturbed:
            answers = generate(perturbed, texts, sampling)
        losses.append(np.array([judge(*pair) for pair in zip(answers, texts.references, strict=True)]))
    return losses


def queries(plan: Plan, owner: str, step: int) -> Iterator[dict[int, Direction]]:
    """What is added to the weights of each block for each query, ±ε included: block → direction.

    One-sided, the centre comes first, then each block's directions; two-sided, each path through all blocks, + and −.
    """

    def direction(block: int, path: tuple[int, ...], sign: int = 1) -> Direction:
        return Direction(plan.seed(owner, step, path), sign * plan.epsilon * plan.blocks[block].scale)

    if plan.sides == 1:
        yield {}
        for block in range(len(plan.blocks)):
            yield from ({block: direction(block, path)} for path in plan.paths(block))
        return
    perturbed = [block for block, found in enumerate(plan.blocks) if found.fanout]
    for path, sign in itertools.product(plan.paths(len(plan.blocks) - 1), (1, -1)):
        yield {block: direction(block, path[: block + 1], sign) for block in perturbed}


@contextmanager
def _perturbed(
    forward: Forward[Replica], plan: Plan, offsets: Sequence[Sequence[Direction]], own: Mapping[int, Direction]
) -> Iterator[Forward[Perturbed]]:
    """The graphs over weights that some directions are added to."""
    replica, arrays = forward.weights, dict[int, np.ndarray]()
    kernel = replica.kernel(plan.distribution)
    with forward.recorder.phase(PERTURB):
        for block, stages in enumerate(plan.stages()):
            added = [*offsets[block], *([own[block]] if block in own else [])]
            stored = {i: replica.trainable[i] for i in replica.trainable_in(stages) if added and i not in arrays}
            made = {index: forward.scratch.take(weights.shape) for index, weights in stored.items()}
            kernel.shift(stored, added, made)
            arrays |= made
    with forward.recorder.phase(forward_block(0)), forward.holding(Perturbed(forward.bundle, replica, arrays)) as view:
        yield view
    forward.release(list(arrays.values()))
