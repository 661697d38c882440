"""Plans, and the arithmetic that turns scalars into directions on the weights.

FedSPZO (arXiv 2502.10239) cuts the network into two consecutive blocks; here any number of blocks have a fan-out each.
A *path* of fan-out indices, one for each block, leads to a direction of its last block. Two-sided, paths are nested,
and a device measures one scalar for each path through all blocks. One-sided, each block is perturbed alone, around
activations that are not, and a device measures one scalar for each direction; the loss at the centre serves them all.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from fedspzo.device_runtime.directions.format import DISTRIBUTIONS, Direction, derive_seed
from fedspzo.device_runtime.errors import PlanError
from fedspzo.device_runtime.model.modes import LEAST_SUMMED, MASKED, MODES
from fedspzo.device_runtime.protocol.objective import Objective

MAX_SCALARS = 4096
#: Most sums of coefficients, over all blocks, of a job that rebases: they travel in one message.
MAX_SUMS = 15_000
#: Bounds of a plan's real numbers: far beyond any use, and no product of them overflows.
_TINY, _HUGE = 1e-9, 1e9
#: Most devices whose noise is counted on: their cost is a sum over them.
MAX_SHARES = 1 << 16
#: Results that a device masks in one round at most, each along other directions.
MOST_ATTEMPTS = 64
#: Earlier batches that a step takes again at most.
MAX_REPLAY = 63
#: Whose data noise hides, and that in words.
HIDDEN = {"device": "all data of a device", "example": "one example of a device"}
UNITS = tuple(HIDDEN)


@dataclass(frozen=True)
class Block:
    """A run of consecutive stages that share a perturbation count.

    Attributes:
        stop: the stage after its last one (it starts where the block before it stops).
        fanout: perturbations of this block, two-sided under each perturbation of the block before it (the paper:
            K₁ = P₁, K₂ = P₂/P₁); 0 for a first block that is frozen: not perturbed, not trained.
        scale: the perturbation is ε·scale·z.
        learning_rate: step along the block's gradient estimate.
    """

    stop: int
    fanout: int
    scale: float
    learning_rate: float


@dataclass(frozen=True)
class Masking:
    """That a round's results are sent masked, so that the server learns sums alone.

    Attributes:
        mode: "groups" (a sum of each of several groups) or "secure" (one sum).
        attempt: of the round, from 1; each has another base seed.
        clip: largest L2 norm of a device's scalars, which each device cuts its own to.
        least, most: devices in a sum.
    """

    mode: str
    attempt: int
    clip: float
    least: int
    most: int

    def __post_init__(self) -> None:
        """Raises PlanError when it is not a way to mask."""
        if self.mode not in MASKED:
            raise PlanError("plan.unknown-mode", f"masked results are for the modes {', '.join(MASKED)}, not this")
        if self.attempt < 1 or not _TINY <= self.clip <= _HUGE:
            raise PlanError("plan.masking", f"attempts count from 1, and clips lie between {_TINY:g} and {_HUGE:g}")
        if not LEAST_SUMMED <= self.least <= self.most:
            raise PlanError("plan.group-too-small", f"a sum is of {LEAST_SUMMED} devices at least; raise the group")


@dataclass(frozen=True)
class Noise:
    """That devices clip what they measure and add noise to it: a share each of what makes a sum private.

    Attributes:
        unit: whose data the noise hides, one of :data:`UNITS`: a "device", or an "example".
        clip: largest L2 norm of what one adds, see :mod:`fedspzo.device_runtime.privacy.release`.
        fit: how fine the whole numbers are, see :class:`fedspzo.device_runtime.privacy.quantise.Grid`.
        variance: of each device's noise, in squares of these numbers.
        shares: devices whose noise makes up what the promise needs.
    """

    unit: str
    clip: float
    fit: int
    variance: int
    shares: int

    def __post_init__(self) -> None:
        """Raises PlanError when it is no noise that devices can add."""
        if self.unit not in UNITS:
            raise PlanError("plan.unknown-unit", f"noise hides one of {', '.join(UNITS)}, not this")
        if not _TINY <= self.clip <= _HUGE or not 1 <= self.fit <= 1 << 20:
            raise PlanError("plan.noise", f"noise has a clip between {_TINY:g} and {_HUGE:g}, and a fit up to 2²⁰")
        if not 1 <= self.shares <= MAX_SHARES:
            raise PlanError(
                "plan.shares-out-of-range",
                f"the noise of 1 to {MAX_SHARES} devices is counted on, not of {self.shares}; set honest",
            )
        if not 1 <= self.variance <= 1 << 40:
            raise PlanError("plan.noise", "the variance of noise lies between 1 and 2⁴⁰")


@dataclass(frozen=True)
class Plan:
    """What a round asks of its devices.

    Attributes:
        round: the round's number, from 1.
        base_seed: 64-bit seed that all seeds of the round derive from.
        shared: whether all devices measure the same directions (then scalars are averaged) or each its own.
        distribution: of the directions, one of ``directions.DISTRIBUTIONS``.
        steps: local steps.
        batch: examples a step draws (at most the bundle's batch).
        epsilon: size ε of the perturbation.
        blocks: the cut of the network.
        deadline: seconds that the round waits for results.
        digest: whether the result must carry the digest of the replica that the round starts from.
        energy: whether the result should say what it took, from devices that know.
        sides: 2 for differences (l₊ − l₋)/2ε, nested as in the paper; 1 for (l − l₀)/ε around the centre.
        seed_pool: size of the finite pool that all seeds come from (FedKSeed, arXiv 2312.06353); 0 for no such pool.
        rebase_every: after each round whose number it divides, weights are made again from θ₀ and the sums of
            coefficients (:mod:`fedspzo.device_runtime.protocol.sums`); 0 for never.
        aggregate: how the results become the entry; "" as before plans said it, a mean weighted by examples. Devices
            apply entries and need not know it.
        bound: largest root mean square of a device's scalars that counts: larger ones are scaled down to it; 0 for
            no bound.
        masking: how devices mask their results, once; empty where they do not.
        noise: what noise devices add, once; empty where they add none.
        objective: what devices measure, once; empty for the loss.
        replay: earlier batches of a device that its step takes again, of which it has kept the activations.
    """

    round: int
    base_seed: int
    shared: bool
    distribution: str
    steps: int
    batch: int
    epsilon: float
    blocks: tuple[Block, ...]
    deadline: float
    digest: bool
    energy: bool = False
    sides: int = 2
    seed_pool: int = 0
    rebase_every: int = 0
    aggregate: str = ""
    bound: float = 0.0
    masking: tuple[Masking, ...] = ()
    noise: tuple[Noise, ...] = ()
    objective: tuple[Objective, ...] = ()
    replay: int = 0

    def __post_init__(self) -> None:
        """Raises PlanError when the plan contradicts itself."""
        if self.distribution not in DISTRIBUTIONS:
            known = ", ".join(DISTRIBUTIONS)
            raise PlanError("plan.unknown-distribution", f"distribution is one of {known}, not '{self.distribution}'")
        if min(self.round, self.steps, self.batch) < 1:
            raise PlanError("plan.not-positive", "a plan's round, steps and batch are at least 1")
        moved = self.blocks[1:] if self.blocks and self.blocks[0].fanout == 0 else self.blocks
        if not moved or min(block.fanout for block in moved) < 1:
            raise PlanError(
                "plan.fanout-not-positive",
                "fanouts are at least 1, except for the first of several blocks, which a fan-out of 0 freezes",
            )
        if not all(_TINY <= size <= _HUGE for size in (self.epsilon, self.deadline, *(b.scale for b in self.blocks))):
            raise PlanError(
                "plan.size-out-of-range", f"epsilon, scales and deadline lie between {_TINY:g} and {_HUGE:g}"
            )
        if not all(abs(block.learning_rate) <= _HUGE for block in self.blocks):
            raise PlanError("plan.rate-out-of-range", f"learning rates are at most {_HUGE:g}")
        if self.sides not in (1, 2):
            raise PlanError("plan.unknown-sides", f"sides is 1 or 2, not {self.sides}")
        if min(self.seed_pool, self.rebase_every) < 0:
            raise PlanError("plan.negative", "seed_pool and rebase_every are 0, for none, or more")
        if self.rebase_every and not 1 <= self.seed_pool * len(self.blocks) <= MAX_SUMS:
            raise PlanError(
                "plan.no-pool-to-rebase",
                f"rebase_every needs a seed_pool of at most {MAX_SUMS} over the number of blocks, here"
                f" {MAX_SUMS // len(self.blocks)}, and not {self.seed_pool or 'none'}",
            )
        if not 0 <= self.bound <= _HUGE:
            raise PlanError("plan.bound-out-of-range", f"a plan's bound lies between 0, for none, and {_HUGE:g}")
        if len(self.masking) > 1:
            raise PlanError("plan.masking", "a plan says once at most how results are masked")
        if self.masking and not self.shared:
            raise PlanError("plan.masked-own-directions", "results are only summed along directions that devices share")
        if len(self.noise) > 1 or (self.noise and (self.steps > 1 or not self.shared or self.energy)):
            raise PlanError(
                "plan.noise",
                "noise is for one local step along directions that devices share, without energy; set steps = 1,"
                " seeds = shared, and leave out energy",
            )
        if self.noise and self.masking and self.noise[0].shares > self.masking[0].least:
            raise PlanError(
                "plan.noise-of-more-than-a-sum",
                f"the noise of {self.noise[0].shares} devices is counted on, and a sum may be of"
                f" {self.masking[0].least}; lower honest, or raise the group",
            )
        if len(self.objective) > 1:
            raise PlanError("plan.objective", "a plan says once at most what is measured")
        if self.replay and (self.blocks[0].fanout or self.steps > 1 or self.noise):
            raise PlanError(
                "plan.replay",
                "replay takes kept activations of a frozen first block, in one local step without noise; set the first"
                " of fanouts to 0 and steps to 1, and leave out privacy, or leave out replay",
            )
        if not 0 <= self.replay <= MAX_REPLAY:
            raise PlanError("plan.replay", f"replay is from 0 to {MAX_REPLAY} earlier batches, not {self.replay}")
        if any(later.stop <= earlier.stop for earlier, later in itertools.pairwise((Block(0, 1, 1, 0), *self.blocks))):
            raise PlanError("plan.empty-block", "blocks each hold at least one stage, in order (split)")
        if (asked := self.scalars) > MAX_SCALARS:
            said = asked if asked < 1 << 64 else "far more"  # Python prints no number of thousands of digits
            raise PlanError(
                "plan.too-many-scalars",
                f"a plan asks for at most {MAX_SCALARS} scalars, not {said}; lower fanouts or steps",
            )

    @property
    def mode(self) -> str:
        """What the server sees, one of :data:`MODES`."""
        return self.masking[0].mode if self.masking else MODES[0]

    def describe(self, certified: bool) -> str:
        """What the server sees of results, in words for people.

        Args:
            certified: the job's bundle names a key that certifies devices.
        """
        if not self.masking:
            return "mode robust: the server sees each device's scalars"
        sums, devices = "one sum" if self.mode == "secure" else "sums of groups", "devices with certificates"
        if not certified:
            devices = "devices; no certificates say that these are not the server's own"
        return f"mode {self.mode}: the server sees {sums} of at least {self.masking[0].least} {devices}"

    @property
    def rebases(self) -> bool:
        """Whether weights are computed again after this round."""
        return self.rebase_every > 0 and self.round % self.rebase_every == 0

    @property
    def measured(self) -> int:
        """Scalars of one local step: Π fan-outs of the blocks that are not frozen; one-sided, their sum."""
        if self.sides == 1:
            return sum(block.fanout for block in self.blocks)
        return math.prod(max(block.fanout, 1) for block in self.blocks)

    @property
    def scalars(self) -> int:
        """Scalars in a result, of all steps."""
        return self.steps * self.measured

    @property
    def most_examples(self) -> int:
        """Examples that a result says at most."""
        return self.steps * self.batch * (1 + self.replay)

    def owner(self, device: str) -> str:
        """Whose directions a device measures: its own id, or "" for the shared ones."""
        return "" if self.shared else device

    def paths(self, block: int) -> Iterator[tuple[int, ...]]:
        """Paths of a block's directions in their order, none in a frozen block.

        Two-sided there are P_b = K₁·…·K_b, one-sided P_b = K_b, which differ in their last index alone.
        """
        if self.blocks[block].fanout == 0:
            return iter(())
        if self.sides == 1:
            return ((*(0,) * block, index) for index in range(self.blocks[block].fanout))
        return itertools.product(*(range(max(b.fanout, 1)) for b in self.blocks[: block + 1]))

    def seed(self, owner: str, step: int, path: tuple[int, ...]) -> int:
        """Seed of the direction at a path."""
        seed = derive_seed(self.base_seed, owner, step, len(path) - 1, path)
        return pool_seed(self.seed_pool, len(path) - 1, seed % self.seed_pool) if self.seed_pool else seed

    def stages(self) -> list[range]:
        """The stages of each block."""
        starts = [0, *(block.stop for block in self.blocks)]
        return [range(start, block.stop) for start, block in zip(starts, self.blocks, strict=False)]

    def updates(self, owner: str, step: int, scalars: Sequence[float], weight: float = 1.0) -> list[list[Direction]]:
        """The step that a local step's scalars stand for: for each block, directions to add to its weights.

        The gradient estimate of block b is the mean over its P_b paths of (ḡ/scale)·z, where ḡ is the mean of the
        scalars that were measured under the path (paper, section 3).

        Args:
            owner: whose directions they are.
            step: the local step.
            scalars: projected gradients in order; one-sided, of the blocks one after the other.
            weight: factor on the step.
        """
        updates, start = [], 0
        for index, block in enumerate(self.blocks):
            paths = list(self.paths(index))
            under = 1 if self.sides == 1 else self.measured // max(len(paths), 1)
            factor = -weight * block.learning_rate / (max(len(paths), 1) * under * block.scale)
            sums = [math.fsum(scalars[at : at + under]) for at in range(start, start + len(paths) * under, under)]
            updates.append(
                [
                    Direction(self.seed(owner, step, path), float(np.float32(factor * total)))
                    for path, total in zip(paths, sums, strict=True)
                ]
            )
            start += block.fanout if self.sides == 1 else 0
        return updates


def pool_seed(pool: int, block: int, index: int) -> int:
    """A seed of the pool of a block."""
    return derive_seed(pool, "pool", 0, block, (index,))
