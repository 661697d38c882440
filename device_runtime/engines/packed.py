"""Weights where XNNPACK keeps them packed: found in its weight cache, to be overwritten in place.

XNNPACK packs the constants of linear maps once, into panels of a few outputs each: a panel has the biases of its
outputs and then, for each input, the weights of its outputs side by side. LiteRT keeps these in a file that it maps.
Let the file lie in memory and the mapping be writable, and what is written there is what the next run computes with:
nothing is packed then, and weights are in memory once. The layout is nowhere promised, so it is taken only where
samples of it are as expected.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedspzo.device_runtime.engines.protocol import Linear

#: Outputs of a panel, by processor.
_PANELS = (8, 16, 32, 64)
_ALIGNMENT = 128
_MAPS = Path("/proc/self/maps")
#: One of this many panels is looked at: reading all constants would take time and memory.
_SAMPLED = 16
#: Bytes that are copied at a time.
_PIECE = 1 << 20


class MemoryFile:
    """A file in memory, for the engine to map.

    Attributes:
        path: what the engine opens. It is the file's until it is closed, which is not before the engine's graph.
    """

    def __init__(self) -> None:
        """Raises OSError where the system has no such files."""
        self._descriptor = os.memfd_create("packed weights")
        self.path = f"/proc/self/fd/{self._descriptor}"

    def mapped(self) -> np.ndarray:
        """Its contents as float32 where the engine has mapped all of them, made writable; empty where it has not.

        Valid as long as the engine's graph. A mapping of our own would count twice as memory of the process.
        """
        nothing, status = np.empty(0, np.float32), os.fstat(self._descriptor)
        fields = [line.split(maxsplit=5) for line in _MAPS.read_text(errors="surrogateescape").splitlines()]
        found = [field for field in fields if int(field[4]) == status.st_ino and "/memfd:" in field[-1]]
        if len(found) != 1 or int(found[0][2], 16):
            return nothing
        start, stop = (int(address, 16) for address in found[0][0].split("-"))
        libc = ctypes.CDLL(None)
        libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        if stop - start < status.st_size or libc.mprotect(start, stop - start, mmap.PROT_READ | mmap.PROT_WRITE):
            return nothing
        return np.ctypeslib.as_array((ctypes.c_float * (status.st_size // 4)).from_address(start))

    def copy_to(self, path: Path) -> None:
        """Write its contents to a file. Raises OSError when the disk refuses."""
        with path.open("wb") as file:
            size = os.fstat(self._descriptor).st_size
            while size > (at := file.tell()):
                file.write(os.pread(self._descriptor, _PIECE, at))

    def close(self) -> None:
        """Let go of the file; what is mapped stays."""
        os.close(self._descriptor)


@dataclass(frozen=True)
class Panels:
    """A linear map's weights in memory of the engine's.

    Attributes:
        weight: [in, panels, outputs of a panel].
        bias: [panels, outputs of a panel].
    """

    weight: np.ndarray
    bias: np.ndarray


def find_panels(packed: np.ndarray, linear: Sequence[Linear]) -> list[Panels] | None:
    """Where each linear map's weights lie, or None where something is not as expected.

    Args:
        packed: the weight cache, of these maps and in some order.
        linear: the maps' constants.
    """
    found: dict[int, Panels] = {}
    at = _ALIGNMENT // 4
    while len(found) < len(linear):
        here = {
            (index, panel): panels
            for index, constants in enumerate(linear)
            if index not in found
            for panel in _PANELS
            if (panels := _panels_at(packed, at, constants.weight.shape, panel)) and _holds(panels, constants)
        }
        if len(here) != 1:  # two maps with the same constants could not be told apart
            return None
        ((index, _), panels), *_ = here.items()
        found[index] = panels
        at += panels.weight.size + panels.bias.size
        at += -at % (_ALIGNMENT // 4)
    return [found[index] for index in range(len(linear))]


def _panels_at(packed: np.ndarray, at: int, shape: tuple[int, ...], panel: int) -> Panels | None:
    outputs, inputs = shape
    stop = at + outputs * (inputs + 1)
    if outputs % panel or stop > packed.size:
        return None
    panels = packed[at:stop].reshape(outputs // panel, 1 + inputs, panel)
    return Panels(panels[:, 1:].transpose(1, 0, 2), panels[:, 0])


def _holds(panels: Panels, constants: Linear) -> bool:
    """Whether panels are those of a map: all biases, and the weights of some panels with the last one among them."""
    rows = constants.weight.reshape(*panels.bias.shape, -1)
    biases = np.zeros(panels.bias.shape, np.float32) if constants.bias is None else constants.bias
    return np.array_equal(panels.bias, biases.reshape(panels.bias.shape)) and all(
        np.array_equal(panels.weight[:, at].T, rows[at]) for at in range(len(rows) - 1, -1, -_SAMPLED)
    )
