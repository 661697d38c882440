"""What devices say to the server: checked, noted, answered. One device's nonsense is refused and hurts nobody else."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable

from fedspzo.broker.rounds.aggregate import refusal
from fedspzo.broker.server.admission import Admission
from fedspzo.broker.server.devices import Member, Roster, accept, announce, part
from fedspzo.broker.server.digests import Claim, DigestWatch
from fedspzo.broker.server.evaluation import Snapshot
from fedspzo.broker.server.open_round import OpenRound
from fedspzo.broker.server.outbox import Outbox
from fedspzo.broker.server.outcome import Outcome
from fedspzo.broker.server.store import ServerStore
from fedspzo.device_runtime.errors import MessageError
from fedspzo.device_runtime.log import Complaints
from fedspzo.device_runtime.protocol.messages import (
    Ack,
    Batch,
    Decline,
    Dismissal,
    Finish,
    Message,
    Offer,
    Presence,
    Rebase,
    Refusal,
    Report,
    Result,
    Sync,
    decode,
    encode,
)
from fedspzo.device_runtime.protocol.plan import Plan
from fedspzo.device_runtime.protocol.signing import SIGNATURE_BYTES, Scope, check, split
from fedspzo.device_runtime.protocol.topics import Topics, valid_id
from fedspzo.device_runtime.replica.journal import EMPTY

log = logging.getLogger(__name__)

#: Bytes of journal entries in one message.
BATCH_BYTES = 40_000
#: Seconds in which the same entries are not sent to a device twice.
PATIENCE_S = 1.0
#: Integers that SQLite holds are below this.
_MOST = 1 << 63
#: Rounds behind from which on a device is offered a snapshot besides.
FAR_BEHIND = 64


class Reception:
    """The server's ear.

    Attributes:
        round: the round that results are for, kept up to date by the server.
        finished: whether the job's last round is closed, as the server says.
        offer: the newest snapshot and its URL, when there is one to be had.
        synced_at: when a device last synced, by the monotonic clock.
    """

    def __init__(
        self,
        topics: Topics,
        store: ServerStore,
        roster: Roster,
        outbox: Outbox,
        outcome: Outcome,
        digests: DigestWatch,
        admission: Admission | None = None,
    ) -> None:
        self._topics = topics
        self._store = store
        self._roster = roster
        self._outbox = outbox
        self._outcome = outcome
        self._digests = digests
        self._admission = admission
        self._complaints = Complaints(log)
        self.round: OpenRound | None = None
        self.finished = False
        self.offer: tuple[Snapshot, str] | None = None
        self.synced_at = 0.0

    def take(self, topic: str, signed: bytes) -> None:
        """Take in a message; what is not one is counted, logged and dropped."""
        *_, kind, device = "", "", *topic.split("/")
        try:
            if topic not in (self._topics.up(device), self._topics.state(device)) or not valid_id(device):
                raise MessageError("its topic is not one of a device")
            message = decode(split(signed))
            if isinstance(message, Sync):
                check(signed, Scope(self._topics.job, message.bundle, device), message.key)
                self._on_sync(kind, device, message, len(signed))
            elif (member := self._roster.get(device)) is not None:
                check(signed, Scope(self._topics.job, self._store.bundle, device), member.key)
                self._check_admission(member)
                self._receive(kind, member, message)
                self._note(device, len(signed))
            elif not isinstance(message, Presence):  # a newcomer's birth message comes before its sync
                raise MessageError("its sender has not synced")
        except MessageError as error:
            self._outcome.counts["messages dropped"] += 1
            self._complaints.add(device, f"a message of '{device[:64]}' was dropped: {error}")

    def _check_admission(self, member: Member) -> None:
        """Raise MessageError when a member is struck from the list of those admitted, and send it away."""
        reason = self._admission.refusal(member.name, member.key) if self._admission else None
        if reason is not None:
            part(member)
            self._outbox.send(member.name, Refusal(member.key, member.session, reason))
            raise MessageError(reason)

    def _note(self, device: str, size: int) -> None:
        """Keep account of a message that was in order."""
        member = self._roster.edit(device)
        if member is not None:
            member.bytes_up += size
            member.seen = time.monotonic()

    def _receive(self, kind: str, member: Member, message: Message) -> None:
        if kind == "state" and isinstance(message, Presence):
            announce(member, message)
        elif kind == "up" and isinstance(message, Result):
            self._on_result(member, message)
        elif kind == "up" and isinstance(message, Decline):
            self._on_decline(member, message)
        elif kind == "up" and isinstance(message, Report):
            self._on_report(member, message)
        else:
            raise MessageError(f"a {type(message).__name__} is not for the topic '{kind}'")

    def _on_sync(self, kind: str, device: str, sync: Sync, size: int) -> None:
        if kind != "up":
            raise MessageError(f"a Sync is not for the topic '{kind}'")
        if max(sync.round, sync.examples) >= _MOST:
            raise MessageError("its numbers are beyond any use")
        if sync.bundle != self._store.bundle:
            self._refuse(device, sync, "its bundle is not this job's; give it the job's bundle")
        elif sync.head != self._store.journal.head(sync.round):
            self._refuse(device, sync, "its journal is not this job's; start it with --afresh")
        elif self._admission and (reason := self._admission.refusal(device, sync.key)) is not None:
            if (known := self._roster.get(device)) is not None and known.key == sync.key:
                part(known)
            self._refuse(device, sync, reason)
        elif (member := self._roster.admit(device, sync.key)) is None:
            self._refuse(device, sync, "the job has too many devices")
        elif self._admission is None and member.key != sync.key:
            reason = (
                "its id belongs to another device's key; bring back its device.key, give it another id, or"
                " have the server forget this one (fedspzo forget)"
            )
            self._refuse(device, sync, reason)
        else:
            self.synced_at = time.monotonic()
            member.key = sync.key  # the operator's list may give a name to another key
            accept(member, sync)
            self._note(device, size)
            self._bring_up(member)

    def _bring_up(self, member: Member) -> None:
        """Send a device what it lacks, or else what it is asked."""
        last = self._store.journal.last_round
        now = time.monotonic()
        if member.round < last and (member.brought != member.round or now >= member.brought_at + PATIENCE_S):
            member.brought, member.brought_at = member.round, now
            if (rebase := self._shorter(member.round)) is not None:
                self._outbox.send(member.name, rebase, self._store.journal.head(member.round) or EMPTY)
            else:
                self._outbox.send(member.name, Batch(self._store.journal.signed(member.round, BATCH_BYTES)))
            if rebase is None and self.offer is not None and self.offer[0].round >= member.round + FAR_BEHIND:
                snapshot, url = self.offer
                self._outbox.send(
                    member.name,
                    Offer(round=snapshot.round, sha256=snapshot.sha256, size=snapshot.size, url=url),
                )
        elif member.round == last and self.finished:
            self.dismiss(member.name)
        if self.round and member.willing and member.name in self.round.cohort and member.name not in self.round.results:
            said = self.round.declined.get(member.name)
            if said is not None and said.passing:
                del self.round.declined[member.name]  # it waits no more, and is waited for
            self.ask(member.name, self.round.plan)

    def _shorter(self, round: int) -> Rebase | None:
        """What brings a device from a round to the last one that rebased, where the entries up to there are longer."""
        rebase = self._store.rebase
        if rebase is None or rebase.round <= round:
            return None
        entries = self._store.journal.size(after=round, up_to=rebase.round)
        return rebase if len(encode(rebase)) + SIGNATURE_BYTES < entries else None

    def ask(self, device: str, plan: Plan) -> None:
        """Send a device a plan."""
        self._outbox.send(device, plan, self._store.journal.head(plan.round - 1) or EMPTY)

    def dismiss(self, device: str) -> None:
        """Tell a device that the job is over."""
        self._outbox.relay(device, self.farewell())

    def farewell(self) -> bytes:
        """The end of the job, signed for all."""
        last = self._store.journal.last_round
        return self._outbox.sign(Finish(last), head=self._store.journal.head(last) or EMPTY)

    def _on_result(self, member: Member, result: Result) -> None:
        if result.round <= self._store.journal.last_round:
            counted = self._store.counted(result.round, member.name)
            self._outcome.counts["results late"] += not counted
            self._outbox.send(member.name, Ack(result.round, counted))
            return
        reason = refusal(self.round.plan, self.round.cohort, member.name, result) if self.round else "no round is open"
        if reason is not None:
            self._outcome.counts["results refused"] += 1
            self._complaints.add(member.name, f"a result of '{member.name}' was refused: {reason}")
            return
        assert self.round is not None
        if member.name not in self.round.results:
            self._store.save_result(member.name, result)
            self.round.results[member.name] = result
            self._outcome.counts["results accepted"] += 1
            if result.digest and self.round.plan.digest:
                self.expel(self._digests.claim(Claim(member.name, result.round - 1, result.digest)))
        self._outbox.send(member.name, Ack(result.round, counted=True))

    def _on_decline(self, member: Member, decline: Decline) -> None:
        if self.round and decline.round == self.round.plan.round and member.name in self.round.cohort:
            self._outcome.counts["plans declined"] += 1
            self.round.declined[member.name] = decline
            member.willing = not decline.passing
            self._outbox.send(member.name, Ack(decline.round, counted=False))

    def _on_report(self, member: Member, report: Report) -> None:
        self._outcome.reports[member.name] = report
        self.expel(self._digests.claim(Claim(member.name, report.round, report.digest)))
        self._outbox.send(member.name, Dismissal(member.session))

    def expel(self, wrong: Iterable[Claim]) -> None:
        """Tell devices whose replicas differ to start afresh."""
        for claim in wrong:
            self._outcome.counts["digests differing"] += 1
            log.error("the replica of '%s' differs from the server's after round %d", claim.device, claim.round)
            member = self._roster.get(claim.device)
            if member is not None:
                reason = f"its replica differs after round {claim.round}; start it with --afresh"
                self._outbox.send(claim.device, Refusal(member.key, member.session, reason))

    def _refuse(self, device: str, sync: Sync, reason: str) -> None:
        self._outbox.send(device, Refusal(sync.key, sync.session, reason), bundle=sync.bundle)
