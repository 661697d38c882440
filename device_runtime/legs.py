"""The order in which a step's leaves go through the network.

Where each perturbation has weights of its own to run on (full parameters), path by path, depth first: no more
activations are held than those that the next paths start from. Where leaves share what is read or prepared for a stage
(graphs that take several leaves, a base to be widened or packed), all together, stage by stage.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

from device_runtime.directions import Direction
from device_runtime.forward import Batch, Forward
from device_runtime.manifest import Manifest
from device_runtime.plan import Block, Plan
from device_runtime.replica import Replica
from device_runtime.wave import Passage, Perturbation


@dataclass(frozen=True)
class Leg:
    """Some paths on their way through one block.

    Attributes:
        block: the block's index among those that are perturbed.
        paths: how many.
        passages: through the stages from the block's first trained one to that of the next block.
        again: whether the activations that it starts from are needed once more.
        last: whether it ends with the losses.
    """

    block: int
    paths: int
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
    """The legs of a local step, in the order of the leaves; the arguments are those of ``measure_step``."""
    manifest = forward.manifest
    perturbed = [block for block, found in enumerate(plan.blocks) if found.fanout]
    starts = [*first_trained(manifest, plan.blocks), len(manifest.stages)]
    order = _by_path(plan, perturbed) if goes_by_path(manifest, batch.shape.batch, batch.shape.length) else None
    legs: list[Leg] = []
    for number, paths in order or [(number, list(plan.paths(block))) for number, block in enumerate(perturbed)]:
        block = perturbed[number]
        size = plan.epsilon * plan.blocks[block].scale
        directions = [Direction(plan.seed(source, step, path), size) for path in paths]
        perturbation = Perturbation(offsets[block], directions, plan.distribution)
        stages = range(starts[number], starts[number + 1])
        passages = [Passage.of(forward, batch, stage, perturbation) for stage in stages]
        legs.append(Leg(number, len(paths), passages, False, number == len(perturbed) - 1))
    return [
        Leg(leg.block, leg.paths, leg.passages, _comes_again(leg.block, islice(legs, at + 1, None)), leg.last)
        for at, leg in enumerate(legs)
    ]


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


def _by_path(plan: Plan, perturbed: Sequence[int]) -> list[tuple[int, list[tuple[int, ...]]]]:
    """Each path of each perturbed block on its own, before the paths under it."""
    listed = [(path, number) for number, block in enumerate(perturbed) for path in plan.paths(block)]
    return [(number, [path]) for path, number in sorted(listed)]


def _comes_again(block: int, later: Iterable[Leg]) -> bool:
    """Whether another leg of a block comes before its activations are replaced by those of another path."""
    return next((leg.block == block for leg in later if leg.block <= block), False)
