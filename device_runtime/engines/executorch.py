"""ExecuTorch through a C interface of our own by ctypes: no torch, the GIL released while a graph runs.

Inputs are used in place; results are copied out once.
"""

from __future__ import annotations

import ctypes
import importlib.util
import logging
import os
import weakref
from collections.abc import Sequence
from ctypes import POINTER, c_bool, c_char_p, c_int32, c_size_t, c_uint32, c_void_p
from pathlib import Path

import numpy as np

from fedspzo.device_runtime.engines.executorch_build import build_shim
from fedspzo.device_runtime.engines.protocol import (
    Constants,
    Engine,
    aligned_address,
    cannot_load,
    cannot_run,
    check_count,
)
from fedspzo.device_runtime.errors import EngineError, install_hint

log = logging.getLogger(__name__)

_PROTOTYPES: dict[str, tuple[type | None, tuple[type, ...]]] = {
    "shim_error": (c_char_p, ()),
    "shim_set_threads": (c_bool, (c_uint32,)),
    "shim_load": (c_void_p, (c_char_p, c_char_p)),
    "shim_free": (None, (c_void_p,)),
    "shim_count": (c_size_t, (c_void_p, c_bool)),
    "shim_rank": (c_size_t, (c_void_p, c_bool, c_size_t)),
    "shim_size": (c_int32, (c_void_p, c_bool, c_size_t, c_size_t)),
    "shim_run": (c_bool, (c_void_p, POINTER(c_void_p), POINTER(c_void_p))),
}


def _load_shim(path: Path) -> ctypes.CDLL:
    try:
        shim = ctypes.CDLL(str(path))
    except OSError as error:
        raise EngineError(
            "engine.interface-broken", f"ExecuTorch's interface cannot be loaded ({error}); delete {path} and try again"
        ) from None
    for name, (result, arguments) in _PROTOTYPES.items():
        function = getattr(shim, name)
        function.restype, function.argtypes = result, arguments
    return shim


def _reason(shim: ctypes.CDLL) -> str:
    text: bytes = shim.shim_error()
    return text.decode(errors="replace")


class ExecuTorchGraph:
    """A loaded .pte graph."""

    def __init__(self, shim: ctypes.CDLL, handle: int) -> None:
        self._shim, self._handle = shim, handle
        # With it goes a packed copy of its constants, which is most of what it holds.
        weakref.finalize(self, shim.shim_free, handle).atexit = False
        self._inputs, self._outputs = self._shapes(outputs=False), self._shapes(outputs=True)

    def run(self, inputs: Sequence[np.ndarray], outputs: Sequence[np.ndarray]) -> None:
        """See :class:`fedspzo.device_runtime.engines.protocol.StageGraph`."""
        given, wanted = _places(self._inputs, inputs), _places(self._outputs, outputs)
        if not self._shim.shim_run(self._handle, given, wanted):
            raise cannot_run("ExecuTorch", _reason(self._shim))

    def _shapes(self, outputs: bool) -> list[tuple[int, ...]]:
        shim, graph = self._shim, self._handle
        return [
            tuple(shim.shim_size(graph, outputs, i, k) for k in range(shim.shim_rank(graph, outputs, i)))
            for i in range(shim.shim_count(graph, outputs))
        ]


def _places(shapes: Sequence[tuple[int, ...]], arrays: Sequence[np.ndarray]) -> ctypes.Array[c_void_p]:
    """Where arrays lie that are as the graph wants them."""
    check_count(len(shapes), arrays)
    places = (c_void_p * len(arrays))()
    for i, (shape, array) in enumerate(zip(shapes, arrays, strict=True)):
        places[i] = aligned_address(array, shape)
    return places


class ExecuTorchEngine:
    """Runs .pte graphs on the CPU with XNNPACK."""

    name = format = "executorch"
    takes_constants = True

    def __init__(self, shim: ctypes.CDLL, threads: int) -> None:
        self._shim = shim
        if not shim.shim_set_threads(threads):
            raise EngineError("engine.too-many-threads", f"ExecuTorch cannot use {threads} threads; choose fewer")

    def load(self, path: Path, constants: Constants | None = None) -> ExecuTorchGraph:
        """See :class:`fedspzo.device_runtime.engines.protocol.Engine`."""
        handle = self._shim.shim_load(os.fsencode(path), os.fsencode(constants.file) if constants else None)
        if handle is None:
            raise cannot_load("ExecuTorch", path, _reason(self._shim))
        return ExecuTorchGraph(self._shim, handle)


def create(threads: int) -> Engine:
    """The ExecuTorch engine; where the interface cannot be compiled, that of its Python API.

    Raises:
        EngineError: ExecuTorch is not installed, or there is neither a C++ compiler nor torch.
    """
    if importlib.util.find_spec("executorch") is None:
        raise EngineError("engine.not-installed", f"ExecuTorch is not installed; {install_hint('executorch')}")
    try:
        shim = _load_shim(build_shim())
    except EngineError as missing:
        return _fall_back(missing, threads)
    return ExecuTorchEngine(shim, threads)


def _fall_back(missing: EngineError, threads: int) -> Engine:
    try:
        from fedspzo.device_runtime.engines import executorch_python
    except EngineError:
        raise EngineError(
            missing.kind, f"{missing}, or for its Python API {install_hint('executorch,torch')}"
        ) from None
    log.warning("%s; until then it runs through its Python API, slower to start and larger", missing)
    return executorch_python.create(threads)
