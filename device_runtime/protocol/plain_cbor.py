"""CBOR from outside: one linear scan lets only plain data of definite lengths through to the decoder.

A decoder does what its input asks: tags compile patterns, build big numbers, share and nest values. The scan knows
arrays, integers of 64 bits, floats, byte and text strings, booleans and null, and refuses everything else.
"""

from __future__ import annotations

from typing import Any

import cbor2

from fedspzo.device_runtime.errors import MessageError

#: Arrays within each other, and values in all: more than any message needs.
MAX_DEPTH, MAX_ITEMS = 8, 1 << 15
_UNSIGNED, _NEGATIVE, _BYTES, _TEXT, _ARRAY, _OTHER = 0, 1, 2, 3, 4, 7
#: Of the last major type: false, true, null, and floats of 2, 4 and 8 bytes.
_SIMPLE = frozenset((20, 21, 22, 25, 26, 27))


def loads(data: bytes) -> Any:
    """The value that some bytes are. Raises MessageError where they are not exactly one plain value."""
    scan(data)
    try:
        return cbor2.loads(data)
    except Exception:  # whatever a decoder can be brought to raise by bytes from outside
        raise MessageError("message.not-cbor", "it is not CBOR") from None


def scan(data: bytes) -> None:
    """Raise MessageError unless the bytes have the form of exactly one plain value; strings are not looked into."""
    at, items, size = 0, 0, len(data)
    open_arrays = [1]  # values that each array, and the whole, still lacks
    while open_arrays:
        if not open_arrays[-1]:
            open_arrays.pop()
            continue
        open_arrays[-1] -= 1
        items += 1
        if items > MAX_ITEMS:
            raise MessageError("message.too-many-values", f"it has more than {MAX_ITEMS} values")
        if at >= size:
            raise MessageError("message.not-cbor", "it is not CBOR")
        major, low = data[at] >> 5, data[at] & 31
        if (major > _ARRAY and (major != _OTHER or low not in _SIMPLE)) or low > 27:
            raise MessageError("message.not-plain", "it has a tag, a map, an indefinite length or another odd value")
        width = 1 << low - 24 if low > 23 and not (major == _OTHER and low < 25) else 0
        number = int.from_bytes(data[at + 1 : at + 1 + width], "big") if width else low
        at += 1 + width
        if major in (_BYTES, _TEXT):
            at += number
        elif major == _ARRAY:
            if number > size - at:
                raise MessageError("message.not-cbor", "it is not CBOR")
            if len(open_arrays) > MAX_DEPTH:
                raise MessageError("message.too-deep", f"it has more than {MAX_DEPTH} arrays within each other")
            open_arrays.append(number)
        if at > size:
            raise MessageError("message.not-cbor", "it is not CBOR")
    if at != size:
        raise MessageError("message.not-canonical", "its encoding is not canonical")
