"""The order in which a step's leaves go through the network.

Where each perturbation has weights of its own to run on (full parameters), path by path, depth first: no more
activations are held than those that the next paths start from. Where leaves share what is read or prepared for a stage
(graphs that take several leaves, a base to be widened or packed), all together, stage by stage.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from fedspzo.device_runtime.directions.format import Direction
from fedspzo.device_runtime.model.manifest import Manifest
from fedspzo.device_runtime.protocol.plan import Block, Plan
from fedspzo.device_runtime.replica.weights import Replica
from fedspzo.device_runtime.step.branches import Passage, Perturbation, both_signs
from fedspzo.device_runtime.step.runner import Batch, Forward


@dataclass(frozen=True)
class Leg:
    """Some leaves on their way through one block, or one-sided from a block to the end.

    Attributes:
        block: the block's index among those that are perturbed.
        passages: through the stages from the block's first trained one on.
        again: whether the activations that it starts from are needed once more.
        last: whether it ends with the losses.
    """

    block: int
    passages: Sequence[Passage]
    again: bool
    last: bool


def plan_legs(
    forward: Forward[Replica],
    batch: Batch,
    plan: Plan,
    source: str,
    step: int,
    offsets: Sequence[Sequence[Direction]],
) -> list[Leg]:
    """The legs of a local step; the arguments are those of ``measure_step``.

    Two-sided, in the order of the scalars. One-sided, the centre comes first, then the blocks' leaves from the last
    block to the first, so that activations are let go of one by one.
    """
    manifest = forward.manifest
    perturbed = [block for block, found in enumerate(plan.blocks) if found.fanout]
    starts = [*first_trained(manifest, plan.blocks), len(manifest.stages)]
    by_path = goes_by_path(manifest, batch.shape.batch, batch.shape.length)

    def leg(number: int, stop: int, shifts: Sequence[Direction | None]) -> Leg:
        """From a block to before another, the first of them shifted."""
        passages = []
        for at in range(number, stop):
            own = shifts if at == number else [None] * len(shifts)
            block, stages = perturbed[at], range(starts[at], starts[at + 1])
            perturbation = Perturbation(offsets[block], own, plan.distribution)
            passages += [Passage.of(forward, batch, block, stage, perturbation) for stage in stages]
        return Leg(number, passages, False, stop == len(perturbed))

    def directions(number: int, paths: Iterable[tuple[int, ...]]) -> list[Direction]:
        size = plan.epsilon * plan.blocks[perturbed[number]].scale
        return [Direction(plan.seed(source, step, path), size) for path in paths]

    numbers = range(len(perturbed))
    if plan.sides == 1:
        legs = [leg(number, number + 1, [None]) for number in numbers]
        for number in reversed(numbers):
            shifts = directions(number, plan.paths(perturbed[number]))
            for together in [[shift] for shift in shifts] if by_path else [shifts]:
                legs.append(leg(number, len(perturbed), together))
    else:
        listed = [(number, list(plan.paths(perturbed[number]))) for number in numbers]
        if by_path:  # each path of each block on its own, before the paths under it
            each = sorted((path, number) for number, paths in listed for path in paths)
            listed = [(number, [path]) for path, number in each]
        legs = [leg(number, number + 1, both_signs(directions(number, paths))) for number, paths in listed]
    return [replace(found, again=_comes_again(found.block, legs[at + 1 :])) for at, found in enumerate(legs)]


def first_trained(manifest: Manifest, blocks: Sequence[Block]) -> list[int]:
    """The first stage with something to train of each block that is perturbed."""
    found, start = [], 0
    for block in blocks:
        stages = range(start, block.stop)
        if block.fanout:
            found.append(
                next(s for s in stages if any(manifest.tensors[i].trainable for i in manifest.stages[s].tensors))
            )
        start = block.stop
    return found


def goes_by_path(manifest: Manifest, batch: int, length: int) -> bool:
    """Whether leaves share nothing in a shape but the activations that they start from."""
    together = any(s.groups > 1 for s in manifest.shapes if (s.batch, s.length) == (batch, length))
    tensors = (manifest.tensors[index] for stage in manifest.stages for index in stage.tensors)
    prepared = any(spec.dtype != "float32" and not spec.trainable for spec in tensors)
    return not together and not prepared and not any(stage.constants for stage in manifest.stages)


def _comes_again(block: int, later: Iterable[Leg]) -> bool:
    """Whether another leg of a block comes before its activations are replaced by those of another path."""
    return next((leg.block == block for leg in later if leg.block <= block), False)
