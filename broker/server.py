"""The server of a job: opens rounds, collects results, closes rounds into the journal, and brings devices up to date.

It has one thread for all decisions; the network and the evaluation have theirs and talk to it through a queue. All that
a decision rests on is on disk before anyone hears of it, so that a killed server goes on where it stopped.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable

from broker.digests import Claim, DigestWatch
from broker.evaluation import Digested, Evaluated, Evaluator, Failed
from broker.open_round import OpenRound
from broker.outcome import Outcome
from broker.roster import Roster
from broker.rounds import ClosedRound, Job, choose_cohort, close_round, describe_round, plan_round, refusal
from broker.store import ServerStore
from device_runtime import wire
from device_runtime.errors import MessageError, StateError
from device_runtime.link import Connected, Link, Received, Topics, valid_id
from device_runtime.plan import Entry

log = logging.getLogger(__name__)

#: Seconds after the last round that devices have to report.
REPORT_S = 60.0
#: Seconds after the last round that a server waits for devices when it sees none, and after one has synced.
ARRIVAL_S, SETTLE_S = 10.0, 2.0
#: Rounds between snapshots of the server's replica.
SNAPSHOT_EVERY = 100
#: Longest wait for an event, in seconds: deadlines are looked at this often.
TICK_S = 0.5


class Server:
    """Runs one job to its end."""

    def __init__(
        self,
        url: str,
        name: str,
        job: Job,
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
        self._store = store
        self._wanted = max(devices, job.quorum)
        self._evaluate_every = evaluate_every
        self._observe = observe
        self._topics = Topics(name)
        self._link = Link(url, f"server-{name}", [self._topics.up("+"), self._topics.state("+")])
        self._evaluator = evaluator(self._link.events.put)
        self._roster = Roster()
        self._digests = DigestWatch()
        self._outcome = Outcome()
        self._finished_at: float | None = None
        self._synced_at = 0.0
        self._round: OpenRound | None = None
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
        self._evaluator.submit(None, evaluate=True, digest=True)
        for entry in self._store.journal.entries(after=self._evaluator.round):
            self._submit(entry)
        self._round = self._store.load_open_round(time.monotonic())
        if self._round is not None or self._store.journal.last_round:
            self._wanted = self._job.quorum

    def _handle(self, event: object) -> None:
        if isinstance(event, Connected):
            self._link.publish(self._topics.round, wire.encode(wire.Hello(self._store.journal.last_round)))
        elif isinstance(event, Received):
            kind, device = event.topic.split("/")[-2:]
            try:
                if not valid_id(device):
                    raise MessageError("its sender's id is not valid")
                self._receive(kind, device, wire.decode(event.payload))
            except MessageError as error:
                self._outcome.counts["messages dropped"] += 1
                log.warning("a message of '%s' was dropped: %s", device, error)
        elif isinstance(event, Evaluated):
            self._observe(event)
        elif isinstance(event, Digested):
            self._outcome.digest = event.digest
            self._expel(self._digests.learn(event.round, event.digest))
        elif isinstance(event, Failed):
            raise event.error

    def _receive(self, kind: str, device: str, message: wire.Message) -> None:
        if kind == "state" and isinstance(message, wire.Presence):
            self._roster.announce(device, message)
        elif kind == "up" and isinstance(message, wire.Sync):
            self._on_sync(device, message)
        elif kind == "up" and isinstance(message, wire.Result):
            self._on_result(device, message)
        elif kind == "up" and isinstance(message, wire.Decline):
            self._on_decline(device, message)
        elif kind == "up" and isinstance(message, wire.Report):
            self._outcome.reports[device] = message
            self._send(device, wire.Ack(message.round))
            self._expel(self._digests.claim(Claim(device, message.round, message.digest)))
        else:
            raise MessageError(f"a {type(message).__name__} is not for the topic '{kind}'")

    def _on_sync(self, device: str, sync: wire.Sync) -> None:
        if sync.bundle != self._store.bundle:
            self._send(device, wire.Refusal("its bundle is not this job's; give it the job's bundle"))
        elif sync.head != self._store.head(sync.round):
            self._send(device, wire.Refusal("its journal is not this job's; give it a new state folder"))
        else:
            self._roster.accept(device)
            self._synced_at = time.monotonic()
            for entry in self._store.journal.entries(after=sync.round):
                self._send(device, entry)
            if self._round and device in self._round.cohort and device not in self._round.results:
                self._send(device, self._round.plan)
            if self._finished_at is not None:
                self._send(device, wire.Finish(self._store.journal.last_round))

    def _on_result(self, device: str, result: wire.Result) -> None:
        last = self._store.journal.last_round
        if result.round <= last:
            self._outcome.counts["results late"] += 1
            self._send(device, wire.Ack(result.round))
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
            if result.digest and self._round.plan.digest:
                self._expel(self._digests.claim(Claim(device, result.round - 1, result.digest)))
        self._send(device, wire.Ack(result.round))

    def _on_decline(self, device: str, decline: wire.Decline) -> None:
        if self._round and decline.round == self._round.plan.round and device in self._round.cohort:
            self._outcome.counts["plans declined"] += 1
            self._round.declined[device] = decline.reason
            self._send(device, wire.Ack(decline.round))

    def _expel(self, wrong: Iterable[Claim]) -> None:
        """Tell devices whose replicas differ to start afresh."""
        for claim in wrong:
            self._outcome.counts["digests differing"] += 1
            log.error("the replica of '%s' differs from the server's after round %d", claim.device, claim.round)
            reason = f"its replica differs after round {claim.round}; give it a new state folder"
            self._send(claim.device, wire.Refusal(reason))

    def _advance(self) -> bool:
        """Do one thing that is due (open a round, close it, ask again, end the job) and tell whether there was one."""
        now = time.monotonic()
        if self._round is None:
            if self._finished_at is not None:
                return False
            if self._store.journal.last_round >= self._job.rounds:
                self._finished_at = now
                self._link.publish(self._topics.result, wire.encode(wire.Finish(self._store.journal.last_round)))
                return True
            if len(self._roster.ready()) < self._wanted:
                return False
            self._open(now)
            return True
        if self._round.complete(self._job, self._roster, now):
            self._close(now)
            return True
        if self._round.overdue(now):
            self._extend(now)
            return True
        return False

    def _open(self, now: float) -> None:
        plan = plan_round(self._job, self._store.journal.last_round + 1)
        cohort = choose_cohort(self._job, plan.round, self._roster.ready())
        self._wanted = self._job.quorum
        self._store.save_open_round(plan, cohort)
        self._round = OpenRound(plan, cohort, {}, now)
        for device in cohort:
            self._send(device, plan)

    def _extend(self, now: float) -> None:
        """Give those that have not answered a new deadline, and ask as many others besides.

        Raises:
            StateError: all devices have declined.
        """
        assert self._round is not None
        current = self._round
        others = set(self._roster.ready()) - set(current.cohort)
        if not current.missing and not others and current.declined:
            device, reason = next(iter(current.declined.items()))
            raise StateError(f"round {current.plan.round} cannot go on; device '{device}' says: {reason}")
        fresh = choose_cohort(self._job, current.plan.round, others)[: self._job.cohort - len(current.results)]
        asked = current.extend(fresh, now)
        log.warning(
            "round %d has %d of %d results at its deadline; asking %d devices, %d of them again",
            *(current.plan.round, len(current.results), self._job.quorum, len(asked), len(asked) - len(fresh)),
        )
        self._store.save_open_round(current.plan, current.cohort)
        for device in asked:
            self._send(device, current.plan)

    def _close(self, now: float) -> None:
        assert self._round is not None
        plan, results = self._round.plan, self._round.results
        entry = close_round(plan, results)
        closed = describe_round(plan, results, now - self._round.started)
        self._store.close_round(entry, closed)
        self._round = None
        self._link.publish(self._topics.result, wire.encode(entry))
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

    def _done(self) -> bool:
        """Whether the evaluator has come to the end, and every device at hand has reported.

        A server that only just started gives devices time to come, for they may lack the last rounds.
        """
        now, last = time.monotonic(), self._store.journal.last_round
        if self._finished_at is None or self._digests.known(last) is None:
            return False
        waited = now - self._finished_at
        if not self._outcome.reports.keys() >= set(self._roster.ready()):
            return waited > REPORT_S
        return waited > ARRIVAL_S or (bool(self._outcome.reports) and now > self._synced_at + SETTLE_S)

    def _send(self, device: str, message: wire.Message) -> None:
        self._link.publish(self._topics.down(device), wire.encode(message))
