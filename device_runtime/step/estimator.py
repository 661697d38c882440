"""FedSPZO's estimator (arXiv 2502.10239, section 3) for any number of blocks.

Weights in memory are never perturbed: for each stage and each perturbation, W + offsets ± ε·scale·z is written into
buffers of a stage's size and the stage runs on them. The perturbations of a block start from the same activations of
the block before it. One-sided, these are not perturbed, and the loss at the centre serves all differences (as FZOO has
it for whole models, arXiv 2506.09034).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np

from fedspzo.device_runtime.data.store import DataStore
from fedspzo.device_runtime.directions.format import Direction, derive_seed
from fedspzo.device_runtime.platform.profiling import TOKENISE, forward_block
from fedspzo.device_runtime.privacy.release import make_release
from fedspzo.device_runtime.protocol.objective import Objective
from fedspzo.device_runtime.protocol.plan import Plan
from fedspzo.device_runtime.replica.weights import Replica, check_blocks
from fedspzo.device_runtime.step.answers import measures_answers, query_answers
from fedspzo.device_runtime.step.branches import Activations, advance, release
from fedspzo.device_runtime.step.budget import fitting_groups
from fedspzo.device_runtime.step.objectives import check_examples, find_measure
from fedspzo.device_runtime.step.order import goes_by_path, in_turn, order_passes
from fedspzo.device_runtime.step.prefix_cache import Prefix, PrefixCache
from fedspzo.device_runtime.step.runner import Batch, Forward
from fedspzo.device_runtime.step.stage_pass import perturbed_weights


@dataclass(frozen=True)
class Measurement:
    """What a device measured for a plan.

    Attributes:
        scalars: float32, projected gradients (l₊ − l₋)/2ε or (l − l₀)/ε, as many as the plan asks for.
        loss: mean over steps of the mean (l₊ + l₋)/2, or of l₀, where l is what the plan's objective says.
        examples: examples used over all steps.
    """

    scalars: tuple[float, ...]
    loss: float
    examples: int


def measure(
    forward: Forward[Replica],
    store: DataStore,
    plan: Plan,
    device: str,
    cache: PrefixCache | None = None,
    measured: int = 0,
) -> Measurement:
    """Carry out a plan on a device's examples.

    Several local steps need no changed weights: the steps so far are more directions in the sum that is added to each
    stage's weights.

    Args:
        cache: keeps activations of the stages before the first that the plan perturbs.
        measured: rounds that the device has measured in before; what a plan with ``replay`` draws goes by it.

    Raises:
        PlanError: the plan does not fit the bundle, or its objective not the examples.
    """
    check_blocks(forward.bundle, plan)
    check_examples(_objective(plan), store)
    if plan.noise:
        with forward.recorder.phase(TOKENISE):
            batch = forward.batch(store, draw_examples(plan, store, device, 0))
        queries = _query(forward, batch, plan, plan.owner(device), 0, [[] for _ in plan.blocks], cache)
        noisy, loss = make_release(plan, *_differences(plan, np.stack(queries, axis=1)))
        return Measurement(tuple(noisy.tolist()), loss, plan.batch)  # whatever the device has: that would tell of it
    owner = plan.owner(device)
    offsets: list[list[Direction]] = [[] for _ in plan.blocks]
    scalars: list[float] = []
    losses: list[float] = []
    examples = 0
    for step in range(plan.steps):
        found = []
        for drawn in draw_batches(plan, store, device, step, measured):
            with forward.recorder.phase(TOKENISE):
                batch = forward.batch(store, drawn)
            found.append(_query(forward, batch, plan, owner, step, offsets, cache))
            examples += batch.count
        step_scalars, loss = _means(plan, [np.concatenate(each) for each in zip(*found, strict=True)])
        scalars.extend(step_scalars)
        losses.append(loss)
        for block, directions in zip(offsets, plan.updates(owner, step, step_scalars), strict=True):
            block.extend(directions)
    return Measurement(tuple(scalars), float(np.mean(losses)), examples)


def draw_examples(plan: Plan, store: DataStore, device: str, step: int) -> np.ndarray:
    """Indices of the examples that a device draws for a local step: always the same for the same plan."""
    return store.sample(derive_seed(plan.base_seed, f"examples of {device}", step, 0, ()), plan.batch)


def draw_batches(plan: Plan, store: DataStore, device: str, step: int, measured: int) -> list[np.ndarray]:
    """Indices of the examples of each batch of a local step: of one batch; where a plan replays, of several.

    Then the device goes through its examples in an order of its own, a batch in each round that it measures in, and
    again from the start. A step takes the batches of its last rounds as well (latent replay, arXiv 1912.01100): the
    same batches, so that their activations are kept.
    """
    if not plan.replay:
        return [draw_examples(plan, store, device, step)]
    order = store.sample(derive_seed(0, f"order of the examples of {device}", 0, 0, ()), len(store))
    batches = [order[start : start + plan.batch] for start in range(0, len(order), plan.batch)]
    numbers = (number % len(batches) for number in range(max(0, measured - plan.replay), measured + 1))
    return [batches[number] for number in dict.fromkeys(numbers)]


def measure_step(
    forward: Forward[Replica],
    batch: Batch,
    plan: Plan,
    owner: str,
    step: int,
    offsets: Sequence[Sequence[Direction]],
    cache: PrefixCache | None = None,
) -> tuple[list[float], float]:
    """One step of the estimator: its scalars, and the mean loss.

    Args:
        offsets: for each block, directions that are added to its weights in any case.
        owner: see :meth:`Plan.owner <fedspzo.device_runtime.protocol.plan.Plan.owner>`.
        cache: see :func:`measure`.
    """
    return _means(plan, _query(forward, batch, plan, owner, step, offsets, cache))


def measure_examples(
    forward: Forward[Replica], store: DataStore, plan: Plan, owner: str = ""
) -> tuple[np.ndarray, np.ndarray]:
    """What the first local step measures on each example of a store by itself.

    A device's own scalars are the mean of those of the examples that it draws.

    Returns:
        Scalars, float64 [examples, scalars of a step], and losses, float64 [examples].
    """
    check_examples(_objective(plan), store)
    scalars, losses = np.zeros((len(store), plan.measured)), np.zeros(len(store))
    for indices, batch in forward.batches(store):
        found = _query(forward, batch, plan, owner, 0, [[] for _ in plan.blocks], None)
        scalars[indices], losses[indices] = _differences(plan, np.stack(found, axis=1))
    return scalars, losses


def _query(
    forward: Forward[Replica],
    batch: Batch,
    plan: Plan,
    owner: str,
    step: int,
    offsets: Sequence[Sequence[Direction]],
    cache: PrefixCache | None,
) -> list[np.ndarray]:
    """The costs of all queries of a step, float64 [examples] each, in the order of the scalars; the centre first."""
    if measures_answers(plan):
        return query_answers(forward, batch, plan, owner, step, offsets)
    costs_of = find_measure(_objective(plan), forward.manifest.task)
    passes = order_passes(forward, batch, plan, owner, step, offsets, fitting_groups(forward, batch, plan))
    prefix = Prefix(forward, forward.manifest.stages.index(passes[0].stages[0].stage), cache)
    with forward.recorder.phase(forward_block(0)):
        reached = {-1: Activations(((1, prefix.run(batch)),))}  # block → activations after it
    losses: list[tuple[int, np.ndarray]] = []  # of each query, with the block that it perturbs last
    halfway: dict[int, Activations] = {}  # number of a pass → activations after its latest stage
    together = (
        plan.sides == 1
        and forward.streams
        and not goes_by_path(forward.manifest, batch.shape.batch, batch.shape.length)
    )
    turns = in_turn(forward.manifest, passes, together)
    in_order = [stage_pass for _, stage_pass in turns]
    with closing(perturbed_weights(forward, in_order, forward.weights.ahead)) as perturbed:
        for number, stage_pass in turns:
            branch_pass, first = passes[number], stage_pass is passes[number].stages[0]
            before = reached[branch_pass.block - 1] if first else halfway[number]
            with forward.recorder.phase(forward_block(stage_pass.block)):
                keep = branch_pass.starts_again and first
                halfway[number] = advance(forward, batch, stage_pass, before, perturbed, keep)
            if stage_pass is not branch_pass.stages[-1]:
                continue
            activations = reached[branch_pass.block] = halfway.pop(number)
            if branch_pass.ends:
                losses += [(branch_pass.block, costs_of(end, batch.known)) for end in activations.ends(batch)]
                release(forward, activations)
    if plan.sides == 1:  # the last block's came before the others'
        losses = [losses[0], *sorted(losses[1:], key=lambda found: found[0])]
    return [each for _, each in losses]


def _objective(plan: Plan) -> Objective | None:
    """What a plan measures; None for the loss."""
    return plan.objective[0] if plan.objective else None


def _means(plan: Plan, losses: Sequence[np.ndarray]) -> tuple[list[float], float]:
    """The scalars of a step and its mean loss, from the losses [examples] of each query."""
    scalars, centre = _differences(plan, np.stack(losses).mean(axis=1)[np.newaxis])
    return [float(np.float32(scalar)) for scalar in scalars[0]], float(centre[0])


def _differences(plan: Plan, losses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """From losses of queries [examples, queries] to scalars [examples, scalars] and losses [examples]."""
    if plan.sides == 1:
        return (losses[:, 1:] - losses[:, :1]) / plan.epsilon, losses[:, 0]
    above, below = losses[:, ::2], losses[:, 1::2]
    return (above - below) / (2 * plan.epsilon), losses.mean(axis=1)
