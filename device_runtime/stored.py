"""How tensors lie in a bundle: float32, 16 bits, or 8 and 4 bits in groups that share a scale; all widened to float32.

Quantised (a frozen base under adapters): a matrix [1, in, out] is cut into groups of 32 along ``in``; a weight is its
code times a scale, one float16 for each group and output. 8 bits: int8 codes [in/32, 32, out]. 4 bits: codes −8 … 7
stored plus 8, two in a byte [in/32, 16, out]: the low halves are a group's first 16 rows, the high ones its last.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from device_runtime import halves
from device_runtime.halves import DTYPES
from device_runtime.tensors import TensorFile

GROUP = 32
SCALES = ".scales"
#: All types of stored tensors.
NAMES = (*DTYPES, "int8", "int4")
QUANTISED = ("int8", "int4")
#: Weights that are widened at a time, so that what is made on the way stays in the cache.
_BLOCK = 1 << 18


@dataclass(frozen=True, eq=False)
class Quantised:
    """A quantised matrix.

    Attributes:
        codes: int8 [in/32, 32, out] or uint8 [in/32, 16, out].
        scales: float16 [in/32, out].
    """

    codes: np.ndarray
    scales: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the matrix: [1, in, out]."""
        return (1, GROUP * self.codes.shape[0], self.codes.shape[2])

    def widen(self, out: np.ndarray) -> np.ndarray:
        """The matrix as float32 in ``out``."""
        groups, rows, width = self.codes.shape
        target = out.reshape(groups, GROUP, width)
        step = max(1, _BLOCK // (GROUP * width))
        for start in range(0, groups, step):
            codes, here = self.codes[start : start + step], target[start : start + step]
            if rows == GROUP:
                here[...] = codes
            else:
                here[:, :rows] = np.bitwise_and(codes, 15)
                here[:, rows:] = np.right_shift(codes, 4)
                np.subtract(here, 8, out=here)
            np.multiply(here, self.scales[start : start + step, None].astype(np.float32), out=here)
        return out


Stored = np.ndarray | Quantised


def layout(name: str, shape: tuple[int, ...], dtype: str) -> dict[str, tuple[tuple[int, ...], np.dtype[np.generic]]]:
    """What a tensor consists of in the file: name → shape and type of the array. Raises KeyError for another type."""
    if dtype not in QUANTISED:
        return {name: (shape, DTYPES[dtype])}
    groups, width = shape[1] // GROUP, shape[2]
    codes = (
        ((groups, GROUP, width), np.dtype("i1")) if dtype == "int8" else ((groups, GROUP // 2, width), np.dtype("u1"))
    )
    return {name: codes, name + SCALES: ((groups, width), DTYPES["float16"])}


def view(file: TensorFile, name: str, dtype: str) -> Stored:
    """A tensor over the mapped file."""
    if dtype in QUANTISED:
        return Quantised(file.view(name), file.view(name + SCALES))
    return file.view(name)


def widen(stored: Stored, out: np.ndarray) -> np.ndarray:
    """A stored tensor as float32, in ``out`` (same shape)."""
    return stored.widen(out) if isinstance(stored, Quantised) else halves.widen(stored, out)


def widened(stored: Stored) -> np.ndarray:
    """A stored tensor as float32: the array itself where it is that."""
    if isinstance(stored, np.ndarray) and stored.dtype == np.float32:
        return stored
    return widen(stored, np.empty(stored.shape, np.float32))


def quantise(matrix: np.ndarray, dtype: str) -> Quantised:
    """Round a matrix float32 [1, in, out] to the nearest codes, with the scale that just holds each group's largest."""
    groups = matrix.reshape(-1, GROUP, matrix.shape[-1])
    top = 127 if dtype == "int8" else 7
    scales = (np.abs(groups).max(axis=1) / top).astype(np.float16)
    divisor = np.where(scales > 0, scales, 1).astype(np.float32)[:, None]
    codes = np.clip(np.rint(groups / divisor), -top - 1, top)
    if dtype == "int8":
        return Quantised(codes.astype(np.int8), scales)
    shifted = (codes + 8).astype(np.uint8)
    return Quantised(shifted[:, : GROUP // 2] | shifted[:, GROUP // 2 :] << 4, scales)
