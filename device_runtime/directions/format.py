"""Directions: seeded perturbations that are the same bits on every machine, and the kernel that adds them to weights.

Direction format 1 (design rule: bit-exact everywhere, so it is part of the bundle format and has golden vectors):

* z(seed) of tensor ``t`` comes from the raw 64-bit words of Philox4x64-10 with key (seed, t), as numpy's ``Philox``
  counts them; a word's low half comes first. A tensor is a flat C-order run of elements, cut into chunks of 2**17.
* ``rademacher``: one bit an element. A chunk takes 2048 words, seen as 4096 32-bit words; element 4096·k + j of the
  chunk is −1 where bit 31 − k of 32-bit word j is set, else +1. Chunk c starts at counter 512·c.
* ``gaussian``: one byte an element, in order, which picks from ``directions.quantiles.NORMAL``. Chunk c starts
  at counter 4096·c.
* A sum of directions is formed in float32 in the listed order, each term rounded once, then added to the weight,
  rounded once; no fused multiply-add.
* Weights stored in 16 bits are widened first. A step that changes them is rounded at random
  (``directions.halves``) with one 16-bit number an element, in order, from the words of Philox with key
  (rounding seed, t), low bits first.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from fedspzo.device_runtime.directions.halves import narrow, widen
from fedspzo.device_runtime.directions.quantiles import NORMAL

FORMAT = 1
CHUNK = 1 << 17
DISTRIBUTIONS = ("rademacher", "gaussian")

_PLANES = 32
_PLANE = CHUNK // _PLANES
_SIGN = np.uint32(0x80000000)
_SHIFTS = np.arange(_PLANES, dtype=np.uint32)[:, None]


@dataclass(frozen=True)
class Direction:
    """Stands for ``coefficient · z(seed)``; the coefficient is rounded to float32 where it is used."""

    seed: int
    coefficient: float


def derive_seed(base_seed: int, owner: str, step: int, block: int, path: Sequence[int]) -> int:
    """The 64-bit seed of one direction, a BLAKE2b hash of all that tells it from any other.

    Args:
        base_seed: the round's seed, 0 ≤ base_seed < 2**64.
        owner: the device's id, or "" when all devices of the round share directions.
        step: the local step, from 0.
        block: the block's index, from 0.
        path: the index at each fan-out on the way to the direction, one for each block up to ``block``.
    """
    message = struct.pack(f"<QII{len(path)}I", base_seed, step, block, *path) + owner.encode()
    return int.from_bytes(hashlib.blake2b(message, digest_size=8, person=b"fedspzo dir 1").digest(), "little")


@dataclass(frozen=True)
class Step:
    """A change of weights that is made at once: a sum of directions, and how it is rounded.

    Attributes:
        directions: the terms, in their order.
        rounding: seed of the random rounding of 16-bit weights.
    """

    directions: Sequence[Direction]
    rounding: int


#: Some tensors: index in the bundle → weights, C-contiguous, float32 or one of the 16-bit types.
Tensors = Mapping[int, np.ndarray]


class DirectionKernel(Protocol):
    """Adds sums of directions to weights. It holds scratch memory, so it serves one thread at a time."""

    def step(self, stored: Tensors, steps: Sequence[Step]) -> None:
        """Make steps, one after the other, on stored weights in place."""

    def shift(self, weights: Tensors, directions: Sequence[Direction], out: Tensors) -> None:
        """Write ``weights + Σ coefficient · z(seed)`` to ``out``: float32 of the same sizes, or the same arrays.

        An array of ``out`` may be a view [rows, panels, columns of a panel] or [panels, columns of a panel] of memory
        in which a panel's rows lie one after the other and panels are apart; panels have 8, 16, 32 or 64 columns.
        """

    def shift_pair(
        self, weights: Tensors, offsets: Sequence[Direction], direction: Direction, plus: Tensors, minus: Tensors
    ) -> None:
        """Write ``weights + (Σ offsets ± direction)`` to ``plus`` and ``minus``, making z once for both."""


class NumpyKernel:
    """The kernel in numpy: what the format means, and what runs where nothing faster is installed."""

    def __init__(self, distribution: str) -> None:
        """``distribution`` is one of :data:`DISTRIBUTIONS`."""
        self._stream = _STREAMS[distribution]
        self._sum = np.empty(CHUNK, np.float32)
        self._term = np.empty(CHUNK, np.float32)
        self._wide = np.empty(CHUNK, np.float32)

    def step(self, stored: Tensors, steps: Sequence[Step]) -> None:
        """See :class:`DirectionKernel`."""
        for tensor, weights in stored.items():
            for step in steps:
                if weights.dtype == np.float32:
                    self._shift(weights, step.directions, tensor, weights)
                elif step.directions:
                    self._step_rounded(weights, step, tensor)

    def shift(self, weights: Tensors, directions: Sequence[Direction], out: Tensors) -> None:
        """See :class:`DirectionKernel`."""
        for tensor, stored in weights.items():
            self._shift(stored, directions, tensor, out[tensor])

    def shift_pair(
        self, weights: Tensors, offsets: Sequence[Direction], direction: Direction, plus: Tensors, minus: Tensors
    ) -> None:
        """See :class:`DirectionKernel`."""
        for tensor, stored in weights.items():
            self._shift_pair(stored, offsets, direction, tensor, plus[tensor], minus[tensor])

    def _step_rounded(self, stored: np.ndarray, step: Step, tensor: int) -> None:
        flat = stored.reshape(-1)
        streams = [self._stream(direction, tensor) for direction in step.directions]
        words = _philox(step.rounding, tensor)
        for start in range(0, flat.size, CHUNK):
            here = flat[start : start + CHUNK]
            random = words.random_raw(-(-here.size // 4)).astype("<u8", copy=False).view("<u2")[: here.size]
            exact = widen(here, self._wide[: here.size])
            np.add(exact, self._next_sum(streams, here.size), out=exact)
            narrow(exact, random, here)

    def _shift(self, weights: np.ndarray, directions: Sequence[Direction], tensor: int, out: np.ndarray) -> None:
        if not directions:
            widen(weights.reshape(out.shape), out)
            return
        flat = weights.reshape(-1)
        target = out.reshape(-1) if out.flags.c_contiguous else np.empty(out.size, np.float32)
        streams = [self._stream(direction, tensor) for direction in directions]
        for start in range(0, flat.size, CHUNK):
            stop = min(start + CHUNK, flat.size)
            np.add(self._exact(flat[start:stop]), self._next_sum(streams, stop - start), out=target[start:stop])
        if not out.flags.c_contiguous:
            out[...] = target.reshape(out.shape)

    def _shift_pair(
        self,
        weights: np.ndarray,
        offsets: Sequence[Direction],
        direction: Direction,
        tensor: int,
        plus: np.ndarray,
        minus: np.ndarray,
    ) -> None:
        flat, above, below = weights.reshape(-1), plus.reshape(-1), minus.reshape(-1)
        streams = [self._stream(offset, tensor) for offset in offsets]
        perturbation = self._stream(direction, tensor)
        for start in range(0, flat.size, CHUNK):
            stop = min(start + CHUNK, flat.size)
            here, up, down = self._exact(flat[start:stop]), above[start:stop], below[start:stop]
            offset = self._next_sum(streams, stop - start) if streams else None
            term = perturbation.next(self._term, stop - start)
            if offset is None:
                np.add(here, term, out=up)
                np.subtract(here, term, out=down)
            else:
                np.add(here, np.add(offset, term, out=up), out=up)
                np.add(here, np.subtract(offset, term, out=down), out=down)

    def _exact(self, stored: np.ndarray) -> np.ndarray:
        """A chunk of stored weights as float32."""
        return stored if stored.dtype == np.float32 else widen(stored, self._wide[: stored.size])

    def _next_sum(self, streams: Sequence[_Stream], size: int) -> np.ndarray:
        total = streams[0].next(self._sum, size)
        for stream in streams[1:]:
            np.add(total, stream.next(self._term, size), out=total)
        return total


class _Stream(Protocol):
    def next(self, scratch: np.ndarray, size: int) -> np.ndarray:
        """The next ``size`` elements of coefficient · z, in ``scratch``; whole chunks up to the tensor's last one."""


