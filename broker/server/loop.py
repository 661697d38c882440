"""The server of a job: opens rounds, closes them into the journal, and brings devices up to date.

It has one thread for all decisions; the network and the evaluation have theirs and talk to it through a queue. What
happened at once is written in one transaction, and nobody hears of it before that: a killed server goes on where it
stopped.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from fedspzo.broker.rounds.adaptive import Pace
from fedspzo.broker.rounds.aggregate import ClosedRound, close_round, describe_round
from fedspzo.broker.rounds.job import Job, plan_round
from fedspzo.broker.rounds.sampling import Candidate, choose_cohort
from fedspzo.broker.server.admission import Admission
from fedspzo.broker.server.devices import Roster, credit
from fedspzo.broker.server.digests import DigestWatch
from fedspzo.broker.server.evaluation import Digested, Evaluated, Evaluator, Failed, Snapshot
from fedspzo.broker.server.inbox import Reception
from fedspzo.broker.server.open_round import OpenRound
from fedspzo.broker.server.outbox import Outbox
from fedspzo.broker.server.outcome import Outcome
from fedspzo.broker.server.standing import Standing
from fedspzo.broker.server.store import ServerStore
from fedspzo.device_runtime.errors import StateError
from fedspzo.device_runtime.link.access import Access
from fedspzo.device_runtime.link.connection import Connected, Link, Received
from fedspzo.device_runtime.protocol.messages import Hello
from fedspzo.device_runtime.protocol.signing import SIGNATURE_BYTES
from fedspzo.device_runtime.protocol.sums import check_continues
from fedspzo.device_runtime.protocol.topics import Topics
from fedspzo.device_runtime.replica.journal import EMPTY

log = logging.getLogger(__name__)

#: Seconds after the last round that devices have to report.
REPORT_S = 60.0
#: Seconds after the last round that a server waits for devices when it sees none, and after one has synced.
ARRIVAL_S, SETTLE_S = 10.0, 2.0
#: Longest wait for an event, in seconds: deadlines are looked at this often.
TICK_S = 0.5
#: Events that share a transaction.
MOST_EVENTS = 256


class Server:
    """Runs one job to its end."""

    def __init__(
        self,
        access: Access,
        name: str,
        job: Job,
        store: ServerStore,
        evaluator: Callable[[Callable[[object], None]], Evaluator],
        devices: int,
        observe: Callable[[ClosedRound | Evaluated | Snapshot], None],
        admission: Admission | None = None,
    ) -> None:
        """Prepare a job, or the rest of one.

        Args:
            name: the job's name in topics.
            evaluator: makes the evaluator, given where it reports to.
            devices: how many to wait for before the first round.
            observe: told of progress, on the server's thread.
            admission: the devices that may take part; by default whoever the broker lets in.

        Raises:
            PlanError: the job's settings contradict themselves, or do not go on with the journal.
            StateError: the newest snapshot is not of the journal.
        """
        check_continues(store.sums, plan_round(job, 1))
        self._job = job
        self._store = store
        self._pace = Pace(job, store.journal.entries())
        self._wanted = max(devices, job.quorum)
        self._observe = observe
        topics = Topics(name)
        client = access.user or f"server-{name}"
        self._link = Link(access, client, [topics.up("+"), topics.state("+")])
        self._evaluator = evaluator(self._link.events.put)
        self._roster = Roster(store.load_members())
        self._digests = DigestWatch()
        self._outcome = Outcome()
        self._outcome.counts.update(store.load_counts())
        self._saved_counts = self._outcome.counts.copy()
        self._outbox = Outbox(self._link, topics, store.signer, store.bundle, self._roster)
        self._reception = Reception(topics, store, self._roster, self._outbox, self._outcome, self._digests, admission)
        self._finished_at: float | None = None
        self._snapshot_url = ""
        self._closed: ClosedRound | None = None
        self._decided: list[ClosedRound] = []
        self._last_round = store.journal.last_round
        self._resume()

    def run(self) -> Outcome:
        """Take the job to its end.

        Raises:
            BrokerError: the broker cannot be reached, or refuses.
            StateError: the disk refuses.
        """
        self._link.connect()
        if self._round is None and self._store.journal.last_round < self._job.rounds:
            log.warning("waiting for %d devices", self._wanted)
        try:
            while not self._done():
                self.turn(self._link.take(TICK_S, MOST_EVENTS))
            self._evaluator.close()
        finally:
            self._link.close()
        return self._outcome

    def turn(self, events: list[object]) -> None:
        """Take in what happened, do what is due, and say so once it is on disk."""
        with self._store.transaction():
            for event in events:
                self._handle(event)
                if self._round is not None and len(self._round.results) >= self._job.cohort:
                    self._close(time.monotonic())  # who comes after is late
            while self._advance():
                pass
            self._store.save_members(self._roster.changed())
            if self._outcome.counts != self._saved_counts:
                self._store.save_counts(self._outcome.counts)
                self._saved_counts = self._outcome.counts.copy()
        self._outbox.flush()
        decided, self._decided = self._decided, []
        for closed in decided:  # the replica and people hear of what is on disk
            self._closed, self._last_round = closed, closed.round
            self._evaluator.follow(closed.round)
            self._observe(closed)

    @property
    def bytes_sent(self) -> int:
        """Payload published so far."""
        return self._link.bytes_up

    @property
    def bytes_received(self) -> int:
        """Payload received so far."""
        return self._link.bytes_down

    def offer_snapshots(self, url: str) -> None:
        """Tell devices that are far behind of snapshots, at ``url/ROUND``; call before :meth:`run`."""
        self._snapshot_url = url

    def standing(self) -> Standing:
        """Where it is; any thread may ask."""
        opened = self._round
        measured, estimated = self._roster.joules()
        return Standing(
            round=self._last_round,
            results=len(opened.results) if opened else 0,
            asked=len(opened.cohort) if opened else 0,
            ready=self._roster.count_ready(time.monotonic()),
            known=len(self._roster),
            counts=dict(self._saved_counts),
            bytes_sent=self.bytes_sent,
            bytes_received=self.bytes_received,
            loss=self._closed.loss if self._closed else float("nan"),
            seconds=self._closed.seconds if self._closed else float("nan"),
            measured_joules=measured,
            estimated_joules=estimated,
        )

    @property
    def _round(self) -> OpenRound | None:
        return self._reception.round

    @_round.setter
    def _round(self, opened: OpenRound | None) -> None:
        self._reception.round = opened

    def _resume(self) -> None:
        """Bring the evaluator to the journal's end, and reopen the round that was open.

        Raises:
            StateError: the newest snapshot is not of this journal.
        """
        if self._store.journal.head(self._evaluator.round) != self._evaluator.head:
            raise StateError(f"{self._store.snapshot} is not of this journal; remove it, and start the server again")
        self._evaluator.follow(self._store.journal.last_round)
        self._round = self._store.load_open_round(time.monotonic())
        if self._round is not None or self._store.journal.last_round:
            self._wanted = self._job.quorum

    def _handle(self, event: object) -> None:
        if isinstance(event, Connected):
            self._outbox.greet(Hello())
        elif isinstance(event, Received):
            self._reception.take(event.topic, event.payload)
        elif isinstance(event, Evaluated):
            self._observe(event)
        elif isinstance(event, Digested):
            self._outcome.digest = event.digest
            self._reception.expel(self._digests.learn(event.round, event.digest))
        elif isinstance(event, Snapshot):
            if self._snapshot_url:
                self._reception.offer = event, f"{self._snapshot_url}/{event.round}"
            self._observe(event)
        elif isinstance(event, Failed):
            raise event.error

    def _advance(self) -> bool:
        """Do one thing that is due (open a round, close it, ask again, end the job) and tell whether there was one."""
        now = time.monotonic()
        if self._round is None:
            if self._finished_at is not None:
                return False
            if self._store.journal.last_round >= self._job.rounds:
                self._finish(now)
                return True
            if self._roster.count_ready(now) < self._wanted:
                return False
            self._open(now)
            return True
        if self._round.complete(self._job, self._roster, now):
            self._close(now)
            return True
        if self._round.overdue(now) or (not self._round.missing and self._others(now)):
            self._extend(now)
        return False

    def _open(self, now: float) -> None:
        plan = self._pace.plan(self._store.journal.last_round + 1)
        cohort = choose_cohort(self._job, plan.round, self._roster.ready(now), self._job.asked)
        self._wanted = self._job.quorum
        self._store.save_open_round(plan, cohort)
        self._round = OpenRound(plan, cohort, {}, now)
        for device in cohort:
            self._reception.ask(device, plan)

    def _extend(self, now: float) -> None:
        """Give those that have not answered a new deadline, and ask as many others besides.

        Raises:
            StateError: all devices have declined, and it is not a matter of time.
        """
        assert self._round is not None
        current = self._round
        others = self._others(now)
        if not current.missing and not others and current.declined:
            lasting = {device: said for device, said in current.declined.items() if not said.passing}
            if lasting and not current.results:
                device, said = next(iter(lasting.items()))
                raise StateError(f"round {current.plan.round} cannot go on; device '{device}' says: {said.reason}")
            current.declined.clear()  # nobody else is there: they are asked again
        wanted = self._job.asked - len(current.results)
        fresh = choose_cohort(self._job, current.plan.round, others, wanted)
        asked = current.extend(fresh, now)
        log.warning(
            "round %d has %d of %d results at its deadline; asking %d devices, %d of them again",
            *(current.plan.round, len(current.results), self._job.quorum, len(asked), len(asked) - len(fresh)),
        )
        self._store.save_open_round(current.plan, current.cohort)
        for device in asked:
            self._reception.ask(device, current.plan)

    def _others(self, now: float) -> dict[str, Candidate]:
        """Devices that can be asked and have not been."""
        assert self._round is not None
        cohort = self._round.cohort
        return {name: candidate for name, candidate in self._roster.ready(now).items() if name not in cohort}

    def _close(self, now: float) -> None:
        assert self._round is not None
        plan, results = self._round.plan, self._round.results
        entry = close_round(plan, results, self._job.votes)
        closed = describe_round(plan, results, now - self._round.started)
        signed = self._outbox.sign(entry, head=self._store.journal.head(plan.round - 1) or EMPTY)
        self._store.close_round(entry, signed[-SIGNATURE_BYTES:], closed)
        for device, result in results.items():
            member = self._roster.edit(device)
            if member is not None:
                credit(member, result)
        self._round = None
        self._pace.follow(entry)
        self._outbox.publish(signed)
        self._decided.append(closed)

    def _finish(self, now: float) -> None:
        self._finished_at, self._reception.finished = now, True
        self._outbox.publish(self._reception.farewell())

    def _done(self) -> bool:
        """Whether the evaluator has come to the end, and every device at hand has reported.

        A server that only just started gives devices time to come, for they may lack the last rounds.
        """
        now, last = time.monotonic(), self._store.journal.last_round
        if self._finished_at is None or self._digests.known(last) is None:
            return False
        waited = now - self._finished_at
        if not self._outcome.reports.keys() >= self._roster.there(now):
            return waited > REPORT_S
        return waited > ARRIVAL_S or (bool(self._outcome.reports) and now > self._reception.synced_at + SETTLE_S)
