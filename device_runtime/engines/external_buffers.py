"""What a .tflite graph takes from other files: read off the graph's own tables (FlatBuffers), without its tools.

Layers that compute the same have graphs that differ in nothing else (``export/lowering/constants.py``).
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from fedspzo.device_runtime.errors import EngineError

#: Places of fields in their tables, by LiteRT's schema.
_SUBGRAPHS, _EXTERNAL_BUFFERS = 2, 9
_TENSORS, _QUANTIZATION, _EXTERNAL_BUFFER, _SCALE = 0, 4, 10, 2
_ID, _OFFSET, _LENGTH = 0, 2, 3


@dataclass(frozen=True)
class References:
    """What a graph takes from elsewhere.

    Attributes:
        template: hash of the graph without them: equal in graphs that compute the same with constants of their own.
        constants: hash of which tensor takes what: what an engine packs depends on nothing else of the graph.
    """

    template: bytes
    constants: bytes


def read_references(graph: bytes) -> References:
    """What a graph takes from elsewhere. Raises EngineError when it is no graph."""
    try:
        return _read(graph)
    except (struct.error, IndexError):
        raise EngineError("engine.graph-damaged", "a graph's file is damaged; get or export the bundle again") from None


def _read(graph: bytes) -> References:
    masked = bytearray(graph)
    root = _Table(graph, _integer(graph, 0))
    places: dict[int, tuple[int, int]] = {}
    for buffer in root.tables(_EXTERNAL_BUFFERS):
        places[buffer.number(_ID, "<I")] = buffer.number(_OFFSET, "<Q"), buffer.number(_LENGTH, "<Q")
        if offset := buffer.field(_OFFSET):
            masked[offset : offset + 8] = bytes(8)
    taken: list[object] = []
    for part, subgraph in enumerate(root.tables(_SUBGRAPHS)):
        for index, tensor in enumerate(subgraph.tables(_TENSORS)):
            buffer_id = tensor.number(_EXTERNAL_BUFFER, "<I")
            if buffer_id == 0:
                continue
            if at := tensor.field(_QUANTIZATION):
                scales = _Table(graph, at + _integer(graph, at)).floats(_SCALE)
                masked[scales] = bytes(scales.stop - scales.start)
                taken.append((part, index, places.get(buffer_id), hashlib.sha256(graph[scales]).digest()))
            else:  # the scales of 4 bits, which an engine finds by their matrix
                taken.append(places.get(buffer_id))
    return References(hashlib.sha256(masked).digest(), hashlib.sha256(repr(taken).encode()).digest())


class _Table:
    """A table of a FlatBuffer: its own table says where its fields lie."""

    def __init__(self, data: bytes, at: int) -> None:
        self._data, self._at = data, at
        self._fields = at - struct.unpack_from("<i", data, at)[0]

    def field(self, number: int) -> int:
        """Where a field lies; 0 where it has its default."""
        size, place = struct.unpack_from("<H", self._data, self._fields)[0], 4 + 2 * number
        found = struct.unpack_from("<H", self._data, self._fields + place)[0] if place < size else 0
        return self._at + found if found else 0

    def number(self, field: int, kind: str) -> int:
        """An integer field."""
        at = self.field(field)
        return int(struct.unpack_from(kind, self._data, at)[0]) if at else 0

    def tables(self, field: int) -> Iterator[_Table]:
        """The tables that a field lists."""
        if at := self.field(field):
            at += _integer(self._data, at)
            for place in range(at + 4, at + 4 + 4 * _integer(self._data, at), 4):
                yield _Table(self._data, place + _integer(self._data, place))

    def floats(self, field: int) -> slice:
        """Where the numbers lie that a field lists."""
        at = self.field(field)
        if not at:
            return slice(0, 0)
        at += _integer(self._data, at)
        return slice(at + 4, at + 4 + 4 * _integer(self._data, at))


def _integer(data: bytes, at: int) -> int:
    return int(struct.unpack_from("<I", data, at)[0])
