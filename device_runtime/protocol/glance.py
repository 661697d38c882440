"""What bytes claim to be, from the few at their start: enough to know which signature they need, before decoding."""

from __future__ import annotations

from typing import Any

from fedspzo.device_runtime.errors import MessageError
from fedspzo.device_runtime.protocol.codec import KINDS, VERSION
from fedspzo.device_runtime.protocol.entry import Entry
from fedspzo.device_runtime.protocol.messages import Finish, Rebase
from fedspzo.device_runtime.protocol.plan import Plan

#: No round has a larger number; SQLite holds it.
LAST_ROUND = (1 << 63) - 1
_ARRAY = 4


def glance(payload: bytes) -> tuple[type[Any], int]:
    """The kind of a message, and the round of an entry, a plan, the end of a job or a rebase; 0 for others.

    What :func:`fedspzo.device_runtime.protocol.codec.decode` takes is what this says.

    Raises:
        MessageError: no message of this version begins so.
    """
    major, _, at = _head(payload, 0)
    version_major, version, at = _head(payload, at)
    if major != _ARRAY or version_major:
        raise MessageError("message.foreign", "it is not a FedSPZO message")
    if version != VERSION:
        raise MessageError("message.version", f"it has another protocol version than {VERSION}")
    major, number, at = _head(payload, at)
    if major or number not in KINDS:
        raise MessageError("message.unknown-type", "its type is unknown")
    kind = KINDS[number]
    if kind not in (Entry, Plan, Finish, Rebase):
        return kind, 0
    if kind is Entry:  # begins with its plan
        major, _, at = _head(payload, at)
        if major != _ARRAY:
            raise MessageError("message.foreign", "it is not a FedSPZO message")
    major, round, _ = _head(payload, at)
    if major or round > LAST_ROUND:
        raise MessageError("message.foreign", "it is not a FedSPZO message")
    return kind, round


def _head(data: bytes, at: int) -> tuple[int, int, int]:
    """Major type and number of a CBOR item, and where its content begins. Raises MessageError at the data's end."""
    low = data[at] & 31 if at < len(data) else 31
    width = 0 if low < 24 else 1 << low - 24
    if low > 27 or at + 1 + width > len(data):
        raise MessageError("message.foreign", "it is not a FedSPZO message")
    return data[at] >> 5, int.from_bytes(data[at + 1 : at + 1 + width], "big") if width else low, at + 1 + width
