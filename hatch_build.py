"""Builds the direction kernel in C where there is a compiler; without one the package is pure Python and slower."""

from __future__ import annotations

import os
import shlex
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCE, LIBRARY = "device_runtime/directions.c", "device_runtime/libdirections.so"
#: No fused multiply-add: directions are the same bits on every machine.
FLAGS = ("-O3", "-std=gnu11", "-ffp-contract=off", "-fPIC", "-shared")


class KernelBuildHook(BuildHookInterface):
    """Compiles with ``$CC``, or ``cc``."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the library to a wheel, or put it where an editable installation finds it."""
        if self.target_name != "wheel":
            return
        root = Path(self.root)
        (root / LIBRARY).unlink(missing_ok=True)
        command = [*shlex.split(os.environ.get("CC", "cc")), *FLAGS, "-o", str(root / LIBRARY), str(root / SOURCE)]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True)
        except (OSError, subprocess.CalledProcessError) as error:
            reason = getattr(error, "stderr", "") or str(error)
            self.app.display_warning(f"the direction kernel is not built, numpy does its work: {reason.strip()}")
            return
        build_data["artifacts"].append(LIBRARY)
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"
