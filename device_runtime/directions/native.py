"""The direction kernel in C (``kernel.c``), through ctypes: the bits of the one in numpy, on several threads.

The library is built when the package is installed, where there is a C compiler, and an Android app carries it.
Without it numpy does the work.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from ctypes import POINTER, addressof, c_float, c_int32, c_int64, c_uint64, c_void_p
from functools import lru_cache
from itertools import accumulate
from pathlib import Path

import numpy as np

from fedspzo.device_runtime.directions.format import (
    DISTRIBUTIONS,
    FORMAT,
    Direction,
    DirectionKernel,
    NumpyKernel,
    Step,
    Tensors,
)
from fedspzo.device_runtime.directions.halves import DTYPES, widen
from fedspzo.device_runtime.directions.quantiles import NORMAL

LIBRARY = Path(__file__).parent / "libdirections.so"
_STORED = {dtype: number for number, dtype in enumerate(DTYPES.values())}
#: Elements below which a second thread costs more than it saves.
_WORTH_A_THREAD = 1 << 18


class _Sums(ctypes.Structure):
    _fields_ = [
        ("seeds", c_void_p),
        ("coefficients", c_void_p),
        ("stops", c_void_p),
        ("roundings", c_void_p),
        ("quantiles", c_void_p),
        ("sums", c_int64),
        ("distribution", c_int32),
        ("paired", c_int32),
    ]


class _Task(ctypes.Structure):
    _fields_ = [
        ("weights", c_void_p),
        ("plus", c_void_p),
        ("minus", c_void_p),
        ("stepped", c_void_p),
        ("size", c_int64),
        ("tensor", c_uint64),
        ("columns", c_int64),
        ("panel", c_int64),
        ("stride", c_int64),
        ("stored", c_int32),
    ]


@lru_cache(maxsize=1)
def _library() -> Callable[..., None] | None:
    """The C function, or None where it was not built, or was for another format or machine."""
    prototype = ctypes.CFUNCTYPE(None, POINTER(_Sums), POINTER(_Task), c_int64, c_int64, c_int64)
    place = LIBRARY if LIBRARY.exists() else LIBRARY.name  # by name the loader finds it among an app's libraries
    try:
        return prototype((f"fedspzo_add_directions_{FORMAT}", ctypes.CDLL(str(place))))
    except (OSError, AttributeError):
        return None


def make_kernel(distribution: str, threads: int = 1) -> DirectionKernel:
    """The fastest kernel there is for a distribution of directions, on at least one thread."""
    add = _library()
    return NumpyKernel(distribution) if add is None else NativeKernel(add, distribution, max(threads, 1))


class NativeKernel:
    """See :class:`fedspzo.device_runtime.directions.format.DirectionKernel`."""

    def __init__(self, add: Callable[..., None], distribution: str, threads: int) -> None:
        self._add = add
        self._distribution = DISTRIBUTIONS.index(distribution)
        self._threads = threads
        self._workers = ThreadPoolExecutor(threads - 1, "directions") if threads > 1 else None

    def step(self, stored: Tensors, steps: Sequence[Step]) -> None:
        """See :class:`fedspzo.device_runtime.directions.format.DirectionKernel`."""
        steps = [step for step in steps if step.directions]
        if steps:
            tasks = [
                _Task(weights=_at(w), plus=_at(w), tensor=tensor, size=w.size)
                if w.dtype == np.float32
                else _Task(weights=_at(w), stepped=_at(w), tensor=tensor, size=w.size, stored=_STORED[w.dtype])
                for tensor, w in stored.items()
            ]
            self._run(tasks, steps)

    def shift(self, weights: Tensors, directions: Sequence[Direction], out: Tensors) -> None:
        """See :class:`fedspzo.device_runtime.directions.format.DirectionKernel`."""
        if not directions:
            for tensor, stored in weights.items():
                widen(stored.reshape(out[tensor].shape), out[tensor])
            return
        tasks = [
            _Task(weights=_at(w), tensor=tensor, size=w.size, stored=_STORED[w.dtype], **_places(out[tensor]))
            for tensor, w in weights.items()
        ]
        self._run(tasks, [Step(directions, 0)])

    def shift_pair(
        self, weights: Tensors, offsets: Sequence[Direction], direction: Direction, plus: Tensors, minus: Tensors
    ) -> None:
        """See :class:`fedspzo.device_runtime.directions.format.DirectionKernel`."""
        tasks = [
            _Task(
                weights=_at(w),
                plus=_at(plus[tensor]),
                minus=_at(minus[tensor]),
                tensor=tensor,
                size=w.size,
                stored=_STORED[w.dtype],
            )
            for tensor, w in weights.items()
        ]
        self._run(tasks, [Step([*offsets, direction], 0)], paired=True)

    def _run(self, tasks: Sequence[_Task], steps: Sequence[Step], paired: bool = False) -> None:
        directions = [direction for step in steps for direction in step.directions]
        arrays = (  # quicker than numpy's where there are few
            (c_uint64 * len(directions))(*[direction.seed for direction in directions]),
            (c_float * len(directions))(*[direction.coefficient for direction in directions]),
            (c_int64 * len(steps))(*accumulate(len(step.directions) for step in steps)),
            (c_uint64 * len(steps))(*[step.rounding for step in steps]),
        )
        places = [addressof(array) for array in arrays]
        sums = _Sums(*places, _QUANTILES, len(steps), self._distribution, paired)
        listed = (_Task * len(tasks))(*tasks)
        workers = min(self._threads, max(1, sum(task.size for task in tasks) // _WORTH_A_THREAD))
        others = [
            self._workers.submit(self._add, sums, listed, len(tasks), worker, workers)
            for worker in range(1, workers)
            if self._workers is not None
        ]
        self._add(sums, listed, len(tasks), 0, workers)
        for other in others:
            other.result()


def _places(out: np.ndarray) -> dict[str, int]:
    """Where a tensor's elements go: in order, or to panels; the caller keeps the array alive."""
    if out.flags.c_contiguous:
        return {"plus": _at(out)}
    *rows, panels, panel = out.shape
    stride = out.strides[-2] // out.itemsize
    assert panel in (8, 16, 32, 64)
    assert out.strides[:-2] == (out.itemsize * panel,) * len(rows)
    return {"plus": out.ctypes.data, "columns": panels * panel, "panel": panel, "stride": stride}


def _at(array: np.ndarray) -> int:
    """Where an array lies; the caller keeps it alive."""
    assert array.flags.c_contiguous
    return array.ctypes.data


_QUANTILES = _at(NORMAL)
