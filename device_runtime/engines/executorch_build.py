"""Compiles the C interface to ExecuTorch (``executorch_shim.cpp``) at its first use, against the wheel's own libraries.

The result lies in a cache, ``$XDG_CACHE_HOME/fedspzo`` or ``~/.cache/fedspzo``, for later processes.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import platform
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from fedspzo.device_runtime.errors import EngineError
from fedspzo.device_runtime.files import cache_folder, make_folder, move_into_place, scratch_folder

_SOURCE = Path(__file__).with_name("executorch_shim.cpp")
#: What the wheel's CMake configuration asks of its users; later headers may want a later standard.
_OPTIONS = (
    *("-std=c++17", "-O2", "-w", "-shared", "-fPIC"),
    *("-DC10_USING_CUSTOM_GENERATED_MACROS", "-DET_EVENT_TRACER_ENABLED", "-DET_USE_THREADPOOL"),
)
_HEADERS = ("include", "include/executorch/runtime/core/portable_type/c10")
#: The backend and the kernels register themselves when they are loaded; nothing refers to them.
_LIBRARIES = (
    *("-Wl,--no-as-needed", "-lexecutorch_backend_xnnpack", "-lexecutorch_kernels_optimized"),
    *("-lexecutorch_threadpool", "-lexecutorch"),
)


def find_compiler() -> str | None:
    """The C++ compiler of this machine; None where it has no compiler."""
    return next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)


def build_shim() -> Path:
    """The compiled interface to the installed wheel's libraries; it is compiled if the cache does not have it.

    Processes may do so at the same time. The wheel is not imported: that would want torch.

    Raises:
        EngineError: there are no libraries or no compiler, it fails, or the cache cannot be written.
    """
    flags = _flags(_wheel())
    library = _cache() / f"executorch-{_key(flags)}.so"
    if library.exists():
        return library
    compiler = find_compiler()
    if compiler is None:
        raise EngineError("engine.no-compiler", "ExecuTorch needs a C++ compiler once, and found none; install g++")
    try:
        make_folder(library.parent)
        with scratch_folder(library.parent) as folder:
            partial = folder / library.name
            _compile([compiler, str(_SOURCE), "-o", str(partial), *flags])
            move_into_place(partial, library)
    except OSError as error:
        raise EngineError(
            "engine.cache-unwritable",
            f"{library.parent} cannot be written ({error.strerror}), and ExecuTorch's interface is compiled there; set"
            " XDG_CACHE_HOME to a writable folder",
        ) from None
    return library


def _wheel() -> Path:
    spec = importlib.util.find_spec("executorch")
    for folder in (spec and spec.submodule_search_locations) or ():
        if Path(folder, "lib", "libexecutorch.so").exists():
            return Path(folder)
    raise EngineError(
        "engine.executorch-incomplete",
        "the installed package executorch has no libexecutorch.so; install version 1.5 or newer for Linux",
    )


def _flags(wheel: Path) -> list[str]:
    headers = (f"-I{wheel / folder}" for folder in _HEADERS)
    return [*_OPTIONS, *headers, f"-L{wheel / 'lib'}", f"-Wl,-rpath,{wheel / 'lib'}", *_LIBRARIES]


def _key(flags: Sequence[str]) -> str:
    version = importlib.metadata.version("executorch")
    machine = (platform.machine(), *platform.libc_ver())
    return hashlib.sha256(repr((_SOURCE.read_bytes(), version, flags, machine)).encode()).hexdigest()[:16]


def _cache() -> Path:
    try:
        return cache_folder()
    except RuntimeError:
        raise EngineError(
            "engine.no-cache",
            "there is no home folder to cache ExecuTorch's interface in; set XDG_CACHE_HOME to a writable folder",
        ) from None


def _compile(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        reason = next((line for line in done.stderr.splitlines() if "error" in line), f"status {done.returncode}")
        raise EngineError(
            "engine.compile-failed",
            f"{command[0]} cannot compile ExecuTorch's interface ({reason}); install a newer g++",
        )
