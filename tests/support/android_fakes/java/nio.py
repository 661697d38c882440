"""Buffers over memory, and float[] as Chaquopy shows it."""

from __future__ import annotations

import ctypes
import sys

import numpy as np


class ByteOrder:
    @staticmethod
    def nativeOrder() -> str:
        return sys.byteorder


class FloatArray:
    """``float[]``: a sequence, and no numpy array."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values.astype(np.float32).ravel()

    def __len__(self) -> int:
        return len(self.values)


class ByteBuffer:
    """A direct buffer; big-endian until told otherwise, as Java's."""

    def __init__(self, address: int, size: int) -> None:
        self._memory = np.frombuffer((ctypes.c_char * size).from_address(address), np.uint8) if size else np.empty(0)
        self._order = "big"

    def order(self, order: str) -> ByteBuffer:
        self._order = order
        return self

    def asFloatBuffer(self) -> FloatBuffer:
        return FloatBuffer(self._memory.view(np.float32), self._order)


class FloatBuffer:
    def __init__(self, values: np.ndarray, order: str) -> None:
        assert order == sys.byteorder, "ExecuTorch refuses a buffer of another byte order"
        self.values, self._position = values, 0

    def rewind(self) -> FloatBuffer:
        self._position = 0
        return self

    def put(self, source: FloatArray) -> FloatBuffer:
        assert isinstance(source, FloatArray)
        stop = self._position + len(source)
        assert stop <= len(self.values), "BufferOverflowException"
        self.values[self._position : stop] = source.values
        self._position = stop
        return self
