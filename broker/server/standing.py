"""Whether a server's journal is the newest that its key has signed, by what its devices say and can show.

A folder that was restored from an old backup, or copied to a second server, would sign a second entry for a round. So a
server in such a folder signs nothing new before most of its devices have said where they stand. A device that stands
elsewhere is asked for the entries that it has: the server's own signature on one is the proof, and ends this server.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass

from fedspzo.broker.server.devices import Member, Roster
from fedspzo.broker.server.outbox import Outbox
from fedspzo.broker.server.recovery import fitting
from fedspzo.broker.server.store import ServerStore
from fedspzo.device_runtime.errors import MessageError, StateError
from fedspzo.device_runtime.protocol.entry import Entry
from fedspzo.device_runtime.protocol.glance import glance
from fedspzo.device_runtime.protocol.messages import Sync, Wanted
from fedspzo.device_runtime.protocol.signing import split

log = logging.getLogger(__name__)

#: The devices of a job are those that counted in one of this number of last rounds.
RECENT = 64
#: Seconds between two questions to a device, and those in which it answers one.
PATIENCE_S, ANSWER_S = 1.0, 10.0


@dataclass
class _Question:
    """The search for the first entry in which a device's journal differs from the server's.

    Attributes:
        session: of the device.
        stands, ahead: its round, and whether that is after the server's.
        low: a round up to which both may be the same.
        high: a round up to which they are not.
        after: where the entries that were asked for begin.
        since, asked_at: when the search began, and when the device was asked last.
    """

    session: int
    stands: int
    ahead: bool
    low: int
    high: int
    after: int
    since: float
    asked_at: float


class Standing:
    """Keeps a server in doubt from signing, and finds the proof that it is behind, or that there are two.

    Attributes:
        doubtful: nothing new is signed.
    """

    def __init__(self, store: ServerStore, roster: Roster, outbox: Outbox, trusted: bool) -> None:
        """Look at where the state folder is.

        Args:
            trusted: an operator has said that the journal is the newest.
        """
        self._store, self._roster, self._outbox = store, roster, outbox
        self._questions: dict[str, _Question] = {}
        self._silent = roster.served_after(store.journal.last_round - RECENT)
        self._told = 0
        self._needed = len(self._silent) // 2 + 1
        self.doubtful = store.moved and bool(self._silent) and not trusted
        if self.doubtful:
            log.warning(
                "the state folder was restored or copied, so no round is opened before %d of %d devices have said where"
                " they stand; --trust-journal overrules this",
                *(self._needed, len(self._silent)),
            )
        else:
            store.settle()

    def asks(self, device: str) -> bool:
        """Whether a device is asked for its entries."""
        return device in self._questions

    def agree(self, member: Member) -> None:
        """Note that a device stands where the server's own journal leads."""
        self._questions.pop(member.name, None)
        if not self.doubtful or member.name not in self._silent:
            return
        self._silent.remove(member.name)
        self._told += 1
        if self._told >= self._needed:
            self.doubtful = False
            self._store.settle()
            log.info("%d devices stand where the journal says, so the job continues", self._told)

    def ask(self, member: Member, sync: Sync) -> str | None:
        """Ask a device that stands elsewhere for its entries; returns why it cannot take part, where that is clear."""
        now, question = time.monotonic(), self._questions.get(member.name)
        if question is None or question.session != sync.session:
            last = self._store.journal.last_round
            high = min(sync.round, last + 1)
            question = _Question(sync.session, sync.round, sync.round > last, 0, high, high - 1, now, -PATIENCE_S)
            self._questions[member.name] = question
        elif now > question.since + ANSWER_S:  # a device of an earlier version does not answer
            return _reason(question)
        self._ask(member, question)
        return None

    def hear(self, member: Member, entries: Sequence[bytes]) -> str | None:
        """Look at what a device shows; returns why it cannot take part, where that is clear.

        Raises:
            MessageError: it was not asked, and shows nothing new.
            StateError: this server is behind, or another one has its key and most devices do not follow this one.
        """
        question = self._questions.get(member.name)
        at = question.after if question else _round_of(entries) - 1
        journal, head = self._store.journal, self._store.journal.head(at)
        first = at
        for signed in entries if head is not None else ():
            row = fitting(signed, at + 1, head or b"", self._store.check)
            if row is None:
                break
            own = journal.rows(at, 1)
            if not own:
                raise _behind(member.name, at)
            if own[0].head != row.head:
                return self._two(member, row.round)
            at, head = row.round, row.head
        if question is None and at > first:
            return None  # a device has seen another server's entry, and shows ours
        if question is None:
            raise MessageError("message.not-wanted", "its entries were not asked for")
        if entries and at == first:
            question.high = first  # they differ earlier
        else:
            question.low = max(at, first + 1)
        if question.low >= question.high:
            return _reason(question)
        question.after, question.since = (question.low + question.high) // 2, time.monotonic()
        question.asked_at = -PATIENCE_S
        self._ask(member, question)
        return None

    def _two(self, member: Member, round: int) -> str:
        """Two entries are signed for a round: whoever most devices follow continues."""
        ours = self._roster.standing_at(round) - {member.name}
        both = self._roster.served_after(self._store.journal.last_round - RECENT) | ours | {member.name}
        if 2 * len(ours) <= len(both):
            raise _two(member.name, round)
        log.error(
            "device '%s' has another entry for round %d, also signed with this server's key: another server runs this"
            " job, or did; %d of %d devices follow this one, which continues",
            *(member.name, round, len(ours), len(both)),
        )
        return f"most devices have another entry than it for round {round}; start it with --afresh"

    def _ask(self, member: Member, question: _Question) -> None:
        now = time.monotonic()
        if now >= question.asked_at + PATIENCE_S:
            question.asked_at = now
            self._outbox.send(member.name, Wanted(question.after))


def _reason(question: _Question) -> str:
    """What a device is told that has shown nothing."""
    if question.ahead:
        return (
            f"it stands at round {question.stands}, and the server at an earlier one; the server was restored from an"
            " old backup, or is another: ask its operator, and keep the state folder"
        )
    return "its journal is not this job's, and it has nothing to show that this server signed; start it with --afresh"


def _round_of(entries: Sequence[bytes]) -> int:
    """The round of the first of some entries. Raises MessageError for an empty batch."""
    kind, round = glance(split(entries[0])) if entries else (None, 0)
    if kind is not Entry:
        raise MessageError("message.not-an-entry", "a batch holds something else than journal entries")
    return round


def _behind(device: str, last: int) -> StateError:
    return StateError(
        "server.behind",
        f"device '{device}' has round {last + 1}, signed by this server, whose journal ends at round {last}: its folder"
        " was restored from an old backup, or another server runs this job; stop the other one, or take the missing"
        " rounds with fedspzo server adopt",
    )


def _two(device: str, round: int) -> StateError:
    return StateError(
        "server.two-journals",
        f"device '{device}' has another entry for round {round}, also signed with this server's key: another server"
        " runs this job, or did before this folder was restored; stop this one, or begin again from a backup of before"
        f" round {round} with fedspzo server adopt",
    )
