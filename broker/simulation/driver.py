"""The driver of simulated jobs: the command, the planner and studies take closed rounds from it.

A way to train is a state and what a round makes of it, as a federated algorithm is in fedjax (arXiv 2108.02117):
:class:`fedspzo.broker.simulation.zeroth_order.ZerothOrder` keeps a journal as the live server does,
:class:`fedspzo.broker.simulation.first_order.FirstOrder` weights. A caller stops when it wants to, and may continue
with the same state.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from fedspzo.broker.privacy.accounting import tell_spent
from fedspzo.broker.rounds.aggregate import ClosedRound
from fedspzo.broker.rounds.job import Job, plan_round
from fedspzo.broker.rounds.sampling import Candidate, Sample, choose_cohort
from fedspzo.broker.simulation.fleet import Fleet
from fedspzo.device_runtime.errors import PlanError
from fedspzo.device_runtime.protocol.plan import Plan
from fedspzo.device_runtime.replica.weights import Replica

#: Times that a round's plan goes out to further devices before the simulation gives up.
TRIES = 100
#: Kind of the error of a training whose loss is not finite.
DIVERGED = "simulation.diverged"


@dataclass(frozen=True)
class SimulatedRound(ClosedRound):
    """What became of a simulated round; its seconds are virtual.

    Attributes:
        asked: devices asked.
        flops: operations of matrix products that its devices did.
        device_bytes: that a device of the cohort gets and sends; 0 where seeds and scalars travel.
    """

    asked: int = 0
    flops: int = 0
    device_bytes: int = 0


@dataclass(frozen=True)
class Attendance:
    """Who answers in a round.

    Attributes:
        seconds: device → virtual time until its answer, of those whose answers count.
        closed: virtual time until the round closes.
        asked: devices asked.
    """

    seconds: Mapping[str, float]
    closed: float
    asked: int


def attend(
    job: Job, plan: Plan, fleet: Fleet, candidates: Mapping[str, Candidate], sample: Sample = choose_cohort
) -> Attendance:
    """Whose answers close a round, as the live server decides it: the first ones, or a quorum at a deadline.

    Args:
        sample: chooses the devices that the round asks.

    Raises:
        PlanError: too few devices ever answer.
    """
    asked: dict[str, float] = {}  # device → when it answers
    now = 0.0
    for _ in range(TRIES):
        others = {name: candidate for name, candidate in candidates.items() if name not in asked}
        wanted = job.asked - sum(when < math.inf for when in asked.values())
        for device in sample(job, plan.round, others, wanted):
            asked[device] = now + fleet.seconds(plan.round, device, plan.steps)
        now += plan.deadline
        answered = sorted((when, device) for device, when in asked.items() if when <= now)
        if len(answered) >= job.fewest:
            counted = answered[: job.cohort]
            waits = len(counted) < min(job.cohort, len(asked))  # for somebody who may yet answer
            return Attendance({device: when for when, device in counted}, now if waits else counted[-1][0], len(asked))
    raise PlanError(
        "simulation.no-quorum",
        f"round {plan.round} has no quorum of {job.fewest} after {now:g} virtual seconds, because too few devices"
        " answer; lower --quorum, --dropout or the time of a step",
    )


def attend_round(
    job: Job,
    plan: Plan,
    fleet: Fleet,
    served: Mapping[str, int],
    sample: Sample = choose_cohort,
    expelled: Callable[[str], object] = lambda device: None,
) -> Attendance:
    """:func:`attend` by those who are there.

    Args:
        served: device → the last round that it had a part in.
        expelled: why a device was sent away; None where it was not.

    Raises:
        PlanError: too few devices ever answer.
    """
    there = fleet.present(plan.round)
    candidates = {
        device: replace(found, served=served.get(device, 0))
        for device, found in there.items()
        if expelled(device) is None
    }
    return attend(job, plan, fleet, candidates, sample)


class Training(Protocol):
    """A way to train: the state after the rounds that are closed, and what the next round makes of it."""

    @property
    def round(self) -> int:
        """The last closed round."""

    def served(self) -> dict[str, int]:
        """Device → the last round that its result counted in."""

    def plan(self, round: int) -> Plan:
        """The plan of the next round."""

    def affords(self, plan: Plan) -> bool:
        """Whether the job's privacy budget has room for a round."""

    def expelled(self, device: str) -> str | None:
        """Why a device was sent away; None where it was not."""

    def train(self, plan: Plan, attendance: Attendance) -> SimulatedRound:
        """Close a round with what its devices measure.

        Raises:
            PlanError: too few devices measure a finite loss (kind :data:`DIVERGED`).
            FedSPZOError: a device's measurement failed.
        """

    def advance(self, replica: Replica) -> None:
        """Take a replica, which stands at an earlier round of this training or at θ₀, to the last closed one."""


class WithoutJournal:
    """What trainings have in common that keep no scalars: plans are the job's, and nobody is judged by what it sent."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._served: dict[str, int] = {}

    def served(self) -> dict[str, int]:
        """See :class:`Training`."""
        return dict(self._served)

    def plan(self, round: int) -> Plan:
        """See :class:`Training`."""
        return plan_round(self._job, round)

    def affords(self, plan: Plan) -> bool:
        """Always: there is no noise, and nothing is promised."""
        return True

    def expelled(self, device: str) -> None:
        """Nobody is sent away: there are no scalars to judge by."""


def simulate(job: Job, fleet: Fleet, training: Training, sample: Sample = choose_cohort) -> Iterator[SimulatedRound]:
    """The rounds that are not closed yet, each computed when it is drawn; none beyond the job's privacy budget.

    Raises:
        PlanError: too few devices ever answer.
        FedSPZOError: as the training.
    """
    served = training.served()
    for number in range(training.round + 1, job.rounds + 1):
        plan = training.plan(number)
        if not training.affords(plan):
            tell_spent(job, number - 1)
            return
        closed = training.train(plan, attend_round(job, plan, fleet, served, sample, training.expelled))
        served.update(dict.fromkeys(closed.devices, number))
        yield closed
