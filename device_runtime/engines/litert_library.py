"""``libLiteRt.so`` by ctypes: its functions' arguments, its structures, and its refusals as errors of ours.

The library comes with the ``ai-edge-litert`` wheel on Linux and with the LiteRT AAR on Android, with the same C API.
"""

from __future__ import annotations

import ctypes
import importlib.util
import platform
from contextlib import suppress
from ctypes import POINTER, byref, c_char_p, c_int, c_int32, c_int64, c_size_t, c_uint32, c_void_p
from functools import lru_cache
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as distribution_version
from pathlib import Path

from fedspzo.device_runtime.errors import EngineError, install_hint

HANDLE = c_void_p
_DISTRIBUTION = "ai-edge-litert"
_CPU = Path("/proc/cpuinfo")
#: What says which instructions a core has, on x86-64 and on ARM.
_CPU_FIELDS = ("flags", "model name", "Features", "CPU part")


class EnvironmentOption(ctypes.Structure):
    """A setting of an environment, of an integer."""

    _fields_ = [("tag", c_int64), ("type", c_int64), ("value", c_int64)]


class _Layout(ctypes.Structure):
    _fields_ = [("rank_and_flags", c_uint32), ("dimensions", c_int32 * 8), ("strides", c_uint32 * 8)]

    def shape(self) -> tuple[int, ...]:
        return tuple(self.dimensions[: self.rank_and_flags & 0x7F])


class TensorType(ctypes.Structure):
    """A tensor's element type and layout."""

    _fields_ = [("element_type", c_int), ("layout", _Layout)]


_PROTOTYPES: dict[str, tuple[object, ...]] = {
    "LiteRtCreateEnvironment": (c_int, c_void_p, POINTER(HANDLE)),
    "LiteRtCreateModelFromFile": (HANDLE, c_char_p, POINTER(HANDLE)),
    "LiteRtCreateOptions": (POINTER(HANDLE),),
    "LiteRtSetOptionsHardwareAccelerators": (HANDLE, c_int),
    "LiteRtCreateOpaqueOptions": (c_char_p, c_void_p, c_void_p, POINTER(HANDLE)),
    "LiteRtAddOpaqueOptions": (HANDLE, HANDLE),
    "LiteRtCreateCompiledModel": (HANDLE, HANDLE, HANDLE, POINTER(HANDLE)),
    "LiteRtGetModelSignature": (HANDLE, c_size_t, POINTER(HANDLE)),
    "LiteRtGetNumSignatureInputs": (HANDLE, POINTER(c_size_t)),
    "LiteRtGetNumSignatureOutputs": (HANDLE, POINTER(c_size_t)),
    "LiteRtGetSignatureInputName": (HANDLE, c_size_t, POINTER(c_char_p)),
    "LiteRtGetSignatureOutputName": (HANDLE, c_size_t, POINTER(c_char_p)),
    "LiteRtGetSignatureInputTensorByIndex": (HANDLE, c_size_t, POINTER(HANDLE)),
    "LiteRtGetSignatureOutputTensorByIndex": (HANDLE, c_size_t, POINTER(HANDLE)),
    "LiteRtGetRankedTensorType": (HANDLE, POINTER(TensorType)),
    "LiteRtCreateTensorBufferFromHostMemory": (POINTER(TensorType), c_void_p, c_size_t, c_void_p, POINTER(HANDLE)),
    "LiteRtRunCompiledModel": (HANDLE, c_size_t, c_size_t, POINTER(HANDLE), c_size_t, POINTER(HANDLE)),
    "LiteRtDestroyCompiledModel": (HANDLE,),
    "LiteRtDestroyModel": (HANDLE,),
    "LiteRtDestroyTensorBuffer": (HANDLE,),
}


def library_version() -> str:
    """What tells this library, on this processor, from others. The files' times do not count.

    The first core stands for all of them, since others may be offline at times.
    """
    version, size = None, None  # Android's lies in the app's package, where none can look
    with suppress(PackageNotFoundError):
        version = distribution_version(_DISTRIBUTION)
    with suppress(OSError):
        size = _path().stat().st_size
    return repr((version, size, platform.machine(), _first_core()))


def _first_core() -> list[str]:
    try:
        cores = _CPU.read_text(errors="replace").strip().split("\n\n")
    except OSError:
        return []
    return sorted(line for line in cores[0].splitlines() if line.startswith(_CPU_FIELDS))


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL:
    """The library, loaded once. Raises EngineError where it is not installed."""
    try:
        loaded = ctypes.CDLL(str(_path()))
        for name, arguments in _PROTOTYPES.items():
            getattr(loaded, name).argtypes = arguments
    except (OSError, AttributeError) as error:
        raise EngineError(
            "engine.not-installed", f"LiteRT cannot be loaded ({error}); {install_hint('litert')}"
        ) from None
    return loaded


def _path() -> Path:
    spec = importlib.util.find_spec("ai_edge_litert")
    folders = list(spec.submodule_search_locations or []) if spec else []
    return next((p for p in (Path(f) / "libLiteRt.so" for f in folders) if p.exists()), Path("libLiteRt.so"))


def call(function: str, *arguments: object) -> None:
    """Call a function. Raises EngineError when it refuses."""
    status = getattr(library(), function)(*arguments)
    if status:
        raise EngineError(
            "engine.call-failed",
            f"LiteRT's {function} failed with status {status}; export the bundle again, or use another engine",
        )


def create_handle(function: str, *arguments: object) -> c_void_p:
    """What a function makes, given as its last argument. Raises as :func:`call`."""
    handle = HANDLE()
    call(function, *arguments, byref(handle))
    return handle
