"""Plans and journal entries, and the arithmetic that turns scalars into directions on the weights.

FedSPZO (arXiv 2502.10239) cuts the network into two consecutive blocks; here any number of blocks have a fan-out each.
A *leaf* is one path of fan-out indices, one for each block; a device measures one scalar per leaf and local step.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from device_runtime.directions import DISTRIBUTIONS, Direction, derive_seed
from device_runtime.errors import PlanError

MAX_SCALARS = 4096
#: Bounds of a plan's real numbers: far beyond any use, and no product of them overflows.
_TINY, _HUGE = 1e-9, 1e9


@dataclass(frozen=True)
class Block:
    """A run of consecutive stages that share a perturbation count.

    Attributes:
        stop: the stage after its last one (it starts where the block before it stops).
        fanout: perturbations of this block under each perturbation of the block before it (the paper: K₁ = P₁,
            K₂ = P₂/P₁); 0 for a first block that is frozen: not perturbed, not trained.
        scale: the perturbation is ε·scale·z.
        learning_rate: step along the block's gradient estimate.
    """

    stop: int
    fanout: int
    scale: float
    learning_rate: float


@dataclass(frozen=True)
class Plan:
    """What a round asks of its devices.

    Attributes:
        round: the round's number, from 1.
        base_seed: 64-bit seed that all seeds of the round derive from.
        shared: whether all devices measure the same directions (then scalars are averaged) or each its own.
        distribution: of the directions, one of ``directions.DISTRIBUTIONS``.
        steps: local steps.
        examples: examples a step draws (at most the bundle's batch).
        epsilon: size ε of the perturbation.
        blocks: the cut of the network.
        deadline: seconds that the round waits for results.
        digest: whether the result must carry the digest of the replica that the round starts from.
        energy: whether the result should say what it took, from devices that know.
    """

    round: int
    base_seed: int
    shared: bool
    distribution: str
    steps: int
    examples: int
    epsilon: float
    blocks: tuple[Block, ...]
    deadline: float
    digest: bool
    energy: bool = False

    def __post_init__(self) -> None:
        """Raises PlanError when the plan contradicts itself."""
        if self.distribution not in DISTRIBUTIONS:
            raise PlanError(f"the plan asks for unknown directions '{self.distribution}'")
        moved = self.blocks[1:] if self.blocks and self.blocks[0].fanout == 0 else self.blocks
        if not moved or min(self.round, self.steps, self.examples, *(b.fanout for b in moved)) < 1:
            raise PlanError(
                "a plan's round, steps, examples and fan-outs are at least 1, and it has a block; only the first of"
                " several blocks may have a fan-out of 0, which freezes it"
            )
        if not all(_TINY <= size <= _HUGE for size in (self.epsilon, self.deadline, *(b.scale for b in self.blocks))):
            raise PlanError(f"a plan's epsilon, scales and deadline lie between {_TINY:g} and {_HUGE:g}")
        if not all(abs(block.learning_rate) <= _HUGE for block in self.blocks):
            raise PlanError(f"a plan's learning rates are at most {_HUGE:g}")
        if any(later.stop <= earlier.stop for earlier, later in itertools.pairwise((Block(0, 1, 1, 0), *self.blocks))):
            raise PlanError("a plan's blocks each hold at least one stage, in order")
        if self.scalars > MAX_SCALARS:
            raise PlanError(f"a plan asks for at most {MAX_SCALARS} scalars, not {self.scalars}")

    @property
    def leaves(self) -> int:
        """Leaves of one local step: Π fan-outs of the blocks that are not frozen."""
        return math.prod(max(block.fanout, 1) for block in self.blocks)

    @property
    def scalars(self) -> int:
        """Scalars in a result: steps · leaves."""
        return self.steps * self.leaves

    def source(self, device: str) -> str:
        """Whose directions a device measures: its own id, or "" for the shared ones."""
        return "" if self.shared else device

    def paths(self, block: int) -> Iterator[tuple[int, ...]]:
        """Paths of a block's directions in their order; there are P_b = K₁·…·K_b, and none in a frozen block."""
        if self.blocks[block].fanout == 0:
            return iter(())
        return itertools.product(*(range(max(b.fanout, 1)) for b in self.blocks[: block + 1]))

    def seed(self, source: str, step: int, path: tuple[int, ...]) -> int:
        """Seed of the direction at a path."""
        return derive_seed(self.base_seed, source, step, len(path) - 1, path)

    def updates(self, source: str, step: int, scalars: Sequence[float], weight: float = 1.0) -> list[list[Direction]]:
        """The step that a local step's scalars stand for: for each block, directions to add to its weights.

        The gradient estimate of block b is the mean over its P_b paths of (ḡ/scale)·z, where ḡ is the mean of the
        scalars of the leaves under the path (paper, section 3).

        Args:
            source: whose directions they are.
            step: the local step.
            scalars: projected gradients of the leaves in order.
            weight: factor on the step.
        """
        updates = []
        for index, block in enumerate(self.blocks):
            paths = list(self.paths(index))
            under = self.leaves // max(len(paths), 1)
            factor = -weight * block.learning_rate / (self.leaves * block.scale)
            updates.append(
                [
                    Direction(
                        self.seed(source, step, path),
                        float(np.float32(factor * math.fsum(scalars[i * under : (i + 1) * under]))),
                    )
                    for i, path in enumerate(paths)
                ]
            )
        return updates


@dataclass(frozen=True)
class Contribution:
    """Scalars of one source of directions in a closed round.

    Attributes:
        source: device id, or "" for shared directions.
        weight: its share of the step; shares of a round sum to 1.
        scalars: float32 [steps · leaves].
    """

    source: str
    weight: float
    scalars: tuple[float, ...]


@dataclass(frozen=True)
class Entry:
    """A closed round: with the entries before it and θ₀, it is the model."""

    plan: Plan
    contributions: tuple[Contribution, ...]

    def __post_init__(self) -> None:
        """Raises PlanError when a contribution does not answer the plan."""
        if any(len(contribution.scalars) != self.plan.scalars for contribution in self.contributions):
            raise PlanError(f"an entry's contributions have {self.plan.scalars} scalars each")

    @property
    def round(self) -> int:
        """The round's number."""
        return self.plan.round

    def updates(self) -> list[list[Direction]]:
        """For each block, the directions that applying the entry adds, in their order."""
        updates: list[list[Direction]] = [[] for _ in self.plan.blocks]
        leaves = self.plan.leaves
        for contribution in self.contributions:
            for step in range(self.plan.steps):
                scalars = contribution.scalars[step * leaves : (step + 1) * leaves]
                step_updates = self.plan.updates(contribution.source, step, scalars, contribution.weight)
                for block, directions in zip(updates, step_updates, strict=True):
                    block.extend(directions)
        return updates
