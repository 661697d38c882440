"""Weights where XNNPACK keeps them packed: found in its weight cache, to be overwritten in place.

XNNPACK packs the constants of linear maps once, into panels of a few outputs each: a panel has the biases of its
outputs and then, for each input, the weights of its outputs side by side. LiteRT keeps these in a file that it maps.
Let the file lie in memory and the mapping be writable, and what is written there is what the next run computes with:
nothing is packed then, and weights are in memory once. XNNPACK makes such a file itself, so that this needs no more of
Python than to read where it lies. The layout is nowhere promised, so it is taken only where samples are as expected.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedspzo.device_runtime.engines.protocol import Linear

#: What XNNPACK calls a weight cache that it keeps in memory; bytes of its header.
CACHE, HEADER = "XNNPack in-memory weight cache", 64
#: Outputs of a panel, by processor.
_PANELS = (8, 16, 32, 64)
_ALIGNMENT = 128
#: One of this many panels is looked at: reading all constants would take time and memory.
_SAMPLED = 16


def list_at(header: bytes) -> tuple[int, int]:
    """Where a weight cache's list begins, with which it ends, and its bytes."""
    at, size = (int.from_bytes(header[start : start + 8], "little") for start in (8, 16))
    return at, size


def floats_at(address: int, size: int) -> np.ndarray:
    """Memory as float32, valid as long as the graph that it belongs to. A mapping of our own would count twice."""
    return np.ctypeslib.as_array((ctypes.c_float * (size // 4)).from_address(address))


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
