"""LiteRT through the C API of ``libLiteRt.so`` by ctypes: no copy of the inputs, the GIL released while a graph runs.

The library comes with the ``ai-edge-litert`` wheel on Linux and with the LiteRT AAR on Android, with the same C API.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import re
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from ctypes import POINTER, byref, c_char_p, c_int, c_int32, c_int64, c_size_t, c_uint32, c_void_p
from functools import lru_cache
from pathlib import Path

import numpy as np

from fedspzo.device_runtime.engines.packed import MemoryFile, find_panels
from fedspzo.device_runtime.engines.protocol import Constants, Linear, aligned_address, check_count
from fedspzo.device_runtime.errors import EngineError, install_hint

_CPU = 1
_ANY_INT = 2
_TAG_AUTO_REGISTER_ACCELERATORS = 24
_TAG_MIN_LOGGER_SEVERITY = 25
_LOG_ERRORS = 3
_MAPS = Path("/proc/self/maps")
_MADV_DONTNEED = 4
#: Held while the standard error goes elsewhere.
_redirecting = threading.Lock()
_HANDLE = c_void_p
_KEEP = ctypes.CFUNCTYPE(None, c_void_p)(lambda payload: None)


class _EnvironmentOption(ctypes.Structure):
    _fields_ = [("tag", c_int64), ("type", c_int64), ("value", c_int64)]


class _Layout(ctypes.Structure):
    _fields_ = [("rank_and_flags", c_uint32), ("dimensions", c_int32 * 8), ("strides", c_uint32 * 8)]

    def shape(self) -> tuple[int, ...]:
        return tuple(self.dimensions[: self.rank_and_flags & 0x7F])


class _TensorType(ctypes.Structure):
    _fields_ = [("element_type", c_int), ("layout", _Layout)]


_PROTOTYPES: dict[str, tuple[object, ...]] = {
    "LiteRtCreateEnvironment": (c_int, c_void_p, POINTER(_HANDLE)),
    "LiteRtCreateModelFromFile": (_HANDLE, c_char_p, POINTER(_HANDLE)),
    "LiteRtCreateOptions": (POINTER(_HANDLE),),
    "LiteRtSetOptionsHardwareAccelerators": (_HANDLE, c_int),
    "LiteRtCreateOpaqueOptions": (c_char_p, c_void_p, c_void_p, POINTER(_HANDLE)),
    "LiteRtAddOpaqueOptions": (_HANDLE, _HANDLE),
    "LiteRtCreateCompiledModel": (_HANDLE, _HANDLE, _HANDLE, POINTER(_HANDLE)),
    "LiteRtGetModelSignature": (_HANDLE, c_size_t, POINTER(_HANDLE)),
    "LiteRtGetNumSignatureInputs": (_HANDLE, POINTER(c_size_t)),
    "LiteRtGetNumSignatureOutputs": (_HANDLE, POINTER(c_size_t)),
    "LiteRtGetSignatureInputName": (_HANDLE, c_size_t, POINTER(c_char_p)),
    "LiteRtGetSignatureOutputName": (_HANDLE, c_size_t, POINTER(c_char_p)),
    "LiteRtGetSignatureInputTensorByIndex": (_HANDLE, c_size_t, POINTER(_HANDLE)),
    "LiteRtGetSignatureOutputTensorByIndex": (_HANDLE, c_size_t, POINTER(_HANDLE)),
    "LiteRtGetRankedTensorType": (_HANDLE, POINTER(_TensorType)),
    "LiteRtCreateTensorBufferFromHostMemory": (POINTER(_TensorType), c_void_p, c_size_t, c_void_p, POINTER(_HANDLE)),
    "LiteRtRunCompiledModel": (_HANDLE, c_size_t, c_size_t, POINTER(_HANDLE), c_size_t, POINTER(_HANDLE)),
    "LiteRtDestroyCompiledModel": (_HANDLE,),
    "LiteRtDestroyModel": (_HANDLE,),
    "LiteRtDestroyTensorBuffer": (_HANDLE,),
}


@lru_cache(maxsize=1)
def _library() -> ctypes.CDLL:
    spec = importlib.util.find_spec("ai_edge_litert")
    folders = list(spec.submodule_search_locations or []) if spec else []
    path = next((p for p in (Path(f) / "libLiteRt.so" for f in folders) if p.exists()), Path("libLiteRt.so"))
    try:
        library = ctypes.CDLL(str(path))
        for name, arguments in _PROTOTYPES.items():
            getattr(library, name).argtypes = arguments
    except (OSError, AttributeError) as error:
        raise EngineError(
            "engine.not-installed", f"LiteRT cannot be loaded ({error}); {install_hint('litert')}"
        ) from None
    return library


def _call(function: str, *arguments: object) -> None:
    status = getattr(_library(), function)(*arguments)
    if status:
        raise EngineError(
            "engine.call-failed",
            f"LiteRT's {function} failed with status {status}; export the bundle again, or use another engine",
        )


def _create(function: str, *arguments: object) -> c_void_p:
    handle = _HANDLE()
    _call(function, *arguments, byref(handle))
    return handle


class _Port:
    """One input or output of a graph: its tensor type, its place in the signature, its shape."""

    def __init__(self, signature: c_void_p, kind: str, index: int) -> None:
        name = c_char_p()
        _call(f"LiteRtGetSignature{kind}Name", signature, index, byref(name))
        tensor = _create(f"LiteRtGetSignature{kind}TensorByIndex", signature, index)
        self.type = _TensorType()
        _call("LiteRtGetRankedTensorType", tensor, byref(self.type))
        self.index = index
        self.shape = self.type.layout.shape()
        # The converter names arguments args_0, args_1, …, and the signature may list them as sorted text.
        self.order = int(re.findall(r"\d+", (name.value or b"0").decode())[-1])


def _ports(signature: c_void_p, kind: str) -> list[_Port]:
    count = c_size_t()
    _call(f"LiteRtGetNumSignature{kind}s", signature, byref(count))
    return sorted((_Port(signature, kind, i) for i in range(count.value)), key=lambda port: port.order)


class LiteRTGraph:
    """A compiled .tflite graph.

    A tensor buffer over an array's memory is made at the array's first use and kept with the array: callers work in
    the same arrays over and over.
    """

    def __init__(self, compiled: c_void_p, model: c_void_p) -> None:
        self._compiled = compiled
        signature = _create("LiteRtGetModelSignature", model, 0)
        self._inputs = _ports(signature, "Input")
        self._outputs = _ports(signature, "Output")
        self._buffers: dict[int, tuple[np.ndarray, c_void_p]] = {}
        weakref.finalize(self, _destroy, compiled, model, self._buffers).atexit = False

    def run(self, inputs: Sequence[np.ndarray], outputs: Sequence[np.ndarray]) -> None:
        """See :class:`fedspzo.device_runtime.engines.protocol.StageGraph`."""
        given = self._bind(self._inputs, inputs)
        wanted = self._bind(self._outputs, outputs)
        _call("LiteRtRunCompiledModel", self._compiled, 0, len(given), given, len(wanted), wanted)

    def _bind(self, ports: list[_Port], arrays: Sequence[np.ndarray]) -> ctypes.Array[c_void_p]:
        check_count(len(ports), arrays)
        handles = (_HANDLE * len(ports))()
        for port, array in zip(ports, arrays, strict=True):
            handles[port.index] = self._buffer(port, array)
        return handles

    def _buffer(self, port: _Port, array: np.ndarray) -> c_void_p:
        known = self._buffers.get(id(array))
        if known is None:
            address = aligned_address(array, port.shape)
            handle = _create("LiteRtCreateTensorBufferFromHostMemory", byref(port.type), address, array.nbytes, None)
            known = self._buffers[id(array)] = (array, handle)
        return known[1]


def _destroy(compiled: c_void_p, model: c_void_p, buffers: dict[int, tuple[np.ndarray, c_void_p]]) -> None:
    """Free what a graph holds; a packed copy of its constants is most of it."""
    for _, buffer in buffers.values():
        _library().LiteRtDestroyTensorBuffer(buffer)
    _library().LiteRtDestroyCompiledModel(compiled)
    _library().LiteRtDestroyModel(model)


class LiteRTPackedGraph(LiteRTGraph):
    """See :class:`fedspzo.device_runtime.engines.PackedGraph`."""

    def __init__(self, compiled: c_void_p, model: c_void_p, weights: Sequence[np.ndarray], cache: MemoryFile) -> None:
        weakref.finalize(self, cache.close).atexit = False  # finalizers run last first
        super().__init__(compiled, model)
        self.weights = weights


class LiteRTEngine:
    """Runs .tflite graphs on the CPU with XNNPACK."""

    name = format = "litert"
    takes_constants = True

    def __init__(self, threads: int) -> None:
        options = (_EnvironmentOption * 2)(
            _EnvironmentOption(_TAG_AUTO_REGISTER_ACCELERATORS, _ANY_INT, _CPU),
            _EnvironmentOption(_TAG_MIN_LOGGER_SEVERITY, _ANY_INT, _LOG_ERRORS),
        )
        self._environment = _create("LiteRtCreateEnvironment", len(options), options)
        self._threads = threads
        self._settings: dict[str, ctypes.Array[ctypes.c_char]] = {}

    def load(self, path: Path, constants: Constants | None = None) -> LiteRTGraph:
        """See ``engines.protocol.Engine``. The graph itself refers to its constants' file."""
        compiled, model = self._compile(path)
        if constants is not None:
            _drop_pages(path.parent)
        return LiteRTGraph(compiled, model)

    def load_packed(self, path: Path, linear: Sequence[Linear]) -> LiteRTPackedGraph | None:
        """See :class:`fedspzo.device_runtime.engines.protocol.PackingEngine`."""
        try:
            cache = MemoryFile()
        except (OSError, AttributeError):  # no Linux, or an old one
            return None
        try:
            compiled, model = self._compile(path, f'weight_cache_file_path = "{cache.path}"\n')
        except EngineError:  # the graph with weights as inputs may do
            cache.close()
            return None
        panels = find_panels(cache.mapped(), linear)
        _drop_pages(path.parent)
        if panels is None:
            _destroy(compiled, model, {})
            cache.close()
            return None
        weights = [
            array
            for found, constants in zip(panels, linear, strict=True)
            for array in (found.weight, *([] if constants.bias is None else [found.bias]))
        ]
        return LiteRTPackedGraph(compiled, model, weights, cache)

    def _compile(self, path: Path, more: str = "") -> tuple[c_void_p, c_void_p]:
        """A compiled graph and its model. Raises EngineError when LiteRT cannot load it."""
        settings = f"num_threads = {self._threads}\n{more}"
        # The options keep a pointer to this text for as long as the process lives.
        text = self._settings.setdefault(settings, ctypes.create_string_buffer(settings.encode()))
        try:
            model = _create("LiteRtCreateModelFromFile", self._environment, str(path).encode())
            options = _create("LiteRtCreateOptions")
            _call("LiteRtSetOptionsHardwareAccelerators", options, _CPU)
            opaque = _create("LiteRtCreateOpaqueOptions", b"xnnpack", ctypes.addressof(text), _KEEP)
            _call("LiteRtAddOpaqueOptions", options, opaque)
            with _without_notes():
                return _create("LiteRtCreateCompiledModel", self._environment, model, options), model
        except EngineError as error:
            raise EngineError("engine.load-failed", f"LiteRT cannot load {path}: {error}") from None


