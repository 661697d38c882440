"""LiteRT through the C API of ``libLiteRt.so`` by ctypes: inputs are not copied, the GIL is released in a run."""

from __future__ import annotations

import ctypes
import logging
import os
import re
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from ctypes import byref, c_char_p, c_size_t, c_void_p
from functools import lru_cache
from pathlib import Path

import numpy as np

from fedspzo.device_runtime.engines.litert_library import (
    HANDLE,
    EnvironmentOption,
    TensorType,
    call,
    create_handle,
    library,
    library_version,
)
from fedspzo.device_runtime.engines.packed import CACHE, HEADER, find_panels, floats_at, list_at
from fedspzo.device_runtime.engines.packed_files import PackedFile
from fedspzo.device_runtime.engines.protocol import Constants, Linear, aligned_address, cannot_load, check_count
from fedspzo.device_runtime.errors import EngineError
from fedspzo.device_runtime.platform.mappings import (
    let_go,
    let_go_in,
    make_writable,
    mappings_of,
    memory_files,
    replace,
)

log = logging.getLogger(__name__)

_CPU = 1
_ANY_INT = 2
_TAG_AUTO_REGISTER_ACCELERATORS = 24
_TAG_MIN_LOGGER_SEVERITY = 25
_LOG_ERRORS = 3
#: Held while the standard error goes elsewhere, and while a weight cache is told from those before it.
_redirecting, _packing = threading.Lock(), threading.Lock()
_KEEP = ctypes.CFUNCTYPE(None, c_void_p)(lambda payload: None)


class _Port:
    """One input or output of a graph: its tensor type, its place in the signature, its shape."""

    def __init__(self, signature: c_void_p, kind: str, index: int) -> None:
        name = c_char_p()
        call(f"LiteRtGetSignature{kind}Name", signature, index, byref(name))
        tensor = create_handle(f"LiteRtGetSignature{kind}TensorByIndex", signature, index)
        self.type = TensorType()
        call("LiteRtGetRankedTensorType", tensor, byref(self.type))
        self.index = index
        self.shape = self.type.layout.shape()
        # The converter names arguments args_0, args_1, …, and the signature may list them as sorted text.
        self.order = int(re.findall(r"\d+", (name.value or b"0").decode())[-1])


def _ports(signature: c_void_p, kind: str) -> list[_Port]:
    count = c_size_t()
    call(f"LiteRtGetNumSignature{kind}s", signature, byref(count))
    return sorted((_Port(signature, kind, i) for i in range(count.value)), key=lambda port: port.order)


class LiteRTGraph:
    """A compiled .tflite graph.

    A tensor buffer over an array's memory is made at the array's first use and kept with the array: callers work in
    the same arrays over and over.
    """

    def __init__(self, compiled: c_void_p, model: c_void_p) -> None:
        self._compiled = compiled
        signature = create_handle("LiteRtGetModelSignature", model, 0)
        self._inputs = _ports(signature, "Input")
        self._outputs = _ports(signature, "Output")
        self._buffers: dict[int, tuple[np.ndarray, c_void_p]] = {}
        weakref.finalize(self, _destroy, compiled, model, self._buffers).atexit = False

    def run(self, inputs: Sequence[np.ndarray], outputs: Sequence[np.ndarray]) -> None:
        """See :class:`fedspzo.device_runtime.engines.protocol.StageGraph`."""
        given = self._bind(self._inputs, inputs)
        wanted = self._bind(self._outputs, outputs)
        call("LiteRtRunCompiledModel", self._compiled, 0, len(given), given, len(wanted), wanted)

    def _bind(self, ports: list[_Port], arrays: Sequence[np.ndarray]) -> ctypes.Array[c_void_p]:
        check_count(len(ports), arrays)
        handles = (HANDLE * len(ports))()
        for port, array in zip(ports, arrays, strict=True):
            handles[port.index] = self._buffer(port, array)
        return handles

    def _buffer(self, port: _Port, array: np.ndarray) -> c_void_p:
        known = self._buffers.get(id(array))
        if known is None:
            address = aligned_address(array, port.shape)
            handle = create_handle(
                "LiteRtCreateTensorBufferFromHostMemory", byref(port.type), address, array.nbytes, None
            )
            known = self._buffers[id(array)] = (array, handle)
        return known[1]


