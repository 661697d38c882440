"""Rounds as pure functions of plain values: the live server, recovery and simulation all call these."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from device_runtime.errors import PlanError
from device_runtime.plan import Block, Contribution, Entry, Plan
from device_runtime.wire import Energy, Result, fingerprint

#: Largest scalar, loss or time that a result may have.
LARGEST = 1e9
#: What of a job's blocks may follow what devices measure.
ADAPTABLE = ("rates", "counts", "scales")


@dataclass(frozen=True)
class Job:
    """What a job's rounds have in common.

    Attributes:
        rounds: rounds to run.
        cohort: results that close a round.
        over_selection: devices asked, as a multiple of the cohort, so that stragglers need not be waited for.
        sampling: how they are chosen, one of :data:`SAMPLINGS`.
        quorum: results that suffice when the deadline has passed.
        deadline: seconds a round waits for results.
        seed: all randomness of the job derives from it.
        shared, distribution, steps, examples, epsilon, blocks: see :class:`device_runtime.plan.Plan`; the learning
            rates are those of the first round.
        final_rate: what the learning rates fall to, linearly over the rounds, as a share of the first.
        digest_every: rounds between comparisons of digests.
        energy: whether devices are asked what a round takes.
        sides, pool, rebase: see :class:`device_runtime.plan.Plan`.
        first_every: the first block is perturbed in every so many rounds, and frozen in those between, in which
            devices keep its activations.
        votes: whether a scalar counts by its sign alone, and the majority's sign is the step (FeedSign, arXiv
            2501.17610).
        adapt: what of the blocks follows what is measured, of :data:`ADAPTABLE` (:mod:`broker.adaptive`).
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


@dataclass(frozen=True)
class Candidate:
    """What sampling knows of a device.

    Attributes:
        served: last round that its result counted in, 0 when there is none.
        battery, charging: see :class:`device_runtime.wire.Sync`.
        joules: that a round took it, in the mean; 0 while that is not known.
    """

    served: int = 0
    battery: float = 1.0
    charging: bool = False
    joules: float = 0.0


@dataclass(frozen=True)
class Spending:
    """What a round took the devices that said so.

    Attributes:
        joules, uncertainty: of all of them together.
        devices: how many they are.
        estimated: how many of them did not measure.
    """

    joules: float
    uncertainty: float
    devices: int
    estimated: int


@dataclass(frozen=True)
class ClosedRound:
    """What became of a round.

    Attributes:
        round: its number.
        loss: mean loss that its devices measured.
        devices: those whose results counted.
        seconds: from opening to closing.
        step_seconds: mean time of a device's local step.
        spending: joules; None when no device said.
    """

    round: int
    loss: float
    devices: tuple[str, ...]
    seconds: float
    step_seconds: float
    spending: Spending | None = None


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
        base_seed=_hash(job.seed, round, "plan"),
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


#: Name → what devices are ordered by before chance decides; the first are asked.
SAMPLINGS: dict[str, Callable[[Candidate], tuple[float, ...]]] = {
    "uniform": lambda device: (),
    "freshness": lambda device: (device.served,),  # whose examples have been waiting longest
    # Who has power first; among equals who needs fewest joules, in powers of two, and who has yet to say.
    "energy": lambda device: (
        not device.charging,
        -round(device.battery, 1),
        round(math.log2(max(device.joules, 1e-3))),
    ),
}


def choose_cohort(job: Job, number: int, candidates: Mapping[str, Candidate], count: int) -> tuple[str, ...]:
    """``count`` devices to ask in a round, or all there are. It depends on nothing but the arguments."""

    def order(device: str) -> tuple[tuple[float, ...], int]:
        return SAMPLINGS[job.sampling](candidates[device]), _hash(job.seed, number, device)

    return tuple(sorted(candidates, key=order)[: max(count, 0)])


def refusal(plan: Plan, cohort: Collection[str], device: str, result: Result) -> str | None:
    """Why a result does not count, or None when it does."""
    if result.round != plan.round:
        return f"it is for round {result.round}, and round {plan.round} is open"
    if device not in cohort:
        return f"the device was not asked in round {plan.round}"
    if result.plan != fingerprint(plan):
        return f"it answers another plan of round {result.round}"
    if len(result.scalars) != plan.scalars:
        return f"it has {len(result.scalars)} scalars, and the plan asks for {plan.scalars}"
    if not 1 <= result.examples <= plan.steps * plan.examples:
        return f"it claims {result.examples} examples, and the plan allows {plan.steps * plan.examples}"
    if len(result.energy) > 1 or any(energy.uncertainty < 0 for energy in result.energy):
        return "what it says of its energy makes no sense"
    joules = [number for energy in result.energy for number in (energy.joules, energy.uncertainty)]
    if any(abs(number) > LARGEST for number in (*result.scalars, result.loss, result.seconds, *joules)):
        return f"it has a number beyond {LARGEST:g}, which no sound measurement gives"
    return None


def close_round(plan: Plan, results: Mapping[str, Result], votes: bool = False) -> Entry:
    """The journal entry that a round's results make: a mean weighted by examples.

    With shared directions the scalars themselves are averaged; otherwise each device's scalars are kept, with its share
    of the examples as the weight. The order of arrival does not matter. With votes, what is averaged are the signs, and
    the entry has the sign of their mean.
    """
    total = sum(result.examples for result in results.values())
    shares = {device: results[device].examples / total for device in sorted(results)}
    if plan.shared:
        # Rounded to float32 here, as the wire does: every replica applies the same numbers.
        scalars = {device: np.array(results[device].scalars, np.float32) for device in shares}
        if votes:
            scalars = {device: np.sign(own) for device, own in scalars.items()}
        mean = np.array(
            [math.fsum(shares[d] * float(scalars[d][i]) for d in shares) for i in range(plan.scalars)], np.float32
        )
        mean = np.sign(mean) if votes else mean
        return Entry(plan, (Contribution("", 1.0, tuple(mean.tolist())),))
    return Entry(plan, tuple(Contribution(d, share, results[d].scalars) for d, share in shares.items()))


def describe_round(plan: Plan, results: Mapping[str, Result], seconds: float) -> ClosedRound:
    """What became of a round that took so many seconds."""
    return ClosedRound(
        round=plan.round,
        loss=math.fsum(result.loss for result in results.values()) / len(results),
        devices=tuple(sorted(results)),
        seconds=seconds,
        step_seconds=math.fsum(result.seconds for result in results.values()) / (len(results) * plan.steps),
        spending=_add_up([energy for result in results.values() for energy in result.energy]),
    )


def _add_up(energies: Sequence[Energy]) -> Spending | None:
    if not energies:
        return None
    return Spending(
        joules=math.fsum(energy.joules for energy in energies),
        uncertainty=math.hypot(*(energy.uncertainty for energy in energies)),
        devices=len(energies),
        estimated=sum(energy.estimated for energy in energies),
    )


def _hash(seed: int, round: int, purpose: str) -> int:
    message = f"{seed}/{round}/{purpose}".encode()
    return int.from_bytes(hashlib.blake2b(message, digest_size=8, person=b"fedspzo round 1").digest(), "little")
