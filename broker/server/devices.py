"""The devices that the server knows, and whether they can take part."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from fedspzo.broker.rounds.sampling import Candidate
from fedspzo.device_runtime.link.authorities import FINGERPRINT_BYTES
from fedspzo.device_runtime.log import printable
from fedspzo.device_runtime.protocol.messages import CAPABILITIES, Energy, Keep, Presence, Sync

#: Seconds without a word after which a device counts as gone: more than twice what it lets pass between syncs.
LEASE_S = 150.0
#: Devices that a job can have: what is kept of each takes memory.
MAX_DEVICES = 100_000
#: Processes of a device that are told apart.
FORMER = 8


@dataclass
class Member:
    """A device that has synced at least once.

    Attributes:
        name: its id.
        key: its public key.
        session: of its process.
        former: of the processes before it.
        online: as its birth message, its will and its syncs say.
        synced: it stands where it can be asked.
        willing: its conditions allow it to be asked.
        seen: when it was last heard, by the monotonic clock.
        round, examples, battery, charging: as its last sync said; of the round, also its report at the job's end.
        brought_to: the last round that it was sent.
        answered: twice the last round that it has answered, and 1 more where that was with a masked result.
        version, can: of its program, and what of the protocol it understands, as its last sync said.
        hand_overs: how many times it has followed the server to another key, as its last sync said.
        authorities: fingerprint of those that it trusts at the broker, as it said last.
        copies: how often two processes had its id or its key.
        floods, cut_off: how often it sent far more than it needs to, and whether its login was taken away for that.
        served: last round that its result counted in.
        results: results that counted.
        bytes_up, bytes_down: payload received from and sent to it.
        measured_joules, estimated_joules: that counted results took it, by its sensor and by estimates.
        joules_uncertainty: of both together: a device's rounds err alike, so theirs add up.
        joules_results: results that said so.
        told: a session, and what it was told to keep; None before one was told.
        brought, brought_at: from which round on it was sent entries last, and when.
    """

    name: str
    key: bytes
    session: int = 0
    former: tuple[int, ...] = ()
    online: bool = False
    synced: bool = False
    willing: bool = True
    seen: float = 0.0
    round: int = 0
    examples: int = 0
    battery: float = 1.0
    charging: bool = False
    served: int = 0
    results: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    measured_joules: float = 0.0
    estimated_joules: float = 0.0
    joules_uncertainty: float = 0.0
    joules_results: int = 0
    told: tuple[int, Keep] | None = None
    brought: int = -1
    brought_at: float = 0.0
    brought_to: int = 0
    answered: int = 0
    version: str = ""
    can: frozenset[str] = frozenset()
    hand_overs: int = 0
    authorities: bytes = b""
    copies: int = 0
    floods: int = 0
    cut_off: bool = False


class Roster:
    """The members of a job.

    Attributes:
        blocked: names that no round waits for, whether or not they have come.
    """

    def __init__(self, members: Iterator[Member]) -> None:
        """Start with those known from before; they have yet to come."""
        self._members = {member.name: member for member in members}
        self._owners = {member.key: member.name for member in reversed(self._members.values())}
        self._changed: set[str] = set()
        self.blocked: Collection[str] = ()

    def get(self, name: str) -> Member | None:
        """A member; None for a stranger."""
        return self._members.get(name)

    def edit(self, name: str) -> Member | None:
        """A member that something is noted of; None for a stranger."""
        if name in self._members:
            self._changed.add(name)
        return self._members.get(name)

    def admit(self, name: str, key: bytes) -> Member | None:
        """The member of a name, made with a key where it is new; None when there are too many."""
        if name not in self._members:
            if len(self._members) >= MAX_DEVICES:
                return None
            self._members[name] = Member(name, key)
            self._owners[key] = name
        return self.edit(name)

    def owner(self, key: bytes) -> str | None:
        """The device that a key is of; None for a key that is new."""
        return self._owners.get(key)

    def rekey(self, member: Member, key: bytes) -> None:
        """Give a member a key that is of no other: the operator's list may name another one than before."""
        if self._owners.get(member.key) == member.name:
            del self._owners[member.key]
        member.key, self._owners[key] = key, member.name

    def served_after(self, round: int) -> set[str]:
        """Devices with results that counted after a round."""
        return {member.name for member in self._members.values() if member.results and member.served > round}

    def standing_at(self, round: int) -> set[str]:
        """Devices that have gone along with this server to a round or beyond."""
        return {
            member.name
            for member in self._members.values()
            if (member.results and member.served > round) or (member.synced and member.round >= round)
        }

    def changed(self) -> list[Member]:
        """Members that something was noted of since the last call."""
        names, self._changed = self._changed, set()
        return [self._members[name] for name in names]

    def left(self, name: str, now: float) -> bool:
        """Whether a device was there and has gone, or is blocked; one that was never seen may yet come."""
        member = self._members.get(name)
        if name in self.blocked:
            return True
        return member is not None and bool(member.session) and not present(member, now)

    def ready(self, now: float, needs: frozenset[str] = frozenset()) -> dict[str, Candidate]:
        """Devices that can be asked: there, synced, willing, and of a version that knows what a job ``needs``."""
        return {
            member.name: Candidate(member.served, member.battery, member.charging, joules_a_round(member))
            for member in self._members.values()
            if askable(member, now) and needs <= member.can
        }

    def there(self, now: float) -> set[str]:
        """Devices that are there and synced, whether or not they are willing."""
        return {member.name for member in self._members.values() if member.synced and present(member, now)}

    def count_ready(self, now: float, needs: frozenset[str] = frozenset()) -> int:
        """How many can be asked; any thread may want to know."""
        return sum(askable(member, now) and needs <= member.can for member in self.all())

    def too_old(self, now: float, needs: frozenset[str]) -> list[str]:
        """Devices that could be asked if their version knew what a job needs."""
        return [m.name for m in self._members.values() if askable(m, now) and not needs <= m.can]

    def joules(self) -> tuple[float, float]:
        """What counted results took, by sensors and by estimates; any thread may want to know."""
        members = self.all()
        return sum(m.measured_joules for m in members), sum(m.estimated_joules for m in members)

    def all(self) -> list[Member]:
        """All members; any thread may look at them."""
        return list(self._members.values())

    def __len__(self) -> int:
        return len(self._members)