def _destroy(compiled: c_void_p, model: c_void_p, buffers: dict[int, tuple[np.ndarray, c_void_p]]) -> None:
    """Free what a graph holds; a packed copy of its constants is most of it."""
    for _, buffer in buffers.values():
        library().LiteRtDestroyTensorBuffer(buffer)
    library().LiteRtDestroyCompiledModel(compiled)
    library().LiteRtDestroyModel(model)


class LiteRTPackedGraph(LiteRTGraph):
    """See :class:`fedspzo.device_runtime.engines.PackedGraph`."""

    def __init__(self, compiled: c_void_p, model: c_void_p, weights: Sequence[np.ndarray]) -> None:
        super().__init__(compiled, model)
        self.weights = weights


class LiteRTStreamedGraph(LiteRTGraph):
    """See :class:`fedspzo.device_runtime.engines.protocol.StreamedGraph`.

    What the runtime computes with is at fixed places of its weight cache, a mapped file. Another layer's file that is
    laid out alike is mapped over it.
    """

    def __init__(self, compiled: c_void_p, model: c_void_p, packed: PackedFile, place: tuple[int, int]) -> None:
        super().__init__(compiled, model)
        self._packed, self._place, self._layout = packed, place, _layout(packed)

    def take(self, packed: PackedFile) -> bool:
        """See :class:`fedspzo.device_runtime.engines.protocol.StreamedGraph`."""
        if packed is self._packed:
            return True
        if _layout(packed) != self._layout:
            return False
        try:
            replace(*self._place, packed.descriptor)
        except OSError as error:
            raise cannot_load("LiteRT", Path(packed.path), error.strerror) from None
        self._packed = packed
        return True

    def let_go(self) -> None:
        """See :class:`fedspzo.device_runtime.engines.protocol.StreamedGraph`."""
        let_go(*self._place)


def _layout(packed: PackedFile) -> bytes:
    """Where what lies in a weight cache: its header, and the list at its end that the header tells the place of."""
    header = os.pread(packed.descriptor, HEADER, 0)
    at, size = list_at(header)
    known = 0 < at < at + size <= packed.size()
    return header + os.pread(packed.descriptor, size, at) if known else packed.path.encode()


@lru_cache(maxsize=1)
def _say_slower() -> None:
    """Once in a process."""
    log.info("weights are handed to LiteRT at each run, which is slower: they are not found where XNNPACK packs them")


