"""A job: its settings, and the plan of each of its rounds."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace

from fedspzo.device_runtime.errors import PlanError
from fedspzo.device_runtime.protocol.plan import Block, Plan

#: What of a job's blocks may follow what devices measure.
ADAPTABLE = ("rates", "counts", "scales")


@dataclass(frozen=True)
class Job:
    """What a job's rounds have in common.

    Attributes:
        rounds: rounds to run.
        cohort: results that close a round.
        over_selection: devices asked, as a multiple of the cohort, so that stragglers need not be waited for.
        sampling: how they are chosen, one of :data:`fedspzo.broker.rounds.sampling.SAMPLINGS`.
        quorum: results that suffice when the deadline has passed.
        deadline: seconds a round waits for results.
        seed: all randomness of the job derives from it.
        shared, distribution, steps, examples, epsilon, blocks: see ``protocol.plan.Plan``; the learning
            rates are those of the first round.
        final_rate: what the learning rates fall to, linearly over the rounds, as a share of the first.
        digest_every: rounds between comparisons of digests.
        energy: whether devices are asked what a round takes.
        sides, pool, rebase: see :class:`fedspzo.device_runtime.protocol.plan.Plan`.
        first_every: the first block is perturbed in every so many rounds, and frozen in those between, in which
            devices keep its activations.
        votes: whether a scalar counts by its sign alone, and the majority's sign is the step (FeedSign, arXiv
            2501.17610).
        adapt: what of the blocks follows what is measured, of :data:`ADAPTABLE` (``rounds.adaptive``).
    """

    rounds: int
    cohort: int
    over_selection: float
    sampling: str
    quorum: int
    deadline: float
    seed: int
    shared: bool
    distribution: str
    steps: int
    examples: int
    epsilon: float
    blocks: tuple[Block, ...]
    final_rate: float
    digest_every: int
    energy: bool = False
    sides: int = 2
    pool: int = 0
    rebase: int = 0
    first_every: int = 1
    votes: bool = False
    adapt: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raises PlanError when the job contradicts itself."""
        if self.first_every < 1 or (self.first_every > 1 and len(self.blocks) == 1):
            raise PlanError("the first of several blocks may be perturbed every so many rounds, at least every round")
        if not set(self.adapt) <= set(ADAPTABLE):
            raise PlanError(f"a job adapts some of {', '.join(ADAPTABLE)}, not '{', '.join(self.adapt)}'")
        if "counts" in self.adapt and (self.sides != 1 or len(self.blocks) == 1):
            raise PlanError("counts adapt among several blocks that are measured one-sided: with --split and --sides 1")
        if self.votes and not self.shared:
            raise PlanError("devices can only vote on directions that they share")

    @property
    def asked(self) -> int:
        """Devices asked in a round."""
        return math.ceil(self.cohort * self.over_selection)


def plan_round(job: Job, round: int) -> Plan:
    """The plan of a round.

    Raises:
        PlanError: the job's settings contradict themselves.
    """
    rate = 1.0 - (1.0 - job.final_rate) * (round - 1) / job.rounds
    first, *others = (replace(block, learning_rate=rate * block.learning_rate) for block in job.blocks)
    if round % job.first_every:
        first = replace(first, fanout=0)
    return Plan(
        round=round,
        base_seed=derive(job.seed, round, "plan"),
        shared=job.shared,
        distribution=job.distribution,
        steps=job.steps,
        examples=job.examples,
        epsilon=job.epsilon,
        blocks=(first, *others),
        deadline=job.deadline,
        digest=round % job.digest_every == 0,
        energy=job.energy,
        sides=job.sides,
        pool=job.pool,
        rebase=job.rebase,
    )


def derive(seed: int, round: int, purpose: str) -> int:
    """64 bits that depend on nothing but the arguments: all of a job's randomness comes from here."""
    message = f"{seed}/{round}/{purpose}".encode()
    return int.from_bytes(hashlib.blake2b(message, digest_size=8, person=b"fedspzo round 1").digest(), "little")
