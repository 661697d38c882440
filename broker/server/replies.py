"""How the server handles a device's message and answers it. Invalid messages are refused and harm no other device."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from dataclasses import replace

from fedspzo.broker.rounds.aggregate import check_result
from fedspzo.broker.rounds.anomalies import Watch
from fedspzo.broker.rounds.masked_round import MaskedRound
from fedspzo.broker.server.authorities import Authorities
from fedspzo.broker.server.devices import Member, Roster, accept, announce, part
from fedspzo.broker.server.entrance import Entrance
from fedspzo.broker.server.evaluation import Claim, DigestWatch
from fedspzo.broker.server.inbox import Heard
from fedspzo.broker.server.outbox import Outbox
from fedspzo.broker.server.pages import Pages
from fedspzo.broker.server.progress import Progress
from fedspzo.broker.server.standing import Standing
from fedspzo.broker.server.store import ServerStore
from fedspzo.broker.server.summing import Summing
from fedspzo.device_runtime.errors import MessageError
from fedspzo.device_runtime.log import RateLimitedLog, printable
from fedspzo.device_runtime.protocol.codec import BATCH_BYTES, encode, fingerprint
from fedspzo.device_runtime.protocol.device_keys import former_keys
from fedspzo.device_runtime.protocol.masked import Inquiry, Masked, Ready
from fedspzo.device_runtime.protocol.messages import (
    ROUNDS,
    Ack,
    Decline,
    Dismissal,
    EntryBatch,
    Keep,
    Offer,
    Presence,
    Rebase,
    Refusal,
    Report,
    Result,
    Sync,
)
from fedspzo.device_runtime.protocol.signing import SIGNATURE_BYTES

log = logging.getLogger(__name__)

#: Seconds in which the same entries are not sent to a device twice.
PATIENCE_S = 1.0
#: Integers that SQLite holds are below this.
_MOST = 1 << 63
#: Bytes of a batch beside its entries.
_BATCH_HEAD = 8
#: A device that is this many rounds behind is also offered a snapshot.
FAR_BEHIND = 64


class Replies:
    """Answers devices."""

    def __init__(
        self,
        store: ServerStore,
        roster: Roster,
        outbox: Outbox,
        progress: Progress,
        digests: DigestWatch,
        standing: Standing,
        summing: Summing,
        entrance: Entrance,
        watch: Watch,
        authorities: Authorities,
    ) -> None:
        self._store = store
        self._roster = roster
        self._outbox = outbox
        self._progress = progress
        self._digests = digests
        self._standing = standing
        self._summing = summing
        self._entrance, self._copies = entrance, entrance.copies
        self._watch = watch
        self._authorities = authorities
        self._pages = Pages(store.journal)
        self._warnings = RateLimitedLog(log)

    def drop(self, device: str, reason: MessageError) -> None:
        """Count and log that something was no message."""
        self._progress.counts["messages dropped"] += 1
        said = f"a message of '{printable(device, 64)}' was dropped: {printable(str(reason))}"
        self._warnings.warn(device, said, reason.kind)

    def answer(self, heard: Heard) -> None:
        """Take in a message and answer it.

        Raises:
            MessageError: its sender may not send it.
        """
        device, message = heard.device, heard.message
        if isinstance(message, Sync):
            before = self._copies.count(device)
            self._on_sync(device, message, heard.size)
            self._copies.tell(device, before)
            return
        member = self._roster.get(device)
        if member is None:
            return
        if message is None:
            log.info("device '%s' cannot be reached any more", device)
            part(member)
            return
        reason = self._expelled(member)
        if reason is not None:
            raise MessageError("message.not-admitted", reason)
        self._outbox.hand_over(device, member.hand_overs)
        if isinstance(message, Presence):
            before = member.copies
            announce(member, message)
            self._copies.tell(device, before)
            if not member.online:
                log.info("device '%s' has left", device)
        elif isinstance(message, Result):
            self._on_result(member, message)
        elif isinstance(message, Ready):
            self._on_ready(member, message)
        elif isinstance(message, Masked):
            self._on_masked(member, message)
        elif isinstance(message, Inquiry):
            self._summing.answer(member, message)
        elif isinstance(message, Decline):
            self._on_decline(member, message)
        elif isinstance(message, EntryBatch):
            if (reason := self._standing.hear(member, message.entries)) is not None:
                self._outbox.send(device, Refusal(member.key, member.session, reason))
        else:
            self._on_report(member, message)
        self._note(device, heard.size)

    def expel_unlisted(self) -> None:
        """Send those away who are there, and are blocked or not on the list of those admitted any more."""
        if self._entrance.changed():
            for name in self._roster.there(time.monotonic()):
                member = self._roster.get(name)
                if member is not None:
                    self._expelled(member)

    def send_away(self, devices: Iterable[str]) -> None:
        """Send those of some devices away that are expelled for their results."""
        for name in devices:
            member = self._roster.get(name)
            if member is not None and self._watch.expelled(name) is not None:
                self._progress.counts["devices expelled"] += 1
                self._expelled(member)

    def expel(self, wrong: Iterable[Claim]) -> None:
        """Tell devices whose replicas differ to start afresh."""
        for claim in wrong:
            self._progress.counts["digests differing"] += 1
            log.error("the replica of '%s' differs from the server's after round %d", claim.device, claim.round)
            member = self._roster.get(claim.device)
            if member is not None:
                reason = f"its replica differs after round {claim.round}; start it with --afresh"
                self._outbox.send(claim.device, Refusal(member.key, member.session, reason))

    def _expelled(self, member: Member) -> str | None:
        """Send a member away that is expelled, or not on the list of those admitted any more; returns why."""
        reason = self._entrance.barred(member)
        if reason is not None:
            part(member)
            self._outbox.send(member.name, Refusal(member.key, member.session, reason))
        return reason

    def _note(self, device: str, size: int) -> None:
        """Keep account of a message that was in order."""
        member = self._roster.edit(device)
        if member is not None:
            member.bytes_up += size
            member.seen = time.monotonic()

    def _on_sync(self, device: str, sync: Sync, size: int) -> None:
        if max(sync.round, sync.examples) >= _MOST:
            raise MessageError("message.numbers", "its numbers are beyond any use")
        self._outbox.hand_over(device, sync.hand_overs)  # first: by the newest key it believes the rest
        if sync.hand_overs > len(self._store.keys.hand_overs):
            text = (
                f"device '{device}' says that this server has changed its key since: if so, the state folder was"
                " restored from a backup of before the change; restore one of after it"
            )
            self._warnings.warn(device, text, "server.older-key")
        known, former = self._roster.get(device), former_keys(device, sync.key, sync.hand_overs_to_key)
        if sync.bundle != self._store.bundle:
            self._refuse(device, sync, "its bundle is not this job's; give it the job's bundle")
        elif (reason := self._entrance.refusal(device, sync.key, former)) is not None:
            if known is not None and known.key == sync.key:
                part(known)
            self._refuse(device, sync, reason)
        elif (member := self._roster.admit(device, sync.key)) is None:
            self._refuse(device, sync, "the job has too many devices")
        elif sync.head != self._store.journal.head(sync.round):
            self._entrance.rekey(member, sync.key, former)
            member.session = sync.session  # the answer comes from there
            if (reason := self._standing.ask(member, sync)) is not None:
                self._refuse(device, sync, reason)
        else:
            self._progress.synced_at = time.monotonic()
            if not member.synced:
                log.info("device '%s' is there, at round %d", device, sync.round)
            self._entrance.rekey(member, sync.key, former)
            accept(member, sync)
            self._standing.agree(member)
            self._note(device, size)
            keep = Keep(self._store.backed_up, self._progress.rounds if ROUNDS in member.can else 0)
            if member.told != (sync.session, keep):
                member.told = sync.session, keep
                self._outbox.send(device, keep)
            self._authorities.tell(member)
            self._bring_up(member)

    def _bring_up(self, member: Member) -> None:
        """Send a device what it lacks, or else what it is asked."""
        last = self._store.journal.last_round
        now, offer, opened = time.monotonic(), self._progress.offer, self._progress.round
        if member.round < last and (member.brought != member.round or now >= member.brought_at + PATIENCE_S):
            member.brought, member.brought_at = member.round, now
            if (rebase := self._shorter(member)) is not None:
                member.brought_to = rebase.round
                self._outbox.send_after(member.name, rebase, member.round)
            else:
                room = min(BATCH_BYTES, self._outbox.room(member.name) - _BATCH_HEAD)
                page = self._pages.after(member.round, room)
                member.brought_to = member.round + len(page)
                self._outbox.send(member.name, EntryBatch(page))
            if rebase is None and offer is not None and offer[0].round >= member.round + FAR_BEHIND:
                snapshot, url = offer
                self._outbox.send(
                    member.name,
                    Offer(round=snapshot.round, sha256=snapshot.sha256, size=snapshot.size, url=url),
                )
        elif member.round == last and self._progress.finished:
            self._outbox.finish(member.name)
        if opened and member.willing and opened.awaits(member.name, member.session):
            said = opened.declined.get(member.name)
            if said is not None and said.passing:
                del opened.declined[member.name]  # it waits no more, and is waited for
            self._outbox.ask(member.name, opened.plan)

    def _shorter(self, member: Member) -> Rebase | None:
        """What brings a device to the last round that rebased, where it can be sent and the entries are longer."""
        rebase = self._store.rebase
        if rebase is None or rebase.round <= member.round:
            return None
        size, entries = len(encode(rebase)), self._store.journal.size(after=member.round, up_to=rebase.round)
        return rebase if size <= self._outbox.room(member.name) and size + SIGNATURE_BYTES < entries else None

    def _on_result(self, member: Member, result: Result) -> None:
        opened, counts = self._progress.round, self._progress.counts
        if self._too_late(member, result.round):
            return
        try:
            if opened is None or opened.plan.masking:
                raise MessageError("result.no-open-round", "no round is open that takes single results")
            check_result(opened.plan, opened.cohort, member.name, result)
        except MessageError as error:
            self._reject(member, error)
            return
        if member.name not in opened.results:
            self._store.save_result(member.name, result)
            opened.results[member.name] = result
            opened.arrived[member.name] = time.monotonic()
            counts["results accepted"] += 1
            if result.digest and opened.plan.digest:
                self.expel(self._digests.claim(Claim(member.name, result.round - 1, result.digest)))
        self._outbox.send(member.name, Ack(result.round, counted=True))

    def _on_ready(self, member: Member, ready: Ready) -> None:
        opened = self._progress.round
        if ready.round <= self._store.journal.last_round:
            self._progress.counts["results late"] += not self._store.counted(ready.round, member.name)
            return
        try:
            if not isinstance(opened, MaskedRound) or ready.round != opened.plan.round:
                raise MessageError("result.no-open-round", "no round is open that sums results")
            self._summing.introduce(member, ready)
        except MessageError as error:
            self._reject(member, error)
            return
        if ready.plan != fingerprint(opened.plan) or member.name not in opened.cohort:
            return  # of an earlier attempt
        if ready.digest and opened.plan.digest and member.name not in opened.ready:
            self.expel(self._digests.claim(Claim(member.name, ready.round - 1, ready.digest)))
        if not opened.groups:
            opened.ready[member.name] = member.session
        self._summing.invite(opened, member.name)

    def _on_masked(self, member: Member, masked: Masked) -> None:
        opened = self._progress.round
        if self._too_late(member, masked.round):
            return
        try:
            if not isinstance(opened, MaskedRound):
                raise MessageError("result.no-open-round", "no round is open that sums results")
            self._progress.counts["results accepted"] += self._summing.take(opened, member.name, masked)
        except MessageError as error:
            self._reject(member, error)

    def _too_late(self, member: Member, round: int) -> bool:
        """Answer who sends something for a round that is closed."""
        if round > self._store.journal.last_round:
            return False
        counted = self._store.counted(round, member.name)
        self._progress.counts["results late"] += not counted
        self._outbox.send(member.name, Ack(round, counted))
        return True

    def _reject(self, member: Member, error: MessageError) -> None:
        self._progress.counts["results refused"] += 1
        self._warnings.warn(member.name, f"a result of '{member.name}' was refused: {error}", error.kind)

    def _on_decline(self, member: Member, decline: Decline) -> None:
        opened = self._progress.round
        if opened and decline.round == opened.plan.round and member.name in opened.cohort:
            self._progress.counts["plans declined"] += 1
            opened.declined[member.name] = said = replace(decline, reason=printable(decline.reason))
            member.willing = not decline.passing
            if not decline.passing:
                text = f"device '{member.name}' cannot answer round {said.round}: {said.reason}"
                self._warnings.warn(member.name, text, "device.declined")
            self._outbox.send(member.name, Ack(decline.round, counted=False))

    def _on_report(self, member: Member, report: Report) -> None:
        if member.name not in self._progress.reports:
            log.info("device '%s' has reported after round %d", member.name, report.round)
        self._progress.reports[member.name] = report
        member.round = min(report.round, self._store.journal.last_round)
        self.expel(self._digests.claim(Claim(member.name, report.round, report.digest)))
        self._outbox.send(member.name, Dismissal(member.session))

    def _refuse(self, device: str, sync: Sync, reason: str) -> None:
        self._outbox.send(device, Refusal(sync.key, sync.session, reason), bundle=sync.bundle)
