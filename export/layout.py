"""How a checkpoint's tensors lie in a bundle, there and back; ``model.stored`` has how each type lies in a file.

Matrices that are inputs of graphs are [1, in, out]; quantised ones, which graphs have within, are [out, in]; tables,
whose rows are looked up, are [1, rows, width]. Checkpoints have matrices as [out, in], or [in, out] (GPT-2's Conv1D).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from fedspzo.device_runtime.directions.halves import DTYPES
from fedspzo.device_runtime.errors import ExportError
from fedspzo.device_runtime.model.arrays import ALIGNMENT
from fedspzo.device_runtime.model.manifest import BASE, WEIGHTS, TensorSpec
from fedspzo.device_runtime.model.stored import GROUP, QUANTISED, SCALES, Quantised, layout, quantise, view
from fedspzo.device_runtime.model.tensor_file import TensorFile, write_tensors
from fedspzo.export.checkpoint import Checkpoint


@dataclass(frozen=True)
class Tensor:
    """A weight tensor of a bundle and the way to load it (float32, in the bundle's shape)."""

    spec: TensorSpec
    load: Callable[[], np.ndarray]


def weight(checkpoint: Checkpoint, name: str, trainable: bool, dtype: str, conv1d: bool) -> Tensor:
    """A weight or bias.

    Args:
        dtype: what matrices are stored as, where they can be: codes must fill whole groups, and engines' alignment.
        conv1d: whether the checkpoint has matrices as [in, out].
    """
    shape = checkpoint.shape(name)
    if len(shape) != 2:
        return Tensor(TensorSpec(name, shape, trainable, name, False), lambda: checkpoint.tensor(name))
    if dtype in QUANTISED and not any(features % GROUP for features in shape):
        spec = TensorSpec(name, shape[::-1] if conv1d else shape, False, name, conv1d, dtype)
        return Tensor(spec, lambda: checkpoint.tensor(name).T if conv1d else checkpoint.tensor(name))
    dtype = "float32" if dtype in QUANTISED else dtype
    spec = TensorSpec(name, (1, *(shape if conv1d else shape[::-1])), trainable, name, not conv1d, dtype)
    return Tensor(spec, lambda: (checkpoint.tensor(name) if conv1d else checkpoint.tensor(name).T)[None])


def table(checkpoint: Checkpoint, name: str, dtype: str = "float32") -> Tensor:
    """A table, which stays frozen."""
    spec = TensorSpec(name, (1, *checkpoint.shape(name)), False, name, False, dtype)
    return Tensor(spec, lambda: checkpoint.tensor(name)[None])


def derived(name: str, shape: tuple[int, ...], load: Callable[[], np.ndarray], trainable: bool = False) -> Tensor:
    """A tensor made from the checkpoint."""
    return Tensor(TensorSpec(name, shape, trainable, "", False), load)


def adapter(name: str, shape: tuple[int, int, int], trainable: bool, load: Callable[[], np.ndarray]) -> Tensor:
    """A part of an adapter: no tensor of the checkpoint, but named and transposed as if it were."""
    return Tensor(TensorSpec(name, shape, trainable, "", True), load)


def is_out_by_in(spec: TensorSpec) -> bool:
    """Whether the checkpoint has a matrix as [out, in]."""
    return spec.transposed == (len(spec.shape) == 3)


def restored(spec: TensorSpec, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A tensor, float32 in the bundle's shape → in the checkpoint's."""
    if spec.transposed:
        array = (array[0] if array.ndim == 3 else array).T
    return np.ascontiguousarray(array.reshape(shape))


@dataclass(frozen=True)
class Constant:
    """A quantised matrix of a stage, and where it lies.

    Attributes:
        matrix: codes and scales.
        file: name of the tensor file in the bundle.
        codes_at, scales_at: where they start in it, in bytes.
    """

    matrix: Quantised
    file: str
    codes_at: int
    scales_at: int

    def slice(self, start: int, stop: int) -> Constant:
        """Consecutive rows of a single matrix."""
        matrix, rows = self.matrix, self.matrix.shape[-2]
        codes, scales = (start * array.nbytes // rows for array in (matrix.codes, matrix.scales))
        return Constant(matrix.slice(start, stop), self.file, self.codes_at + codes, self.scales_at + scales)


def find_constant(folder: Path, spec: TensorSpec) -> Constant:
    """A quantised matrix that has been written to a bundle's folder, over the mapped file."""
    files = ((name, TensorFile(folder / name)) for name in (BASE, WEIGHTS) if (folder / name).exists())
    name, file = next((name, file) for name, file in files if spec.name in file)
    matrix = view(file, spec.name, spec.dtype)
    assert isinstance(matrix, Quantised)
    return Constant(matrix, name, file.start(spec.name), file.start(spec.name + SCALES))


def write_weights(folder: Path, tensors: Sequence[Tensor], tables: Sequence[str]) -> None:
    """Write ``weights.safetensors``, and ``base.safetensors`` where there are matrices that only graphs use.

    One tensor is in memory at a time.

    Args:
        tables: names of those whose rows the runtime gathers.

    Raises:
        ExportError: a number is beyond its type's range.
    """
    base = [t for t in tensors if t.spec.dtype in QUANTISED and t.spec.name not in tables]
    _write(folder / WEIGHTS, [tensor for tensor in tensors if tensor not in base])
    if base:
        _write(folder / BASE, base)


def _write(file: Path, tensors: Sequence[Tensor]) -> None:
    """Those of odd sizes come last: the others then start where engines can use them as they lie."""
    arrays = {
        name: (tensor, *array)
        for tensor in tensors
        for name, array in layout(tensor.spec.name, tensor.spec.shape, tensor.spec.dtype).items()
    }

    def unaligned(name: str) -> bool:
        _, shape, dtype = arrays[name]
        return int(np.prod(shape)) * dtype.itemsize % ALIGNMENT != 0

    order = sorted(arrays, key=unaligned)
    made = _Made()
    write_tensors(
        file,
        {name: arrays[name][1] for name in order},
        (made.array(name, arrays[name][0]) for name in order),
        {},
        dtypes={name: arrays[name][2] for name in order},
    )


class _Made:
    """Makes tensors as they are stored, each once though it may consist of two arrays."""

    def __init__(self) -> None:
        self._arrays: dict[str, np.ndarray] = {}

    def array(self, name: str, tensor: Tensor) -> np.ndarray:
        """One array of a tensor. Raises ExportError when a number is beyond the type's range."""
        if name not in self._arrays:
            spec = tensor.spec
            matrix = np.ascontiguousarray(tensor.load())
            if spec.dtype in QUANTISED:
                codes = quantise(matrix, spec.dtype)
                if not np.isfinite(codes.scales).all():
                    raise ExportError(
                        "model.number-too-large",
                        f"'{spec.name}' has numbers beyond the range of {spec.dtype}, or NaN; choose other --weights",
                    )
                self._arrays |= {spec.name: codes.codes, spec.name + SCALES: codes.scales}
            else:
                self._arrays[spec.name] = _rounded(spec.name, matrix, spec.dtype)
        return self._arrays.pop(name)


def _rounded(name: str, array: np.ndarray, dtype: str) -> np.ndarray:
    """A tensor as float32 or 16 bits, rounded to the nearest."""
    if dtype == "float32":
        return array
    rounded = torch.from_numpy(array).to(getattr(torch, dtype))
    if not bool(torch.isfinite(rounded).all()):
        raise ExportError(
            "model.number-too-large",
            f"'{name}' has numbers beyond the range of {dtype}; choose bfloat16 or float32 --weights",
        )
    return rounded.view(torch.int16).numpy().view(DTYPES[dtype])
