"""Costs of answers that perturbed models generate: how far each is from right, by a metric.

A generated token depends on those before it, so branches share nothing: each perturbation's model generates on its own,
with weights in buffers of the perturbed tensors' size. All draw with the same noise (see
:class:`fedspzo.device_runtime.step.sampling.Sampling`), so that what differs between two answers is the weights' doing.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import entry_points

import numpy as np

from fedspzo.device_runtime.data.store import DataStore
from fedspzo.device_runtime.directions.format import Direction, derive_seed
from fedspzo.device_runtime.errors import PlanError
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.model.metrics import METRICS, TEXT
from fedspzo.device_runtime.model.stored import Stored
from fedspzo.device_runtime.model.task import Task
from fedspzo.device_runtime.platform.profiling import PERTURB, forward_block
from fedspzo.device_runtime.protocol.objective import METRIC
from fedspzo.device_runtime.protocol.plan import Plan
from fedspzo.device_runtime.replica.weights import Replica
from fedspzo.device_runtime.step.generation import generate
from fedspzo.device_runtime.step.objectives import check_task, failed
from fedspzo.device_runtime.step.runner import Batch, Forward
from fedspzo.device_runtime.step.sampling import Sampling

#: An answer and the right ones → how far the answer is from them.
Judge = Callable[[str, Sequence[str]], float]
#: Entry points under which people's own metrics are found, where they are installed on the device: functions of an
#: answer and the right ones, from 0 to 1, the larger, the better the answer is.
GROUP = "fedspzo.metrics"
#: Metrics of answers that devices know: all of texts that are not of losses.
ANSWERED = tuple(name for name in METRICS[TEXT] if name != "perplexity")


@dataclass
class Perturbed:
    """A replica's weights, some of them replaced; see :class:`fedspzo.device_runtime.step.runner.ModelWeights`."""

    bundle: Bundle
    replica: Replica
    arrays: Mapping[int, np.ndarray]

    def tensor(self, index: int) -> Stored:
        """A tensor as it is stored; not to be written."""
        return self.arrays[index] if index in self.arrays else self.replica.tensor(index)


def measures_answers(plan: Plan) -> bool:
    """Whether a plan's objective is a metric of generated answers."""
    return bool(plan.objective) and plan.objective[0].name.startswith(METRIC)


def find_judge(name: str, task: Task) -> Judge:
    """The cost of an answer by a metric: what its value lacks.

    Raises:
        PlanError: the task generates nothing, or this device knows no such metric.
    """
    check_task(METRIC + name, task)
    if name in ANSWERED:
        compute = METRICS[TEXT][name].compute
        return lambda answer, right: 1.0 - compute([answer], [right])
    for point in entry_points(group=GROUP, name=name):
        try:
            own: Callable[[str, Sequence[str]], float] = point.load()
        except Exception as error:
            raise failed(METRIC + name, error) from error
        return lambda answer, right: 1.0 - _own(name, own, answer, right)
    raise PlanError(
        "plan.unknown-metric",
        f"this device does not know the metric '{name}', but {', '.join(ANSWERED)}; install a package with such an"
        f" entry point in the group {GROUP}, or update the program",
    )


def _own(name: str, own: Callable[[str, Sequence[str]], float], answer: str, right: Sequence[str]) -> float:
    try:
        value = float(own(answer, right))
    except Exception as error:
        raise failed(METRIC + name, error) from error
    if not 0.0 <= value <= 1.0:
        raise PlanError("plan.own-metric", f"{METRIC}{name} gives something else than a number from 0 to 1")
    return value


def query_answers(
    forward: Forward[Replica],
    batch: Batch,
    plan: Plan,
    owner: str,
    step: int,
    offsets: Sequence[Sequence[Direction]],
) -> list[np.ndarray]:
    """The costs of all queries of a local step, float64 [examples] each, in the order of the scalars.

    Args:
        plan: whose objective is a metric of answers.
        owner, step, offsets: see :func:`fedspzo.device_runtime.step.estimator.measure_step`.

    Raises:
        PlanError: as :func:`find_judge`, or the examples have no right answers.
    """
    (objective,) = plan.objective
    judge = find_judge(objective.name.removeprefix(METRIC), forward.manifest.task)
    known = batch.known
    if not known.references:
        raise PlanError("plan.no-right-answers", f"{objective.name} needs examples with answers; give labelled lines")
    texts = DataStore(batch.ids[: batch.count], batch.lengths[: batch.count], known.starts, known.labels)
    noise = derive_seed(plan.base_seed, "answers", step, 0, ())  # the same for all queries of a step
    sampling = Sampling(objective.temperature, seed=noise)
    costs = []
    for own in queries(plan, owner, step):
        with _perturbed(forward, plan, offsets, own) as perturbed:
            answers = generate(perturbed, texts, sampling)
        costs.append(np.array([judge(*pair) for pair in zip(answers, known.references, strict=True)]))
    return costs


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
    try:
        weights = Perturbed(forward.bundle, replica, arrays)
        with forward.recorder.phase(forward_block(0)), forward.holding(weights) as view:
            yield view
    finally:  # a device that declines the plan has its memory back
        forward.release(list(arrays.values()))
