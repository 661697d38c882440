"""How a bundle stores tensors: float32, 16 bits, or codes of 8 and 4 bits with scales.

Quantised (a frozen base under adapters, and the token table): matrices [..., out, in] are codes times scales, laid out
as engines take them. 8 bits: int8 codes of −127 … 127, a float32 scale for each row. 4 bits: codes of −7 … 7, two in a
byte [..., out, in/2], the even one in the low half; each 32 in a row share a float16 scale [..., out, in/32] that
bfloat16 holds as well.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fedspzo.device_runtime.directions import halves
from fedspzo.device_runtime.directions.halves import DTYPES
from fedspzo.device_runtime.model.tensor_file import TensorFile

GROUP = 32
SCALES = ".scales"
#: All types of stored tensors.
NAMES = (*DTYPES, "int8", "int4")
QUANTISED = ("int8", "int4")
#: Parts of a group's largest weight that the largest code may stand for.
_PARTS = (1.0, 0.95, 0.9, 0.85, 0.8)
#: Groups that are quantised at a time, so that what is made on the way stays in the cache.
_BLOCK = 1 << 12


@dataclass(frozen=True, eq=False)
class Quantised:
    """Quantised matrices.

    Attributes:
        codes: int8 [..., out, in] or uint8 [..., out, in/2].
        scales: float32 [..., out] or float16 [..., out, in/32].
    """

    codes: np.ndarray
    scales: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the matrices: [..., out, in]."""
        *lead, width = self.codes.shape
        return (*lead, width * (1 if self.codes.dtype == np.int8 else 2))

    def rows(self, indices: np.ndarray) -> Quantised:
        """Rows of the first matrix, at indices of any shape."""
        flat = self.scales.reshape(self.codes.size // self.codes.shape[-1], *self.scales.shape[self.codes.ndim - 1 :])
        return Quantised(self.codes.reshape(len(flat), -1)[indices], flat[indices])

    def slice(self, start: int, stop: int) -> Quantised:
        """Consecutive rows of all matrices, as views."""
        scales = self.scales[..., start:stop] if self.codes.dtype == np.int8 else self.scales[..., start:stop, :]
        return Quantised(self.codes[..., start:stop, :], scales)

    def widen(self, out: np.ndarray) -> np.ndarray:
        """The matrices as float32 in ``out``."""
        if self.codes.dtype == np.int8:
            return np.multiply(self.codes, self.scales[..., None], out=out)
        groups = out.reshape(*self.scales.shape, GROUP)
        signed = self.codes.view(np.int8).reshape(*self.scales.shape, GROUP // 2)
        np.right_shift(np.left_shift(signed, 4), 4, out=groups[..., 0::2], casting="unsafe")
        np.right_shift(signed, 4, out=groups[..., 1::2], casting="unsafe")
        np.multiply(groups, self.scales[..., None], out=groups)
        return out


Stored = np.ndarray | Quantised


def layout(name: str, shape: tuple[int, ...], dtype: str) -> dict[str, tuple[tuple[int, ...], np.dtype[np.generic]]]:
    """What a tensor consists of in the file: name → shape and type of the array. Raises KeyError for another type."""
    *lead, width = shape
    if dtype == "int8":
        return {name: (shape, np.dtype("i1")), name + SCALES: (tuple(lead), DTYPES["float32"])}
    if dtype == "int4":
        return {
            name: ((*lead, width // 2), np.dtype("u1")),
            name + SCALES: ((*lead, width // GROUP), DTYPES["float16"]),
        }
    return {name: (shape, DTYPES[dtype])}


def stored_bytes(shape: tuple[int, ...], dtype: str) -> int:
    """Bytes of a tensor at rest."""
    return sum(math.prod(size) * array.itemsize for size, array in layout("", shape, dtype).values())


def read(file: TensorFile, name: str, dtype: str) -> Stored:
    """A tensor, read without mapping the file's pages."""
    arrays = []
    for part in (name, name + SCALES) if dtype in QUANTISED else (name,):
        arrays.append(np.empty(file.shape(part), file.dtype(part)))
        file.read_into(part, arrays[-1])
    return Quantised(*arrays) if dtype in QUANTISED else arrays[0]


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


@np.errstate(over="ignore", invalid="ignore")
def quantise(matrix: np.ndarray, dtype: str) -> Quantised:
    """Round matrices float32 [..., out, in] to codes.

    8 bits: the scale just holds a row's largest. 4 bits: of the scales that hold a group's largest, or cut it off by up
    to a fifth, the one with the least squared error. Weights so small that float16 has no scale for them become 0;
    those that are too large, or no numbers, give a scale that is not finite.
    """
    if dtype == "int8":
        scales = _positive(np.abs(matrix).max(axis=-1) / np.float32(127))
        return Quantised(np.clip(np.rint(matrix / scales[..., None]), -127, 127).astype(np.int8), scales)
    groups = matrix.reshape(-1, GROUP)
    packed = np.empty((len(groups), GROUP // 2), np.uint8)
    scales = np.empty(len(groups), np.float16)
    for start in range(0, len(groups), _BLOCK):
        here = slice(start, start + _BLOCK)
        packed[here], scales[here] = _best_of_four_bits(groups[here])
    return Quantised(packed.reshape(*matrix.shape[:-1], -1), scales.reshape(*matrix.shape[:-1], -1))


def pack(codes: np.ndarray, scales: np.ndarray) -> Quantised:
    """Codes int8 [..., in] of −7 … 7, and scales float16 [..., in/32] that are :func:`storable`, as they are stored."""
    unsigned = codes.view(np.uint8)
    return Quantised(unsigned[..., 0::2] & 15 | unsigned[..., 1::2] << 4, scales)


def storable(scales: np.ndarray) -> np.ndarray:
    """The nearest float16 of scales float32 that bfloat16 holds as well; 1 in place of 0."""
    return _positive(_bfloat16(scales).astype(np.float16))


def _best_of_four_bits(groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Packed codes and float16 scales of groups [n, 32]."""
    largest = np.abs(groups).max(axis=-1)
    errors, tried = [], []
    for part in _PARTS:
        tried.append(storable(largest * np.float32(part / 7)))
        difference = _four_bits(groups, tried[-1]) * tried[-1][:, None].astype(np.float32) - groups
        errors.append(np.einsum("ij,ij->i", difference, difference))
    scales = np.choose(np.argmin(errors, axis=0), tried)
    return pack(_four_bits(groups, scales).astype(np.int8), scales).codes, scales


def _four_bits(groups: np.ndarray, scales: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(groups / scales[:, None].astype(np.float32)), -7, 7)


def _positive(scales: np.ndarray) -> np.ndarray:
    """Engines take no scale of 0, nor a subnormal one; where all weights are as small, any other will do."""
    return np.where(scales < np.finfo(np.float32).tiny, np.ones_like(scales), scales)


def _bfloat16(values: np.ndarray) -> np.ndarray:
    """Float32 rounded to the nearest that bfloat16 holds (ties away from zero)."""
    return ((values.view(np.uint32) + np.uint32(0x8000)) & np.uint32(0xFFFF0000)).view(np.float32)
