"""Reads which classes and methods a dex file defines: https://source.android.com/docs/core/runtime/dex-format."""

from __future__ import annotations

import struct

_CLASS_DEF_BYTES, _METHOD_ID_BYTES = 32, 8


def dex_members(content: bytes) -> dict[str, set[str]]:
    """Class → names of its methods, for each class in the file."""
    strings, types, methods, classes = (struct.unpack_from("<I", content, at)[0] for at in (60, 68, 92, 100))
    (class_count,) = struct.unpack_from("<I", content, 96)

    def string(index: int) -> str:
        (start,) = struct.unpack_from("<I", content, strings + 4 * index)
        _, start = _number(content, start)  # its length in UTF-16
        return content[start : content.index(b"\0", start)].decode()

    def class_name(index: int) -> str:
        return string(struct.unpack_from("<I", content, types + 4 * index)[0])[1:-1].replace("/", ".")

    found = {}
    for at in range(classes, classes + class_count * _CLASS_DEF_BYTES, _CLASS_DEF_BYTES):
        index, data = struct.unpack_from("<I20xI", content, at)
        found[class_name(index)] = {
            string(struct.unpack_from("<4xI", content, methods + _METHOD_ID_BYTES * method)[0])
            for method in (_methods(content, data) if data else ())
        }
    return found


def _methods(content: bytes, at: int) -> list[int]:
    """Indices of a class's methods, from its data: counts, fields, and methods as differences."""
    counts = []
    for _ in range(4):
        count, at = _number(content, at)
        counts.append(count)
    for _ in range(2 * (counts[0] + counts[1])):
        _, at = _number(content, at)
    found = []
    for count in counts[2:]:
        index = 0
        for _ in range(count):
            step, at = _number(content, at)
            index += step
            found.append(index)
            for _ in range(2):  # flags, and where the code is
                _, at = _number(content, at)
    return found


def _number(content: bytes, at: int) -> tuple[int, int]:
    """An unsigned number in LEB128, and where it ends."""
    value = shift = 0
    while True:
        byte = content[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, at
