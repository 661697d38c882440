"""Reading and writing safetensors files with numpy alone: one tensor at a time, by mmap or into an array.

The format is safetensors' (8-byte header length, JSON header, data); tensors here also start at multiples of 64 bytes
wherever their sizes allow it, since the header is padded so.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

import numpy as np

from fedspzo.device_runtime.directions.halves import DTYPES
from fedspzo.device_runtime.errors import BundleError
from fedspzo.device_runtime.files import PUBLIC, cure, written_atomically
from fedspzo.device_runtime.model.arrays import ALIGNMENT
from fedspzo.device_runtime.platform.mappings import let_go

#: Most bytes of a header, and most axes of a tensor.
HEADER_BYTES, _AXES = 1 << 22, 8
#: Type of an array → safetensors' name of it.
_NAMES: dict[np.dtype[np.generic], str] = {
    DTYPES["float32"]: "F32",
    DTYPES["float16"]: "F16",
    DTYPES["bfloat16"]: "BF16",
    np.dtype("i1"): "I8",
    np.dtype("u1"): "U8",
    np.dtype("i4"): "I32",
    np.dtype("i8"): "I64",
}


@dataclass(frozen=True)
class _Entry:
    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]
    start: int
    stop: int


class TensorFile:
    """A safetensors file of float32, float16 and bfloat16 tensors (these as integers), and of integers."""

    def __init__(self, path: Path) -> None:
        """Raises BundleError when the file is not a whole safetensors file of such tensors, or cannot be opened."""
        self._path = path
        try:
            with path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                length = int.from_bytes(file.read(8), "little")
                if length > min(HEADER_BYTES, size - 8):
                    raise ValueError("its header is cut off, or there is no header")
                header = json.loads(file.read(length))
            self.metadata: dict[str, str] = _metadata(header.pop("__metadata__", {}))
            self._entries = {name: _entry(record, 8 + length) for name, record in header.items()}
            _check_places(self._entries.values(), 8 + length, size)
            self._map = np.memmap(path, mode="r", dtype=np.uint8)
        except OSError as error:
            raise self._refused(error) from None
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise BundleError(
                "bundle.tensors-unreadable",
                f"{path} is not a readable tensor file ({str(error)[:200]!a}); get or export it again",
            ) from None

    @property
    def names(self) -> list[str]:
        """Names of the tensors, in the order of the file's header."""
        return list(self._entries)

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor. Raises BundleError when the file lacks it."""
        return self._entry(name).shape

    def start(self, name: str) -> int:
        """Where a tensor starts in the file, in bytes. Raises BundleError when the file lacks it."""
        return self._entry(name).start

    def view(self, name: str) -> np.ndarray:
        """The tensor over the mapped file: pages are read when touched."""
        entry = self._entry(name)
        return np.asarray(self._map[entry.start : entry.stop].view(entry.dtype).reshape(entry.shape))

    def let_go(self, name: str) -> None:
        """Let go of the pages of :meth:`view`; they are read again when touched. Those of its neighbours may go too."""
        entry = self._entry(name)
        if entry.stop > entry.start:
            let_go(self._map.ctypes.data + entry.start, entry.stop - entry.start)

    def dtype(self, name: str) -> np.dtype[np.generic]:
        """Type of a tensor's array. Raises BundleError when the file lacks it."""
        return self._entry(name).dtype

    def read_into(self, name: str, out: np.ndarray) -> None:
        """Read the tensor into ``out`` (same shape and type) without mapping its pages."""
        entry = self._entry(name)
        try:
            with self._path.open("rb", buffering=0) as file:
                file.seek(entry.start)
                target = out.reshape(-1).data.cast("B")
                while target:
                    count = file.readinto(target)
                    if not count:
                        raise BundleError(
                            "bundle.tensors-truncated",
                            f"{self._path} ends inside the tensor '{name}'; get or export it again",
                        )
                    target = target[count:]
        except OSError as error:
            raise self._refused(error) from None

    def _refused(self, error: OSError) -> BundleError:
        return BundleError("bundle.tensors-refused", f"{self._path} cannot be read ({error.strerror}); {cure(error)}")

    def _entry(self, name: str) -> _Entry:
        if name not in self._entries:
            raise BundleError("bundle.tensor-missing", f"{self._path} has no tensor '{name}'; get or export it again")
        return self._entries[name]


def _entry(record: dict[str, object], data_start: int) -> _Entry:
    """One tensor of a header. Raises ValueError, KeyError or TypeError when it is something else."""
    shape, offsets = record["shape"], record["data_offsets"]
    dtype = next((dtype for dtype, name in _NAMES.items() if name == record["dtype"]), None)
    if dtype is None or not _are_sizes(shape, _AXES) or not _are_sizes(offsets, 2):
        raise ValueError("it holds tensors of another type")
    start, stop = offsets
    if stop - start != dtype.itemsize * math.prod(shape):
        raise ValueError("a tensor's size does not match its shape")
    return _Entry(dtype, tuple(shape), data_start + start, data_start + stop)


def _are_sizes(value: object, most: int) -> TypeGuard[list[int]]:
    """Whether it is a list of ``most`` integers or fewer that a file's size can be; Python's True is not one."""
    return isinstance(value, list) and len(value) <= most and all(type(n) is int and 0 <= n < 1 << 62 for n in value)


def _metadata(found: object) -> dict[str, str]:
    if not isinstance(found, dict) or not all(isinstance(text, str) for text in found.values()):
        raise ValueError("its metadata are no texts")
    return found


def _check_places(entries: Iterable[_Entry], start: int, size: int) -> None:
    """Raises ValueError when tensors overlap, leave holes, or do not fill the file: safetensors forbids all three."""
    for entry in sorted(entries, key=lambda entry: (entry.start, entry.stop)):
        if entry.start != start:
            raise ValueError("its tensors overlap, or leave holes")
        start = entry.stop
    if start != size:
        raise ValueError("its data is cut off, or has an end that belongs to no tensor")


def write_tensors(
    path: Path,
    shapes: dict[str, tuple[int, ...]],
    tensors: Iterable[np.ndarray],
    metadata: dict[str, str],
    observe: Callable[[int], None] = lambda written: None,
    dtypes: Mapping[str, np.dtype[np.generic]] | None = None,
    mode: int = PUBLIC,
) -> None:
    """Write tensors, in the order of ``shapes``, one at a time; the file appears whole or not at all.

    Args:
        path: the file.
        shapes: name → shape of every tensor.
        tensors: the arrays, made one by one.
        metadata: text stored in the header.
        observe: told the bytes of each tensor written.
        dtypes: name → type of the array, where it is not float32.
        mode: who may read the file.
    """
    header: dict[str, object] = {"__metadata__": metadata}
    offset = 0
    types = {name: (dtypes or {}).get(name, DTYPES["float32"]) for name in shapes}
    for name, shape in shapes.items():
        size = types[name].itemsize * int(np.prod(shape, dtype=np.int64))
        header[name] = {"dtype": _NAMES[types[name]], "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    with written_atomically(path, mode) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for (name, shape), tensor in zip(shapes.items(), tensors, strict=True):
            if tensor.shape != shape or tensor.dtype != types[name]:
                raise ValueError(f"tensor '{name}' is {tensor.dtype} {tensor.shape}, not {types[name]} {shape}")
            file.write(np.ascontiguousarray(tensor).data)
            observe(tensor.nbytes)
