"""The messages that travel between a server and its devices; :mod:`fedspzo.device_runtime.protocol.codec` has their
bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

from fedspzo.device_runtime.protocol.entry import Entry
from fedspzo.device_runtime.protocol.masked import Group, Inquiry, Masked, Partners, Ready
from fedspzo.device_runtime.protocol.plan import Plan
from fedspzo.device_runtime.protocol.sums import Sums

#: What of the protocol came after a first version of it and is not understood by all devices: plans with a rule and a
#: bound, and those that ask for masked results, for noise, for another objective than the loss, or for replay; being
#: told how many rounds the job has; and following a server to another key, and to other authorities at the broker.
OBJECTIVES, ROUNDS, KEYS, REPLAY = "objectives", "rounds", "keys", "replay"
CAPABILITIES = ("bound", "masks", "noise", OBJECTIVES, ROUNDS, KEYS, REPLAY)


@dataclass(frozen=True)
class Hello:
    """Server → devices after every connect: it is there, and wants to know where they stand."""


@dataclass(frozen=True)
class Sync:
    """Device → server after every connect or hello, when it misses entries, and now and then: where its replica stands.

    Attributes:
        key: its public key (32 bytes), which signs all that it sends.
        session: of the process, as in its :class:`Presence`.
        bundle: identity of its bundle (32 bytes).
        round: last round applied.
        head: hash of the journal up to there (16 bytes), which tells journals apart.
        examples: examples it holds.
        battery: charge between 0 and 1; 1 where there is no battery.
        charging: whether it is connected to power.
        willing: whether its conditions allow it to take part in rounds now.
        version: of its program; "" from before it was said.
        can: what of the protocol it understands, of :data:`CAPABILITIES`; a later version knows more.
        hand_overs: how many times it has followed the server to another key, from the one that its bundle names.
        authorities: fingerprint of those that it trusts at the broker, see ``link.authorities``; empty before the
            server has named its own, as one of an older version never does.
        hand_overs_to_key: of its former keys, see ``protocol.device_keys``; none where it still has its first.
    """

    key: bytes
    session: int
    bundle: bytes
    round: int
    head: bytes
    examples: int
    battery: float
    charging: bool
    willing: bool
    version: str = ""
    can: tuple[str, ...] = ()
    hand_overs: int = 0
    authorities: bytes = b""
    hand_overs_to_key: tuple[bytes, ...] = ()


@dataclass(frozen=True)
class Energy:
    """What work took, above what the device takes when it is idle.

    Attributes:
        joules: as measured or estimated.
        uncertainty: of ``joules``, one standard deviation.
        estimated: no sensor was read: operations were counted and priced.
    """

    joules: float
    uncertainty: float
    estimated: bool


@dataclass(frozen=True)
class Result:
    """Device → server: what it measured.

    Attributes:
        round: the plan's round.
        plan: the plan's :func:`fingerprint`.
        scalars: float32 projected gradients, as many as the plan asks for.
        loss: mean loss over the plan's steps, halfway between plus and minus or at the centre.
        examples: examples used.
        seconds: time the local steps took.
        digest: of the replica that the round started from, or empty when the plan did not ask.
        energy: what the round's work took so far, once; empty when the plan did not ask or the device does not know.
    """

    round: int
    plan: bytes
    scalars: tuple[float, ...]
    loss: float
    examples: int
    seconds: float
    digest: bytes
    energy: tuple[Energy, ...] = ()


@dataclass(frozen=True)
class Decline:
    """Device → server: it does not answer the round's plan, and why.

    Attributes:
        round: the plan's round.
        reason: in words.
        passing: its conditions do not allow it now; it says so in a :class:`Sync` when they do.
    """

    round: int
    reason: str
    passing: bool


@dataclass(frozen=True)
class Ack:
    """Server → device: stop sending what answers this round.

    Attributes:
        round: the round.
        counted: a result is stored and will count; otherwise it came too late.
    """

    round: int
    counted: bool


@dataclass(frozen=True)
class Refusal:
    """Server → device: the session cannot take part, and why.

    Attributes:
        key: of the device that is meant, since its name alone may have been used by somebody else.
        session: of its process.
    """

    key: bytes
    session: int
    reason: str


@dataclass(frozen=True)
class EntryBatch:
    """Server → device: journal entries in order, each as it was signed when its round was closed.

    A device answers :class:`Wanted` with one, too.
    """

    entries: tuple[bytes, ...]


@dataclass(frozen=True)
class Offer:
    """Server → device far behind: a snapshot that it may fetch instead of the entries.

    Attributes:
        round: the snapshot's.
        sha256, size: of the file.
        url: where it lies.
    """

    round: int
    sha256: bytes
    size: int
    url: str


@dataclass(frozen=True)
class Rebase:
    """Server → device that is late: what the journal adds up to at a round that rebases, instead of the entries.

    Attributes:
        round: the round.
        head: hash of the journal up to it (16 bytes).
        sums: of its coefficients.
    """

    round: int
    head: bytes
    sums: Sums


@dataclass(frozen=True)
class Finish:
    """Server → devices: the job ends after this round."""

    round: int


@dataclass(frozen=True)
class Report:
    """Device → server at the end of a job: its replica's digest and what the work cost.

    Attributes:
        round: last round applied.
        digest: of the replica.
        rss_bytes: peak resident memory of the process.
        bytes_up, bytes_down: payload published and received.
        results: results sent.
        energy: what all its work took, once; empty when the device does not know, or a plan had masks or noise.
    """

    round: int
    digest: bytes
    rss_bytes: int
    bytes_up: int
    bytes_down: int
    results: int
    energy: tuple[Energy, ...] = ()


@dataclass(frozen=True)
class Dismissal:
    """Server → device: the report has come, and the session may end."""

    session: int


@dataclass(frozen=True)
class Keep:
    """Server → device: no backup has the entries of later rounds than this, so the device keeps them.

    Attributes:
        after: the round.
        rounds: that the job has at most; 0 where the device does not know what this is.
    """

    after: int
    rounds: int = 0


@dataclass(frozen=True)
class Wanted:
    """Server → device: it lacks entries, or doubts them. The answer is an :class:`EntryBatch`, perhaps an empty one.

    Attributes:
        after: the round after which they begin.
    """

    after: int


@dataclass(frozen=True)
class HandOver:
    """Server → devices: it signs with another key from now on. This is signed with the one before.

    Attributes:
        before: its public key until then (32 bytes).
        key: the new one.
        round: the first whose entry the new one signs.
    """

    before: bytes
    key: bytes
    round: int


@dataclass(frozen=True)
class Authorities:
    """Server → device: the authorities to trust from now on, at the broker and over HTTPS.

    Attributes:
        certificates: of the authorities (DER).
    """

    certificates: tuple[bytes, ...]


@dataclass(frozen=True)
class Presence:
    """Retained state of a device: a birth message, or its will, with the same session number."""

    online: bool
    session: int


Message = (
    Hello
    | Sync
    | EntryBatch
    | Offer
    | Refusal
    | Plan
    | Result
    | Decline
    | Ack
    | Entry
    | Finish
    | Report
    | Dismissal
    | Rebase
    | Presence
    | Keep
    | Wanted
    | Ready
    | Group
    | Masked
    | Inquiry
    | Partners
    | HandOver
    | Authorities
)