def announce(member: Member, presence: Presence) -> None:
    """Note a birth message or a will; the will of an earlier session changes nothing."""
    if presence.online:
        _enter(member, presence.session)
        member.online = True
    elif member.session == presence.session:
        part(member)


def _enter(member: Member, session: int) -> None:
    """Note which process speaks. One that was followed by another and speaks again runs beside it: a copy."""
    if session != member.session:
        member.copies += session in member.former
        member.former = (member.session, *member.former)[:FORMER]
        member.session = session


def part(member: Member) -> None:
    """Note that a device is not there any more, or may not be."""
    member.online = member.synced = False


def accept(member: Member, sync: Sync) -> None:
    """Note where a device stands; it is there, so a will that came late is undone."""
    _enter(member, sync.session)
    member.online, member.synced = True, True
    member.round, member.examples = sync.round, sync.examples
    member.battery, member.charging, member.willing = sync.battery, sync.charging, sync.willing
    member.version, member.can = printable(sync.version, 40), frozenset(sync.can).intersection(CAPABILITIES)
    member.hand_overs = sync.hand_overs
    if len(sync.authorities) == FINGERPRINT_BYTES:  # else it trusts those that it said before, as it keeps them
        member.authorities = sync.authorities


def credit(member: Member, round: int, energies: Iterable[Energy] = ()) -> None:
    """Note that a result of a device counted, and what it says that the round took."""
    member.served, member.results = round, member.results + 1
    for energy in energies:
        if energy.estimated:
            member.estimated_joules += energy.joules
        else:
            member.measured_joules += energy.joules
        member.joules_uncertainty += energy.uncertainty
        member.joules_results += 1


def joules_a_round(member: Member) -> float:
    """On average over the rounds in which it reported; 0 before it has reported."""
    return (member.measured_joules + member.estimated_joules) / max(member.joules_results, 1)


def askable(member: Member, now: float) -> bool:
    """Whether a device can be asked: it is there, synced and willing."""
    return member.synced and member.willing and present(member, now)


def present(member: Member, now: float) -> bool:
    """Whether a device is there: it says so, and was heard lately."""
    return member.online and now < member.seen + LEASE_S
