"""Training as live jobs do it: devices measure scalars along directions, and the model is the journal of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from functools import partial

from fedspzo.broker.privacy.accounting import Spent
from fedspzo.broker.rounds.adaptive import MakePlans, Pace
from fedspzo.broker.rounds.aggregate import Aggregate, ClosedRound, checked, close_round, describe_round
from fedspzo.broker.rounds.anomalies import Record, Watch
from fedspzo.broker.rounds.groups import close_sums, describe_sums, divide, group_results, sum_results
from fedspzo.broker.rounds.job import Job, plan_round
from fedspzo.broker.server.store import ServerStore
from fedspzo.broker.simulation.driver import Attendance, SimulatedRound
from fedspzo.broker.simulation.hostile import Attack
from fedspzo.broker.simulation.workers import Workers
from fedspzo.device_runtime.errors import PlanError, StateError
from fedspzo.device_runtime.privacy.words import unpack
from fedspzo.device_runtime.protocol.entry import Entry
from fedspzo.device_runtime.protocol.messages import Result
from fedspzo.device_runtime.protocol.plan import Plan
from fedspzo.device_runtime.protocol.sums import check_continues
from fedspzo.device_runtime.replica.weights import Replica


class ZerothOrder:
    """A :class:`fedspzo.broker.simulation.driver.Training` whose state is a server's folder, live or simulated."""

    def __init__(
        self,
        job: Job,
        store: ServerStore,
        workers: Workers,
        start: int = 0,
        aggregate: Aggregate | None = None,
        plans: MakePlans = Pace,
        attack: Attack | None = None,
    ) -> None:
        """Bring workers to the journal's end.

        Args:
            workers: stand at round ``start``.
            aggregate: makes a round's journal entry; by default :func:`fedspzo.broker.rounds.aggregate.close_round`.
            plans: makes the rounds' plans.
            attack: what hostile devices send instead of what they measured; None where all are honest.

        Raises:
            PlanError: the job does not continue the journal.
            FedSPZOError: a worker failed.
        """
        check_continues(store.sums, plan_round(job, 1))
        self._store, self._workers, self._quorum = store, workers, job.fewest
        self._aggregate = checked(aggregate) if aggregate else partial(close_round, votes=job.votes)
        self._plans = plans(job, store.journal.entries())
        self._watch = Watch(store.load_records(), job.expel)
        self._attack = attack
        self._spent = Spent(job, store.journal.entries())
        self._measured = Counter(device for closed in store.history() for device in closed.devices)
        workers.follow(list(store.journal.entries(start)))

    @property
    def round(self) -> int:
        """The last closed round."""
        return self._store.journal.last_round

    def served(self) -> dict[str, int]:
        """Device → the last round that its result counted in."""
        return {device: closed.round for closed in self._store.history() for device in closed.devices}

    def plan(self, round: int) -> Plan:
        """The plan of the next round."""
        return self._plans.plan(round)

    def affords(self, plan: Plan) -> bool:
        """Whether the job's privacy budget has room for a round."""
        return self._spent.affords(plan)

    def expelled(self, device: str) -> str | None:
        """Why a device was sent away; None where it was not."""
        return self._watch.expelled(device)

    def train(self, plan: Plan, attendance: Attendance) -> SimulatedRound:
        """Measure on the workers, and close the round into the journal as the live server does."""
        answers = self._workers.measure(plan, {device: self._measured[device] for device in attendance.seconds})
        results = {
            device: replace(answer.result, seconds=attendance.seconds[device])
            for device, answer in answers.items()
            if answer.finite  # or else a live device would decline
        }
        if len(results) < self._quorum:
            raise PlanError(
                "simulation.diverged",
                f"the model diverged in round {plan.round}: its loss is not finite; lower the learning rates",
            )
        results = self._attack(plan, results) if self._attack else results
        entry, closed, changed = self._close(plan, results, attendance.closed)
        with self._store.transaction():
            self._store.close_round(entry, closed)
            self._store.save_records(changed)
        self._workers.follow([entry])
        self._plans.follow(entry)
        self._spent.follow(entry)
        self._measured.update(closed.devices)
        flops = sum(answer.flops for answer in answers.values())
        return SimulatedRound(**vars(closed), asked=attendance.asked, flops=flops)

    def _close(
        self, plan: Plan, results: Mapping[str, Result], seconds: float
    ) -> tuple[Entry, ClosedRound, dict[str, Record]]:
        """What the live server makes of the results, or of their sums: these are the same without masks."""
        if not plan.masking:
            closed = describe_round(plan, results, seconds)
            return self._aggregate(plan, results), closed, self._watch.close_round(plan, results)
        groups = divide(plan, results)
        sums = [sum_results(plan, results, group) for group in groups]
        totals = [unpack(plan, each) for each in sums]
        summed = [device for group in groups for device in group]
        changed = self._watch.close_sums(plan, groups, group_results(plan, totals))
        return close_sums(plan, sums, self._aggregate), describe_sums(plan, totals, summed, seconds), changed

    def advance(self, replica: Replica) -> None:
        """Take a replica to the journal's end."""
        replica.apply_all(list(self._store.journal.entries(replica.round)))


def check_snapshot(store: ServerStore, replica: Replica) -> None:
    """Raise StateError unless a replica that was made from a folder's newest snapshot is of the folder's journal."""
    if store.journal.head(replica.round) != replica.head:
        raise StateError(
            "state.snapshot-of-another-journal",
            f"{store.snapshot} is not of this journal, but of a first-order method or another job;"
            " give each job a state folder of its own",
        )