class LiteRTEngine:
    """Runs .tflite graphs on the CPU with XNNPACK."""

    name = format = "litert"
    takes_constants = True

    def __init__(self, threads: int, within: int | None = None) -> None:
        self.within, self.packs_as = within, "" if within is None else f"litert {library_version()}"
        options = (EnvironmentOption * 2)(
            EnvironmentOption(_TAG_AUTO_REGISTER_ACCELERATORS, _ANY_INT, _CPU),
            EnvironmentOption(_TAG_MIN_LOGGER_SEVERITY, _ANY_INT, _LOG_ERRORS),
        )
        self._environment = create_handle("LiteRtCreateEnvironment", len(options), options)
        self._threads = threads
        self._settings: dict[str, ctypes.Array[ctypes.c_char]] = {}

    def load(self, path: Path, constants: Constants | None = None) -> LiteRTGraph:
        """See ``engines.protocol.Engine``. The graph itself refers to its constants' file."""
        compiled, model = self._compile(path)
        if constants is not None:
            let_go_in(path.parent)
        return LiteRTGraph(compiled, model)

    def load_packed(self, path: Path, linear: Sequence[Linear]) -> LiteRTPackedGraph | None:
        """See :class:`fedspzo.device_runtime.engines.protocol.PackingEngine`."""
        try:
            compiled, model, place = self._compile_in_memory(path)
        except EngineError:  # the graph with weights as inputs may do
            return None
        let_go_in(path.parent)
        panels = find_panels(floats_at(*place), linear) if place and make_writable(*place) else None
        if panels is None:
            _say_slower()
            _destroy(compiled, model, {})
            return None
        weights = [
            array
            for found, constants in zip(panels, linear, strict=True)
            for array in (found.weight, *([] if constants.bias is None else [found.bias]))
        ]
        return LiteRTPackedGraph(compiled, model, weights)

    def pack(self, path: Path, file: Path) -> None:
        """See :class:`fedspzo.device_runtime.engines.protocol.StreamingEngine`."""
        compiled, model, place = self._compile_in_memory(path)  # where a disk is full, XNNPACK ends the process
        try:
            if place is None:
                raise cannot_load("LiteRT", path, "this system has no files in memory to pack its weights in")
            let_go_in(path.parent)
            packed = memoryview((ctypes.c_char * place[1]).from_address(place[0])).cast("B")
            at, size = list_at(bytes(packed[:HEADER]))
            with file.open("wb") as out:
                out.write(packed[: at + size])
        finally:
            _destroy(compiled, model, {})

    def load_streamed(self, path: Path, packed: PackedFile) -> LiteRTStreamedGraph:
        """See :class:`fedspzo.device_runtime.engines.protocol.StreamingEngine`."""
        before = mappings_of(packed.descriptor)  # of graphs for other shapes
        compiled, model = self._compile(path, f'weight_cache_file_path = "{packed.path}"\n')
        places = mappings_of(packed.descriptor) - before
        let_go_in(path.parent)
        if len(places) != 1:
            _destroy(compiled, model, {})
            raise EngineError(
                "engine.packed-unmapped",
                f"packed weights cannot be streamed ({len(places)} mappings of {os.readlink(packed.path)} are found in"
                " /proc/self/maps, and 1 is needed); choose a folder on another file system by XDG_CACHE_HOME",
            )
        return LiteRTStreamedGraph(compiled, model, packed, places.pop())

    def _compile_in_memory(self, path: Path) -> tuple[c_void_p, c_void_p, tuple[int, int] | None]:
        """As :meth:`_compile`, and where in memory its weight cache lies, or None where it cannot be told."""
        with _packing:
            before = memory_files(CACHE)
            compiled, model = self._compile(path, 'weight_cache_file_path = ":memory"\n')
            places = [place for inode, place in memory_files(CACHE).items() if inode not in before]
        return compiled, model, places[0] if len(places) == 1 else None

    def _compile(self, path: Path, more: str = "") -> tuple[c_void_p, c_void_p]:
        """A compiled graph and its model. Raises EngineError when LiteRT cannot load it."""
        settings = f"num_threads = {self._threads}\n{more}"
        # The options keep a pointer to this text for as long as the process lives.
        text = self._settings.setdefault(settings, ctypes.create_string_buffer(settings.encode()))
        try:
            model = create_handle("LiteRtCreateModelFromFile", self._environment, str(path).encode())
            options = create_handle("LiteRtCreateOptions")
            call("LiteRtSetOptionsHardwareAccelerators", options, _CPU)
            opaque = create_handle("LiteRtCreateOpaqueOptions", b"xnnpack", ctypes.addressof(text), _KEEP)
            call("LiteRtAddOpaqueOptions", options, opaque)
            with _without_notes():
                return create_handle("LiteRtCreateCompiledModel", self._environment, model, options), model
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


def create(threads: int, within: int | None = None) -> LiteRTEngine:
    """The LiteRT engine. Raises EngineError when libLiteRt.so cannot be loaded."""
    return LiteRTEngine(threads, within)
