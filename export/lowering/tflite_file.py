"""Takes a .tflite graph apart: replaces its constants by references to parts of other files."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

#: External buffers' numbers have the highest bit set, as LiteRT's own tools give them.
_EXTERNAL = 1 << 31


class LiteRTModel:
    """A .tflite graph whose constants can be external buffers."""

    def __init__(self, content: bytes) -> None:
        from ai_edge_litert import schema_py_generated as schema

        self._schema, self._content = schema, content
        self._model: Any = schema.ModelT.InitFromPackedBuf(content, 0)
        self._groups: dict[str, int] = {}
        self.clear()

    def fully_connected(self) -> Iterator[tuple[Any, Any, Any | None]]:
        """Of each fully connected layer: its graph, its weight and its bias, if there is one."""
        for graph in self._model.subgraphs:
            for operator in graph.operators:
                code = self._model.operatorCodes[operator.opcodeIndex]
                if max(int(code.builtinCode), int(code.deprecatedBuiltinCode)) == _FULLY_CONNECTED:
                    _, weight, *bias = operator.inputs
                    has_bias = bool(bias) and bias[0] >= 0
                    yield graph, graph.tensors[weight], graph.tensors[bias[0]] if has_bias else None

    def take(self, tensor: Any) -> bytes:
        """A constant tensor's bytes, which the graph no longer holds; none when it is no constant."""
        buffer = self._model.buffers[tensor.buffer]
        data = b"" if buffer.data is None else bytes(buffer.data)
        taken = self._content[buffer.offset : buffer.offset + buffer.size] if buffer.offset else data
        buffer.data, buffer.offset, buffer.size, tensor.buffer = None, 0, 0, 0
        return taken

    def keep_rest(self) -> None:
        """Let go of what was taken: what is left is small, and copied, lest it keep the whole file in memory."""
        for buffer in self._model.buffers:
            if buffer.offset:  # the quantiser puts data behind the graph, where it no longer lies
                buffer.data = np.frombuffer(self._content, np.uint8, buffer.size, buffer.offset).copy()
                buffer.offset = buffer.size = 0
            elif buffer.data is not None:
                buffer.data = np.array(buffer.data)
        self._content = b""

    def clear(self) -> None:
        """Forget the files."""
        self._model.externalBuffers, self._model.externalBufferGroups = [], []
        self._groups.clear()
        self._group("")

    def place(self, tensor: Any, file: str, offset: int, length: int) -> None:
        """Say where a taken tensor's bytes lie: in a file of the same folder."""
        buffer = self._schema.ExternalBufferT()
        buffer.id = _EXTERNAL | len(self._model.externalBuffers)
        buffer.group, buffer.offset, buffer.length, buffer.packing = self._group(file), offset, length, "unpacked"
        tensor.externalBuffer = buffer.id
        self._model.externalBuffers.append(buffer)

    def content(self) -> bytes:
        """The graph's file."""
        import flatbuffers

        builder = flatbuffers.Builder(1 << 16)
        builder.Finish(self._model.Pack(builder), file_identifier=b"TFL3")
        return bytes(builder.Output())

    def _group(self, name: str) -> int:
        if name not in self._groups:
            group = self._schema.ExternalBufferGroupT()
            group.name = name
            self._groups[name] = len(self._model.externalBufferGroups)
            self._model.externalBufferGroups.append(group)
        return self._groups[name]


_FULLY_CONNECTED = 9
