"""The decisions of a job's server: it opens rounds, closes them into the journal, and brings devices up to date.

It has one thread for all decisions; the network and the evaluation have theirs and talk to it through a queue. What
happened at once is written in one transaction, and nobody hears of it before that: a killed server continues where it
stopped.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable

from fedspzo.broker.privacy.accounting import tell_spent
from fedspzo.broker.rounds.adaptive import MakePlans, Pace
from fedspzo.broker.rounds.aggregate import Aggregate
from fedspzo.broker.rounds.anomalies import Watch
from fedspzo.broker.rounds.job import Job, plan_round
from fedspzo.broker.rounds.sampling import Sample, choose_cohort
from fedspzo.broker.server.admission import Admission
from fedspzo.broker.server.authorities import Authorities
from fedspzo.broker.server.budgets import Budgets, CutOff
from fedspzo.broker.server.census import count
from fedspzo.broker.server.controls import Controls, Wish
from fedspzo.broker.server.copies import Copies
from fedspzo.broker.server.devices import Roster
from fedspzo.broker.server.entrance import Entrance
from fedspzo.broker.server.evaluation import Digested, DigestWatch, Evaluated, Evaluator, Failed, Snapshot
from fedspzo.broker.server.hearing import Hearing
from fedspzo.broker.server.held_out import HeldOut
from fedspzo.broker.server.inbox import Inbox
from fedspzo.broker.server.lanes import Lanes
from fedspzo.broker.server.outbox import Outbox
from fedspzo.broker.server.progress import JobResult, Observer, Progress, ignore
from fedspzo.broker.server.replies import Replies
from fedspzo.broker.server.rounds import Rounds
from fedspzo.broker.server.standing import Standing
from fedspzo.broker.server.status import ServerStatus
from fedspzo.broker.server.store import ServerStore
from fedspzo.broker.server.summing import Summing
from fedspzo.broker.server.window import Window
from fedspzo.device_runtime.errors import StateError
from fedspzo.device_runtime.link.events import Connected, Received
from fedspzo.device_runtime.link.transport import Transport
from fedspzo.device_runtime.log import several
from fedspzo.device_runtime.privacy.promise import describe_noise
from fedspzo.device_runtime.protocol.sums import check_continues
from fedspzo.device_runtime.protocol.topics import Topics

log = logging.getLogger(__name__)

#: Seconds after the last round that devices have to report.
REPORT_S = 60.0
#: Seconds after the last round that a server waits for devices when it sees none, and after one has synced.
ARRIVAL_S, SETTLE_S = 10.0, 2.0
#: Longest wait for an event, in seconds: deadlines are looked at this often.
TICK_S = 0.5
#: Events that share a transaction.
MOST_EVENTS = 256


class Loop:
    """Takes in what happens to one job, on one thread, and decides; ``window`` is for other threads to look and ask."""

    def __init__(
        self,
        access: Transport,
        name: str,
        job: Job,
        store: ServerStore,
        evaluator: Callable[[Callable[[object], None]], Evaluator],
        devices: int = 1,
        observe: Observer = ignore,
        admission: Admission | None = None,
        serve_after: float | None = None,
        aggregate: Aggregate | None = None,
        sample: Sample = choose_cohort,
        plans: MakePlans = Pace,
        held_out: HeldOut | None = None,
        trust_journal: bool = False,
        cut_off: CutOff | None = None,
        enrolment: bytes = b"",
        check: Callable[[Job], Job] = lambda job: job,
        authority: Callable[[], str] | None = None,
    ) -> None:
        """Prepare a job, or the rest of one.

        Args:
            evaluator: makes the evaluator, given where it reports to.
            held_out: keeps what it reports, and says when to stop.
            access, name, job, devices, observe, admission, serve_after, aggregate, sample, plans: see
                :class:`fedspzo.broker.server.server.Server`.
            trust_journal, cut_off, authority: see :class:`fedspzo.broker.server.server.Server`.
            enrolment: the key that certifies devices' keys; empty where the bundle names none.
            check: raises PlanError for a changed job that the bundle does not allow.

        Raises:
            PlanError: the job's settings contradict themselves or earlier changes, or cannot continue the journal.
            StateError: the newest snapshot is not of the journal.
        """
        check_continues(store.sums, plan_round(job, 1))
        self._check = check
        self._controls = Controls(store, job, self._check_change)
        self._job = job = self._controls.job(store.journal.last_round + 1)
        self._store = store
        self._certifies = bool(enrolment)
        self._observe = observe
        self._serve_after = serve_after
        self._held_out = held_out or HeldOut(store, None)
        topics = Topics(name)
        client = access.user or f"server-{name}"
        lanes = Lanes()
        self._link = access.link(client, [topics.up("+"), topics.state("+")], events=lanes)
        self._evaluator = evaluator(self._link.events.put)
        self._roster = Roster(store.load_members())
        self._digests = DigestWatch()
        self._progress = Progress(
            Counter(store.load_counts()), best=self._held_out.best, evaluated=self._held_out.last, rounds=job.rounds
        )
        self._saved_counts = self._progress.counts.copy()
        self._outbox = Outbox(self._link, topics, store, self._roster)
        self._watch = Watch(store.load_records(), job.expel)
        self._standing = Standing(store, self._roster, self._outbox, trust_journal)
        self._summing = Summing(store, self._outbox, enrolment)
        self._authorities = Authorities(
            store, self._roster, self._outbox, self._link, authority or (lambda: access.authority)
        )
        copies = Copies(self._roster, self._progress)
        self._entrance = Entrance(store, self._roster, copies, self._watch, admission)
        self._replies = Replies(
            store, self._roster, self._outbox, self._progress, self._digests, self._standing, self._summing,
            self._entrance, self._watch, self._authorities,
        )  # fmt: skip
        self._hearing = Hearing(
            store, self._roster, self._progress, Inbox(topics, store.bundle, self._roster), self._replies,
            self._standing, Budgets(lanes, cut_off),
        )  # fmt: skip
        self._rounds = Rounds(
            self._controls, store, self._roster, self._outbox, self._progress, self._watch, self._summing,
            self._replies, self._held_out, devices, aggregate, sample, plans,
        )  # fmt: skip
        self.window = Window(self._progress, self._roster, self._link.events.put, self._entrance.group)
        self._stopping = threading.Event()
        self._finished_at: float | None = None
        self._over_at: float | None = None
        self._snapshot_url = ""
        self._closed = next(reversed(store.history()), None)
        self._closed_at = store.closed_at or time.time()
        self._last_round = store.journal.last_round
        self._journal_bytes = store.journal.size(after=0, up_to=self._last_round)
        try:
            self._resume()
        except StateError:
            self.close()
            raise

    def connect(self) -> None:
        """Connect to the broker. Raises BrokerError when it cannot be reached, refuses, or takes too small packets."""
        self._link.connect()
        plan = plan_round(self._job, 1)
        noise = describe_noise(plan, self._job.rounds, self._job.delta)
        log.info("job '%s' runs in %s%s", self._store.name, plan.describe(self._certifies), noise)
        self._outbox.check_room(self._job)
        if self._progress.round is None and not self._rounds.enough:
            log.info("waiting for %s (a round needs %d)", several(self._rounds.wanted, "device"), self._job.fewest)

    def run(self) -> JobResult | None:
        """Take the job to its end and serve it, or until :meth:`stop`; gives what it left, None before its end.

        Raises:
            StateError: the disk refuses, or the job cannot continue.
        """
        while not self._stopping.is_set():
            self.turn(self._link.events.take(TICK_S, MOST_EVENTS))
            now = time.monotonic()
            if self._over_at is None and self._over(now):
                self._over_at = now
                self._observe(self._progress.result())
            if self._over_at is not None and self._serve_after is not None and now >= self._over_at + self._serve_after:
                break
        return None if self._over_at is None else self._progress.result()

    def stop(self) -> None:
        """Have :meth:`run` return soon; any thread may call it."""
        self._stopping.set()
        self._link.events.put(None)  # wakes it

    def close(self) -> None:
        """End the evaluator's thread and the connection."""
        self._evaluator.close()
        self._link.close()

    def turn(self, events: list[object]) -> None:
        """Take in what happened, do what is due, and say so once it is on disk."""
        self._authorities.look()
        with self._store.transaction():
            for event in events:
                self._handle(event)
                self._rounds.settle_full(time.monotonic())  # who comes after is late
            self._hearing.settle()
            self._replies.expel_unlisted()
            while self._advance():
                pass
            self._store.save_members(self._roster.changed())
            if self._progress.counts != self._saved_counts:
                self._store.save_counts(self._progress.counts)
                self._saved_counts = self._progress.counts.copy()
        self._outbox.flush()
        self._controls.tell()
        for closed in self._rounds.decided():  # the replica and people hear of what is on disk
            self._journal_bytes += self._store.journal.size(after=self._last_round, up_to=closed.round)
            self._closed, self._last_round = closed, closed.round
            self._closed_at = self._store.closed_at or self._closed_at
            self._evaluator.follow(closed.round)
            self._observe(closed)
        if self._progress.finished:
            self._evaluator.end()

    def offer_snapshots(self, url: str) -> None:
        """Tell devices that are far behind of snapshots, at ``url/ROUND``; call before :meth:`run`."""
        self._snapshot_url = url

    def status(self) -> ServerStatus:
        """Where it is; any thread may ask."""
        opened, closed = self._progress.round, self._closed
        measured, estimated = self._roster.joules()
        return ServerStatus(
            round=self._last_round,
            results=len(opened.answered) if opened else 0,
            asked=len(opened.cohort) if opened else 0,
            ready=self._roster.count_ready(time.monotonic()),
            known=len(self._roster),
            counts=dict(self._saved_counts),
            bytes_sent=self._link.bytes_up,
            bytes_received=self._link.bytes_down,
            loss=closed.loss if closed else float("nan"),
            loss_uncertainty=closed.loss_uncertainty if closed else None,
            seconds=closed.seconds if closed else float("nan"),
            measured_joules=measured,
            estimated_joules=estimated,
            records=self._watch.records,
            rounds=self._job.rounds,
            finished=self._progress.finished,
            closed_at=self._closed_at,
            journal_bytes=self._journal_bytes,
            census=count(
                self._roster.all(), time.monotonic(), self._entrance.group if self._entrance.has_groups else None
            ),
            evaluated=self._progress.evaluated,
            best=self._progress.best,
            privacy=self._rounds.privacy,
            broker_certificate_end=self._link.certificate_end(),
            authority_end=self._authorities.end,
        )

    def _check_change(self, job: Job) -> Job:
        self._outbox.check_room(found := self._check(job))
        return found

    def _resume(self) -> None:
        """Bring the evaluator to the journal's end, and reopen the round that was open.

        Raises:
            StateError: the newest snapshot is not of this journal.
        """
        if self._store.journal.head(self._evaluator.round) != self._evaluator.head:
            raise StateError(
                "state.snapshot-of-another-journal",
                f"{self._store.snapshot} is not of this journal; remove it, and start the server again",
            )
        self._evaluator.follow(self._store.journal.last_round)
        if not self._standing.doubtful:
            self._rounds.reopen()

    def _handle(self, event: object) -> None:
        if isinstance(event, Connected):
            self._outbox.greet()
        elif isinstance(event, Received):
            self._hearing.hear(event.topic, event.payload)
        elif isinstance(event, Evaluated):
            self._held_out.add(event)
            self._progress.best, self._progress.evaluated = self._held_out.best, self._held_out.last
            self._observe(event)
        elif isinstance(event, Digested):
            self._progress.digest = event.digest
            self._replies.expel(self._digests.learn(event.round, event.digest))
        elif isinstance(event, Snapshot):
            if self._snapshot_url:
                self._progress.offer = event, f"{self._snapshot_url}/{event.round}"
            self._observe(event)
        elif isinstance(event, Wish):
            self._controls.take(event, self._rounds.unplanned)
        elif isinstance(event, Failed):
            raise event.error

    def _advance(self) -> bool:
        """Do one thing that is due (open a round, close it, ask again, end the job) and tell whether there was one."""
        if self._standing.doubtful:
            return False
        now = time.monotonic()
        if self._rounds.advance(now):
            return True
        if self._progress.round is not None or self._finished_at is not None or not self._rounds.enough:
            return False
        if self._rounds.spent:
            tell_spent(self._job, self._store.journal.last_round)
        self._finished_at, self._progress.finished = now, True
        self._outbox.finish()
        return True

    def _over(self, now: float) -> bool:
        """Whether the evaluator has come to the end, and every device at hand has reported.

        A server that only just started gives devices time to come, for they may lack the last rounds.
        """
        if self._finished_at is None or self._digests.known(self._store.journal.last_round) is None:
            return False
        waited, reports = now - self._finished_at, self._progress.reports
        if not reports.keys() >= self._roster.there(now):
            return waited > REPORT_S
        return waited > ARRIVAL_S or (bool(reports) and now > self._progress.synced_at + SETTLE_S)
