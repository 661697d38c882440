"""The server of a job: opens rounds, collects results, closes rounds into the journal, and brings devices up to date.

It has one thread for all decisions; the network and the evaluation have theirs and talk to it through a queue. All that
a decision rests on is on disk before anyone hears of it, so that a killed server goes on where it stopped.
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from broker.evaluation import Digested, Evaluated, Evaluator, Failed
from broker.rounds import Job, choose_cohort, close_round, plan_round, refusal
from broker.store import ClosedRound, ServerStore
from device_runtime.errors import MessageError
from device_runtime.link import Connected, Link, Received, Topics
from device_runtime.plan import Entry, Plan
from device_runtime.wire import (
    Ack,
    Finish,
    Hello,
    Message,
    Presence,
    Refusal,
    Report,
    Result,
    Sync,
    decode,
    encode,
)  # fmt: skip

log = logging.getLogger(__name__)

#: Seconds after the last round that devices have to report.
REPORT_S = 60.0
#: Rounds between snapshots of the server's replica.
SNAPSHOT_EVERY = 100
#: Longest wait for an event, in seconds: deadlines are looked at this often.
TICK_S = 0.5


@dataclass
class _Round:
    plan: Plan
    cohort: tuple[str, ...]
    results: dict[str, Result]
    started: float
    deadline: float


@dataclass
class _Device:
    """A device that announced itself: ``session`` is 0 while it is away, ``synced`` once its bundle was accepted."""

    session: int = 0
    synced: bool = False


@dataclass
class Outcome:
    """What a finished job leaves behind besides the journal.

    Attributes:
        digest: of the server's replica after the last round.
        reports: device → its report.
        counts: what happened how often (results accepted, late, refused; messages dropped).
    """

    digest: bytes = b""
    reports: dict[str, Report] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)


class Server:
    """Runs one job to its end."""

    def __init__(
        self,
        url: str,
        name: str,
        job: Job,
        identity: bytes,
        store: ServerStore,
        evaluator: Callable[[Callable[[object], None]], Evaluator],
        devices: int,
        evaluate_every: int,
        observe: Callable[[ClosedRound | Evaluated], None],
    ) -> None:
        """Prepare a job, or the rest of one.

        Args:
            url: the broker.
            name: the job's name in topics.
            identity: of the bundle that devices must have.
            evaluator: makes the evaluator, given where it reports to.
            devices: devices to wait for before the first round.
            evaluate_every: rounds between evaluations.
            observe: told of progress, on the server's thread.

        Raises:
            BrokerError: the URL is not a broker's.
            PlanError: the job's settings contradict themselves.
        """
        plan_round(job, 1)
        self._job = job
        self._identity = identity
        self._store = store
        self._wanted = devices
        self._evaluate_every = evaluate_every
        self._observe = observe
        self._topics = Topics(name)
        self._link = Link(url, f"server-{name}", [self._topics.up("+"), self._topics.state("+")])
        self._evaluator = evaluator(self._link.events.put)
        self._devices: dict[str, _Device] = {}
        self._digests: dict[int, bytes] = {}
        self._claims: list[tuple[str, int, bytes]] = []
        self._outcome = Outcome()
        self._finished_at: float | None = None
        self._round: _Round | None = None
        self._resume()

    def run(self) -> Outcome:
        """Take the job to its end.

        Raises:
            BrokerError: the broker cannot be reached, or refuses.
            StateError: the disk refuses.
        """
        self._link.connect()
        try:
            while not self._done():
                event = self._link.next(TICK_S)
                if event is not None:
                    self._handle(event)
                while self._advance():
                    pass
            self._evaluator.close()
        finally:
            self._link.close()
        return self._outcome

    @property
    def bytes_sent(self) -> int:
        """Payload published so far."""
        return self._link.bytes_up

    @property
    def bytes_received(self) -> int:
        """Payload received so far."""
        return self._link.bytes_down

    def _resume(self) -> None:
        """Bring the evaluator to the journal's end, and reopen the round that was open."""
        self._evaluator.submit(None, evaluate=True)
        for entry in self._store.journal.entries(after=self._evaluator.round):
            self._submit(entry)
        opened = self._store.load_open_round()
        if opened is not None:
            now = time.monotonic()
            deadline = now + opened.plan.deadline
            self._round = _Round(opened.plan, opened.cohort, dict(opened.results), now, deadline)

    # --- events ---------------------------------------------------------------------------------------------------

    def _handle(self, event: object) -> None:
        if isinstance(event, Connected):
            self._link.publish(self._topics.round, encode(Hello(self._store.journal.last_round)))
        elif isinstance(event, Received):
            kind, device = event.topic.split("/")[-2:]
            try:
                self._receive(kind, device, decode(event.payload))
            except MessageError as error:
                self._outcome.counts["messages dropped"] += 1
                log.warning("a message of '%s' was dropped: %s", device, error)
        elif isinstance(event, Evaluated):
            self._observe(event)
        elif isinstance(event, Digested):
            self._digests[event.round] = event.digest
            self._outcome.digest = event.digest
            self._compare_digests()
        elif isinstance(event, Failed):
            raise event.error

    def _receive(self, kind: str, device: str, message: Message) -> None:
        known = self._devices.setdefault(device, _Device())
        if kind == "state" and isinstance(message, Presence):
            if message.online:
                known.session = message.session
            elif known.session == message.session:
                known.session, known.synced = 0, False
        elif kind == "up" and isinstance(message, Sync):
            self._on_sync(device, known, message)
        elif kind == "up" and isinstance(message, Result):
            self._on_result(device, message)
        elif kind == "up" and isinstance(message, Report):
            self._outcome.reports[device] = message
            self._send(device, Ack(message.round))
        else:
            raise MessageError(f"a {type(message).__name__} is not for the topic '{kind}'")

    def _on_sync(self, device: str, known: _Device, sync: Sync) -> None:
        last = self._store.journal.last_round
        if sync.bundle != self._identity:
            self._send(device, Refusal("its bundle is not this job's; give it the job's bundle"))
        elif sync.round > last:
            self._send(
                device, Refusal(f"it is at round {sync.round} and the job at {last}; give it a new state folder")
            )
        else:
            known.synced = True
            for entry in self._store.journal.entries(after=sync.round):
                self._send(device, entry)
            if self._round and device in self._round.cohort and device not in self._round.results:
                self._send(device, self._round.plan)
            if self._finished_at is not None:
                self._send(device, Finish(last))

    def _on_result(self, device: str, result: Result) -> None:
        last = self._store.journal.last_round
        if result.round <= last:
            self._outcome.counts["results late"] += 1
            self._send(device, Ack(result.round))
            return
        reason = refusal(self._round.plan, self._round.cohort, device, result) if self._round else "no round is open"
        if reason is not None:
            self._outcome.counts["results refused"] += 1
            log.warning("a result of '%s' was refused: %s", device, reason)
            return
        assert self._round is not None
        if device not in self._round.results:
            self._store.save_result(device, result)
            self._round.results[device] = result
            self._outcome.counts["results accepted"] += 1
            if result.digest:
                self._claims.append((device, result.round - 1, result.digest))
                self._compare_digests()
        self._send(device, Ack(result.round))

    def _compare_digests(self) -> None:
        """Hold the devices' digests against the server's, as far as the evaluator has come."""
        waiting = []
        for device, round, digest in self._claims:
            if round not in self._digests:
                waiting.append((device, round, digest))
            elif digest != self._digests[round]:
                self._outcome.counts["digests differing"] += 1
                log.error("the replica of '%s' differs from the server's after round %d", device, round)
                self._send(device, Refusal(f"its replica differs after round {round}; give it a new state folder"))
        self._claims = waiting

    # --- rounds ---------------------------------------------------------------------------------------------------

    def _advance(self) -> bool:
        """Do one thing that is due (open a round, close it, ask again, end the job) and tell whether there was one."""
        now = time.monotonic()
        if self._round is None:
            if self._finished_at is not None:
                return False
            if self._store.journal.last_round >= self._job.rounds:
                self._finish(now)
                return True
            if len(self._candidates()) < self._wanted:
                return False
            self._open(now)
            return True
        missing = [device for device in self._round.cohort if device not in self._round.results]
        overdue = now >= self._round.deadline
        hopeless = all(not self._devices.get(device, _Device()).session for device in missing)
        if not missing or (len(self._round.results) >= self._job.quorum and (overdue or hopeless)):
            self._close(now)
            return True
        if overdue:
            self._extend(now)
            return True
        return False

    def _candidates(self) -> list[str]:
        return [name for name, device in self._devices.items() if device.session and device.synced]

    def _open(self, now: float) -> None:
        plan = plan_round(self._job, self._store.journal.last_round + 1)
        cohort = choose_cohort(self._job, plan.round, self._candidates())
        self._wanted = min(self._wanted, self._job.quorum)
        self._store.save_open_round(plan, cohort)
        self._round = _Round(plan, cohort, {}, now, now + plan.deadline)
        for device in cohort:
            self._send(device, plan)

    def _extend(self, now: float) -> None:
        """Ask more devices in the place of those that did not answer, and give all a new deadline."""
        assert self._round is not None
        answered = tuple(device for device in self._round.cohort if device in self._round.results)
        cohort = choose_cohort(self._job, self._round.plan.round, self._candidates(), answered)
        log.warning(
            "round %d has %d of %d results at its deadline; asking %d devices again",
            self._round.plan.round, len(answered), self._job.quorum, len(cohort) - len(answered),
        )  # fmt: skip
        self._store.save_open_round(self._round.plan, cohort)
        self._round.cohort, self._round.deadline = cohort, now + self._round.plan.deadline
        for device in cohort[len(answered) :]:
            self._send(device, self._round.plan)

    def _close(self, now: float) -> None:
        assert self._round is not None
        plan, results = self._round.plan, self._round.results
        entry = close_round(plan, results)
        closed = ClosedRound(
            round=plan.round,
            loss=_mean(result.loss for result in results.values()),
            devices=tuple(sorted(results)),
            seconds=now - self._round.started,
            step_seconds=_mean(result.seconds / plan.steps for result in results.values()),
        )
        self._store.close_round(entry, closed)
        self._round = None
        self._link.publish(self._topics.result, encode(entry))
        self._submit(entry)
        self._observe(closed)

    def _submit(self, entry: Entry) -> None:
        last = entry.round >= self._job.rounds
        self._evaluator.submit(
            entry,
            evaluate=last or entry.round % self._evaluate_every == 0,
            digest=last or plan_round(self._job, entry.round + 1).digest,
            snapshot=self._store.snapshot if last or entry.round % SNAPSHOT_EVERY == 0 else None,
        )

    def _finish(self, now: float) -> None:
        self._finished_at = now
        self._link.publish(self._topics.result, encode(Finish(self._store.journal.last_round)))

    def _done(self) -> bool:
        """Whether every device at hand has reported and the evaluator has come to the end."""
        if self._finished_at is None:
            return False
        reported = all(device in self._outcome.reports for device in self._candidates())
        evaluated = self._store.journal.last_round in self._digests
        return evaluated and (reported or time.monotonic() > self._finished_at + REPORT_S)

    def _send(self, device: str, message: Message) -> None:
        self._link.publish(self._topics.down(device), encode(message))


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return math.fsum(listed) / len(listed)
