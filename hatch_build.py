"""Builds the direction kernel in C where there is a compiler; without one the package is pure Python and slower."""

from __future__ import annotations

import os
import shlex
import subprocess
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCE, LIBRARY = "fedspzo/device_runtime/directions/kernel.c", "fedspzo/device_runtime/directions/libdirections.so"
#: No fused multiply-add: directions are the same bits on every machine.
FLAGS = ("-O3", "-std=gnu11", "-ffp-contract=off", "-fPIC", "-shared")


class KernelBuildHook(BuildHookInterface):
    """Compiles with ``$CC``, or ``cc``; for another machine where ``$_PYTHON_HOST_PLATFORM`` names it to sysconfig."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the library to a wheel, or put it where an editable installation finds it."""
        if self.target_name != "wheel":
            return
        if version == "editable":
            library = Path(self.root, LIBRARY)
        else:  # beside the checkout, whose own library may be for another machine
            self._folder = tempfile.TemporaryDirectory()
            library = Path(self._folder.name, "libdirections.so")
        library.unlink(missing_ok=True)
        source = Path(self.root, SOURCE)
        command = [*shlex.split(os.environ.get("CC", "cc")), *FLAGS, "-o", str(library), str(source)]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True)
        except (OSError, subprocess.CalledProcessError) as error:
            reason = getattr(error, "stderr", "") or str(error)
            self.app.display_warning(f"the direction kernel is not built, numpy does its work: {reason.strip()}")
            return
        if version == "editable":
            build_data["artifacts"].append(LIBRARY)
        else:
            build_data["force_include"][str(library)] = LIBRARY
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"
