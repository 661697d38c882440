"""The order in which a step's branches go through the network.

Where each perturbation has weights of its own to run on (full parameters), path by path, depth first: no more
activations are held than those that the next paths start from. Where branches share what is read or prepared for a
stage (graphs that take several branches, a base to be widened or packed), all together, stage by stage.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from fedspzo.device_runtime.directions.format import Direction
from fedspzo.device_runtime.model.manifest import Manifest
from fedspzo.device_runtime.protocol.plan import Block, Plan
from fedspzo.device_runtime.replica.weights import Replica
from fedspzo.device_runtime.step.runner import Batch, Forward
from fedspzo.device_runtime.step.stage_pass import Perturbations, StagePass, both_signs


@dataclass(frozen=True)
class BranchPass:
    """The pass of some branches through consecutive stages: one block, or one-sided all from a block to the end.

    Attributes:
        block: the first block's index among those that are perturbed.
        stages: its passes through the stages, from the block's first trained one on.
        starts_again: whether another pass starts from the same activations.
        ends: whether it ends with the losses.
    """

    block: int
    stages: Sequence[StagePass]
    starts_again: bool
    ends: bool


def order_passes(
    forward: Forward[Replica],
    batch: Batch,
    plan: Plan,
    owner: str,
    step: int,
    offsets: Sequence[Sequence[Direction]],
    groups: Sequence[int],
) -> list[BranchPass]:
    """The passes of a local step; the arguments are those of ``measure_step``, and groups that fit into memory.

    Two-sided, in the order of the scalars. One-sided, the centre comes first, then the blocks' branches from the last
    block to the first, so that activations are let go of one by one.
    """
    manifest = forward.manifest
    perturbed = [block for block, found in enumerate(plan.blocks) if found.fanout]
    starts = [*first_trained(manifest, plan.blocks), len(manifest.stages)]
    by_path = goes_by_path(manifest, batch.shape.batch, batch.shape.length)

    def between(number: int, stop: int, first: Sequence[Direction | None]) -> BranchPass:
        """From a block to before another, with perturbations of the first of them."""
        found = []
        for at in range(number, stop):
            own = first if at == number else [None] * len(first)
            block, stages = perturbed[at], range(starts[at], starts[at + 1])
            perturbations = Perturbations(offsets[block], own, plan.distribution)
            found += [StagePass.of(forward, batch, block, stage, perturbations, groups) for stage in stages]
        return BranchPass(number, found, False, stop == len(perturbed))

    def directions(number: int, paths: Iterable[tuple[int, ...]]) -> list[Direction]:
        size = plan.epsilon * plan.blocks[perturbed[number]].scale
        return [Direction(plan.seed(owner, step, path), size) for path in paths]

    numbers = range(len(perturbed))
    if plan.sides == 1:
        passes = [between(number, number + 1, [None]) for number in numbers]
        for number in reversed(numbers):
            drawn: list[Direction | None] = [*directions(number, plan.paths(perturbed[number]))]
            alone = by_path and starts[number] + 1 < len(manifest.stages)  # after the last stage nothing large is held
            for together in [[direction] for direction in drawn] if alone else [drawn]:
                passes.append(between(number, len(perturbed), together))
    else:
        listed = [(number, list(plan.paths(perturbed[number]))) for number in numbers]
        if by_path:  # each path of each block on its own, before the paths under it
            each = sorted((path, number) for number, paths in listed for path in paths)
            listed = [(number, [path]) for path, number in each]
        passes = [between(number, number + 1, both_signs(directions(number, paths))) for number, paths in listed]
    return [replace(each, starts_again=_starts_again(each.block, passes[n + 1 :])) for n, each in enumerate(passes)]


def in_turn(manifest: Manifest, passes: Sequence[BranchPass], together: bool) -> list[tuple[int, StagePass]]:
    """The numbers of passes, and their stages, in the order in which they are run.

    Args:
        together: all passes advance stage by stage, so that what is read for a stage is read once a step; else one
            after the other. Passes that start where others end still do.
    """
    turns = [(number, stage_pass) for number, each in enumerate(passes) for stage_pass in each.stages]
    if together:
        places = {id(stage): place for place, stage in enumerate(manifest.stages)}
        turns.sort(key=lambda turn: places[id(turn[1].stage)])
    return turns


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
    """Whether branches share nothing in a shape but the activations that they start from."""
    together = any(s.groups > 1 for s in manifest.shapes if (s.batch, s.length) == (batch, length))
    tensors = (manifest.tensors[index] for stage in manifest.stages for index in stage.tensors)
    prepared = any(spec.dtype != "float32" and not spec.trainable for spec in tensors)
    return not together and not prepared and not any(stage.constants for stage in manifest.stages)


def _starts_again(block: int, later: Iterable[BranchPass]) -> bool:
    """Whether another pass of a block comes before its activations are replaced by those of another path."""
    return next((each.block == block for each in later if each.block <= block), False)
