"""The rounds of virtual devices: the live server's plans, cohorts, aggregation and journal, in virtual time."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from fedspzo.broker.rounds.adaptive import Pace
from fedspzo.broker.rounds.aggregate import ClosedRound, close_round, describe_round
from fedspzo.broker.rounds.job import Job, plan_round
from fedspzo.broker.rounds.sampling import Candidate, choose_cohort
from fedspzo.broker.server.store import ServerStore
from fedspzo.broker.simulation.fleet import Fleet
from fedspzo.broker.simulation.workers import Workers
from fedspzo.device_runtime.errors import PlanError
from fedspzo.device_runtime.protocol.messages import encode
from fedspzo.device_runtime.protocol.plan import Entry, Plan
from fedspzo.device_runtime.protocol.signing import SIGNATURE_BYTES, Scope
from fedspzo.device_runtime.protocol.sums import check_continues
from fedspzo.device_runtime.replica.journal import EMPTY

#: Times that a round's plan goes out to further devices before the simulation gives up.
TRIES = 100


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


def attend(job: Job, plan: Plan, fleet: Fleet, candidates: Mapping[str, Candidate]) -> Attendance:
    """Whose answers close a round, as the live server decides it: the first ones, or a quorum at a deadline.

    Raises:
        PlanError: too few devices ever answer.
    """
    asked: dict[str, float] = {}  # device → when it answers
    now = 0.0
    for _ in range(TRIES):
        others = {name: candidate for name, candidate in candidates.items() if name not in asked}
        wanted = job.asked - sum(when < math.inf for when in asked.values())
        for device in choose_cohort(job, plan.round, others, wanted):
            asked[device] = now + fleet.seconds(plan.round, device, plan.steps)
        now += plan.deadline
        answered = sorted((when, device) for device, when in asked.items() if when <= now)
        if len(answered) >= job.quorum:
            counted = answered[: job.cohort]
            waits = len(counted) < min(job.cohort, len(asked))  # for somebody who may yet answer
            return Attendance({device: when for when, device in counted}, now if waits else counted[-1][0], len(asked))
    raise PlanError(
        f"round {plan.round} has no quorum of {job.quorum} after {now:g} virtual seconds: too few devices are there"
        " and answer; lower --quorum, --dropout or the time of a step"
    )


def attend_round(job: Job, plan: Plan, fleet: Fleet, served: Mapping[str, int]) -> Attendance:
    """:func:`attend` by those who are there.

    Args:
        served: device → the last round that it had a part in.

    Raises:
        PlanError: too few devices ever answer.
    """
    there = fleet.present(plan.round)
    candidates = {device: replace(found, served=served.get(device, 0)) for device, found in there.items()}
    return attend(job, plan, fleet, candidates)


def simulate(
    job: Job,
    name: str,
    fleet: Fleet,
    workers: Workers,
    store: ServerStore,
    observe: Callable[[ClosedRound, Entry, int], None],
) -> Counter[str]:
    """Run the rounds that the store's journal does not have yet; it is a live server's own, and may be gone on with.

    Args:
        name: of the job.
        workers: stand at the journal's end.
        observe: told of each closed round, its entry, and the operations that its devices did.

    Returns:
        What happened how often.

    Raises:
        PlanError: the job does not go on with the journal, or too few devices ever answer.
    """
    check_continues(store.sums, plan_round(job, 1))
    counts: Counter[str] = Counter()
    served, pace = _served(store), Pace(job, store.journal.entries())
    for number in range(store.journal.last_round + 1, job.rounds + 1):
        plan = pace.plan(number)
        attendance = attend_round(job, plan, fleet, served)
        answers = workers.measure(plan, list(attendance.seconds))
        results = {d: replace(answer.result, seconds=attendance.seconds[d]) for d, answer in answers.items()}
        entry = close_round(plan, results, job.votes)
        closed = describe_round(plan, results, attendance.closed)
        scope = Scope(name, store.bundle, head=store.journal.head(number - 1) or EMPTY)
        signature = store.signer.sign(encode(entry), scope)[-SIGNATURE_BYTES:]
        store.close_round(entry, signature, closed)
        workers.follow([entry])
        pace.follow(entry)
        served.update(dict.fromkeys(results, number))
        counts["results accepted"] += len(results)
        counts["devices asked"] += attendance.asked
        observe(closed, entry, sum(answer.flops for answer in answers.values()))
    return counts


def _served(store: ServerStore) -> dict[str, int]:
    """Device → the last round that its result counted in."""
    return {device: closed.round for closed in store.history() for device in closed.devices}