class _RademacherStream:
    def __init__(self, direction: Direction, tensor: int) -> None:
        self._words = _philox(direction.seed, tensor)
        self._coefficient = np.float32(direction.coefficient).view(np.uint32)

    def next(self, scratch: np.ndarray, size: int) -> np.ndarray:
        planes, width = -(-size // _PLANE), min(size, _PLANE)
        words = self._words.random_raw(-(-width // 2)).astype("<u8", copy=False).view("<u4")[:width]
        bits = scratch.view(np.uint32)[: planes * width].reshape(planes, width)
        np.left_shift(words, _SHIFTS[:planes], out=bits)
        np.bitwise_and(bits, _SIGN, out=bits)
        np.bitwise_xor(bits, self._coefficient, out=bits)
        return scratch[:size]


class _GaussianStream:
    def __init__(self, direction: Direction, tensor: int) -> None:
        self._words = _philox(direction.seed, tensor)
        self._table = NORMAL * np.float32(direction.coefficient)

    def next(self, scratch: np.ndarray, size: int) -> np.ndarray:
        quantiles = self._words.random_raw(-(-size // 8)).astype("<u8", copy=False).view(np.uint8)[:size]
        # The index is a byte, so clipping never acts; it spares numpy a buffered bounds check.
        return np.take(self._table, quantiles, out=scratch[:size], mode="clip")


_STREAMS: dict[str, Callable[[Direction, int], _Stream]] = {
    "rademacher": _RademacherStream,
    "gaussian": _GaussianStream,
}


def _philox(seed: int, tensor: int) -> np.random.Philox:
    return np.random.Philox(key=np.array([seed, tensor], dtype=np.uint64), counter=0)
