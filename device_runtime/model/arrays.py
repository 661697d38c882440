"""Arrays at 64-byte boundaries, as engines want them, and float32 ones that are used again."""

from __future__ import annotations

import numpy as np

ALIGNMENT = 64
_FLOAT32: np.dtype[np.generic] = np.dtype(np.float32)


def aligned_empty(shape: tuple[int, ...], dtype: np.dtype[np.generic] = _FLOAT32) -> np.ndarray:
    """An uninitialised C-contiguous array whose memory starts at a multiple of 64 bytes."""
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    raw = np.empty(size + ALIGNMENT, dtype=np.uint8)
    offset = -raw.ctypes.data % ALIGNMENT
    return raw[offset : offset + size].view(dtype).reshape(shape)


class ScratchArrays:
    """Aligned arrays that are taken and given back, so that a step allocates nothing after the first one."""

    def __init__(self) -> None:
        self._free: dict[tuple[int, ...], list[np.ndarray]] = {}

    def take(self, shape: tuple[int, ...]) -> np.ndarray:
        """An array of that shape with arbitrary contents."""
        free = self._free.get(shape)
        return free.pop() if free else aligned_empty(shape)

    def give(self, array: np.ndarray) -> None:
        """Hand an array back; its contents may be overwritten from now on."""
        self._free.setdefault(array.shape, []).append(array)
