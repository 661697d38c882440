"""Messages as CBOR, versioned, and checked to the last field on arrival.

A message is the array [version, kind, field, …] with the fields of its class in order; float32 scalars travel as one
little-endian byte string. Anything else is a MessageError: it is counted and dropped, and hurts nobody.
"""

from __future__ import annotations

import hashlib
import math
from functools import lru_cache
from typing import Any, get_args, get_type_hints

import cbor2
import numpy as np

from fedspzo.device_runtime.errors import MessageError, PlanError
from fedspzo.device_runtime.protocol.entry import Contribution, Entry, GroupSum
from fedspzo.device_runtime.protocol.masked import Group, Inquiry, Masked, Partner, Partners, Ready
from fedspzo.device_runtime.protocol.messages import (
    Ack,
    Authorities,
    Decline,
    Dismissal,
    Energy,
    EntryBatch,
    Finish,
    HandOver,
    Hello,
    Keep,
    Message,
    Offer,
    Presence,
    Rebase,
    Refusal,
    Report,
    Result,
    Sync,
    Wanted,
)
from fedspzo.device_runtime.protocol.objective import Objective
from fedspzo.device_runtime.protocol.plain_cbor import loads
from fedspzo.device_runtime.protocol.plan import Block, Masking, Noise, Plan
from fedspzo.device_runtime.protocol.sums import BlockSums, Sums

VERSION = 1
MAX_BYTES = 64 * 1024
#: Bytes of journal entries in one message.
BATCH_BYTES = 40_000
_MAX_TEXT = 4096

#: Number on the wire → class.
KINDS: dict[int, type[Any]] = {
    1: Plan, 2: Entry, 3: Result, 4: Ack, 5: Sync, 6: Refusal, 7: Finish, 8: Report, 9: Presence, 10: Hello,
    11: Decline, 12: EntryBatch, 13: Offer, 14: Dismissal, 15: Rebase, 16: Keep, 17: Wanted,
    18: Ready, 19: Group, 20: Masked, 21: Inquiry, 22: Partners, 23: HandOver, 24: Authorities,
}  # fmt: skip
_NUMBERS = {kind: number for number, kind in KINDS.items()}
#: Class → field name → type, in the order of the wire.
_HINTS = {
    kind: get_type_hints(kind)
    for kind in (*_NUMBERS, Block, Contribution, Energy, BlockSums, Sums, Masking, GroupSum, Partner, Noise, Objective)
}
#: Last fields that came to the format later, in their order, and what each stood for before: those at the end that hold
#: it are left out.
_LATER: dict[type[Any], tuple[tuple[str, Any], ...]] = {
    Sync: (("version", ""), ("can", ()), ("hand_overs", 0), ("authorities", b""), ("hand_overs_to_key", ())),
    Plan: (
        ("rebase_every", 0),
        ("aggregate", ""),
        ("bound", 0.0),
        ("masking", ()),
        ("noise", ()),
        ("objective", ()),
        ("replay", 0),
    ),
    Entry: (("sums", ()),),
    Partner: (("certificate", b""),),
    Keep: (("rounds", 0),),
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