@contextmanager
def _without_notes() -> Iterator[None]:
    """Keep lines like 'INFO: Created …' off the standard error: TensorFlow Lite has no setting for them here.

    Whatever else is written meanwhile follows at the end.
    """
    with _redirecting, ExitStack() as stack:
        try:
            caught = stack.enter_context(open(os.memfd_create("stderr"), "rb"))
            errors = os.dup(2)
        except (OSError, AttributeError):  # no Linux, or an old one, or no standard error
            yield
            return
        os.dup2(caught.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(errors, 2)
            os.close(errors)
            caught.seek(0)
            for line in caught:
                if not line.startswith(b"INFO: "):
                    os.write(2, line)


def _drop_pages(folder: Path) -> None:
    """Let go of mapped files' pages: the engine has packed what it needs, and they are read again when touched."""
    if not _MAPS.exists():
        return
    libc = ctypes.CDLL(None)
    libc.madvise.argtypes = (c_void_p, c_size_t, c_int)
    for line in _MAPS.read_text(errors="surrogateescape").splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and Path(fields[5]).parent == folder.resolve():
            start, stop = (int(address, 16) for address in fields[0].split("-"))
            libc.madvise(start, stop - start, _MADV_DONTNEED)


def create(threads: int) -> LiteRTEngine:
    """The LiteRT engine. Raises EngineError when libLiteRt.so cannot be loaded."""
    return LiteRTEngine(threads)
