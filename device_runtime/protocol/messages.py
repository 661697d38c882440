"""The messages that travel, as CBOR: typed, versioned, checked to the last field on arrival.

A message is the array [version, kind, field, …] with the fields of its class in order; float32 scalars travel as one
little-endian byte string. Anything else is a MessageError: it is counted and dropped, and hurts nobody.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, get_args, get_type_hints

import cbor2
import numpy as np

from fedspzo.device_runtime.errors import MessageError, PlanError
from fedspzo.device_runtime.protocol.masked import Group, Inquiry, Masked, Partner, Partners, Ready
from fedspzo.device_runtime.protocol.plain_cbor import loads
from fedspzo.device_runtime.protocol.plan import Block, Contribution, Entry, GroupSum, Masking, Noise, Plan
from fedspzo.device_runtime.protocol.sums import BlockSums, Sums

VERSION = 1
MAX_BYTES = 64 * 1024
#: Bytes of journal entries in one message.
BATCH_BYTES = 40_000
_MAX_TEXT = 4096
#: What of the protocol came after a first version of it and is not understood by all devices: plans with a rule and a
#: bound, and those that ask for masked results.
CAPABILITIES = ("bound", "masks")


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
        energy: what all its work took, once; empty when the device does not know.
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
    """

    after: int


@dataclass(frozen=True)
class Wanted:
    """Server → device: it lacks entries, or doubts them. The answer is an :class:`EntryBatch`, perhaps an empty one.

    Attributes:
        after: the round after which they begin.
    """

    after: int


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
)

#: Number on the wire → class.
KINDS: dict[int, type[Any]] = {
    1: Plan, 2: Entry, 3: Result, 4: Ack, 5: Sync, 6: Refusal, 7: Finish, 8: Report, 9: Presence, 10: Hello,
    11: Decline, 12: EntryBatch, 13: Offer, 14: Dismissal, 15: Rebase, 16: Keep, 17: Wanted,
    18: Ready, 19: Group, 20: Masked, 21: Inquiry, 22: Partners,
}  # fmt: skip
_NUMBERS = {kind: number for number, kind in KINDS.items()}
#: Class → field name → type, in the order of the wire.
_HINTS = {
    kind: get_type_hints(kind)
    for kind in (*_NUMBERS, Block, Contribution, Energy, BlockSums, Sums, Masking, GroupSum, Partner, Noise)
}
#: Last fields that came to the format later, in their order, and what each stood for before: those at the end that hold
#: it are left out.
_LATER: dict[type[Any], tuple[tuple[str, Any], ...]] = {
    Sync: (("version", ""), ("can", ())),
    Plan: (("rebase_every", 0), ("aggregate", ""), ("bound", 0.0), ("masking", ()), ("noise", ())),
    Entry: (("sums", ()),),
}


def encode(message: Message) -> bytes:
    """The bytes of a message. Raises MessageError when they would exceed :data:`MAX_BYTES`."""
    data: bytes = cbor2.dumps([VERSION, _NUMBERS[type(message)], *_pack_fields(message)], canonical=True)
    if len(data) > MAX_BYTES:
        raise MessageError(
            "message.too-large", f"a {type(message).__name__} of {len(data)} bytes exceeds the limit of {MAX_BYTES}"
        )
    return data


@lru_cache(maxsize=8)
def fingerprint(plan: Plan) -> bytes:
    """Eight bytes that tell a plan from others."""
    return hashlib.blake2b(encode(plan), digest_size=8, person=b"fedspzo plan").digest()


def decode(data: bytes) -> Message:
    """The message that some bytes hold; each message has exactly one form in bytes.

    Raises:
        MessageError: they are not exactly one message of this version, or a number in it is not finite.
    """
    if len(data) > MAX_BYTES:
        raise MessageError("message.too-large", f"a message of {len(data)} bytes exceeds the limit of {MAX_BYTES}")
    record = loads(data)
    if not isinstance(record, list) or len(record) < 2:
        raise MessageError("message.foreign", "it is not a FedSPZO message")
    version, number, *values = record
    if type(version) is not int or version != VERSION:
        raise MessageError("message.version", f"it has another protocol version than {VERSION}")
    if type(number) is not int or number not in KINDS:
        raise MessageError("message.unknown-type", "its type is unknown")
    message: Message = _unpack_fields(KINDS[number], values)
    if encode(message) != data:
        raise MessageError("message.not-canonical", "its encoding is not canonical")
    return message


def _pack_fields(value: Any) -> list[Any]:
    hints = _HINTS[type(value)]
    fields = [(name, getattr(value, name)) for name in hints]
    for later in reversed(_LATER.get(type(value), ())):
        if fields[-1] != later:
            break
        fields.pop()
    return [_pack(field, hints[name]) for name, field in fields]


def _pack(value: Any, hint: Any) -> Any:
    if hint in _HINTS:
        return _pack_fields(value)
    if hint == tuple[float, ...]:
        return np.asarray(value, "<f4").tobytes()
    if isinstance(value, tuple):
        return [_pack(item, get_args(hint)[0]) for item in value]
    return value


def _unpack_fields(kind: type[Any], values: Any) -> Any:
    hints = _HINTS[kind]
    later = [list(default) if isinstance(default, tuple) else default for _, default in _LATER.get(kind, ())]
    if isinstance(values, list) and len(hints) - len(later) <= len(values) < len(hints):
        values = [*values, *later[len(values) - len(hints) :]]
    if not isinstance(values, list) or len(values) != len(hints):
        raise MessageError("message.field-count", f"a {kind.__name__} does not have {len(hints)} fields")
    unpacked = [
        _unpack(value, hint, f"{kind.__name__}.{name}")
        for value, (name, hint) in zip(values, hints.items(), strict=True)
    ]
    try:
        return kind(*unpacked)
    except PlanError as error:
        raise MessageError("message.contradictory", str(error)) from None


def _unpack(value: Any, hint: Any, where: str) -> Any:
    if hint in _HINTS:
        return _unpack_fields(hint, value)
    if hint == tuple[float, ...]:
        return _unpack_scalars(value, where)
    if get_args(hint):
        if isinstance(value, list):
            return tuple(_unpack(item, get_args(hint)[0], where) for item in value)
    elif hint is float:
        if type(value) is float and math.isfinite(value):
            return value
    elif hint is int:
        if type(value) is int and 0 <= value < 1 << 64:
            return value
    elif type(value) is hint and (hint is not str or len(value) <= _MAX_TEXT):
        return value
    raise MessageError("message.field-type", f"{where} does not hold a valid {getattr(hint, '__name__', hint)}")


def _unpack_scalars(value: Any, where: str) -> tuple[float, ...]:
    if type(value) is not bytes or len(value) % 4:
        raise MessageError("message.not-float32", f"{where} is not a byte string of float32")
    scalars = np.frombuffer(value, "<f4")
    if not np.isfinite(scalars).all():
        raise MessageError("message.not-finite", f"{where} has a number that is not finite")
    return tuple(scalars.tolist())
