"""Writes a network's tensors into the bundle's files, one tensor in memory at a time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from fedspzo.device_runtime.directions.halves import DTYPES
from fedspzo.device_runtime.errors import ExportError
from fedspzo.device_runtime.model.arrays import ALIGNMENT
from fedspzo.device_runtime.model.manifest import BASE, WEIGHTS
from fedspzo.device_runtime.model.stored import QUANTISED, SCALES, layout, quantise
from fedspzo.device_runtime.model.tensor_file import write_tensors
from fedspzo.export.network.build import Network, Tensor


def write_weights(folder: Path, network: Network) -> None:
    """Write ``weights.safetensors``, and ``base.safetensors`` where there are matrices that only graphs use."""
    tensors = list(network.tensors.values())
    tables = (network.embedding, network.output)
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
