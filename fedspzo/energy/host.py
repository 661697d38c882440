"""What a machine was like while it was measured, as far as it says so."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

from fedspzo.device_runtime.energy.source import find_number, find_text, folders

_CPU, _HEAT, _SCREENS = "devices/system/cpu", "class/thermal", "class/backlight"
#: Where the processor has no name, as on most ARM boards, the board has one.
_BOARD = "firmware/devicetree/base/model"


def describe_host(sys: Path = Path("/sys")) -> dict[str, Any]:
    """What the machine says of itself as plain values: host, board and kernel, and its state."""
    return {
        "host": platform.node(),
        "system": platform.platform(),
        "kernel": platform.release(),
        "machine": platform.machine(),
        "processor": _processor(),
        "board": (find_text(sys / _BOARD) or "").rstrip("\0") or None,
        "cores": os.cpu_count(),
        **describe_state(sys),
    }


def describe_state(sys: Path = Path("/sys")) -> dict[str, Any]:
    """What changes as a machine works, as plain values: governors, frequencies in MHz, temperatures in °C and the
    brightness of screens; empty where it does not say."""
    cores = [folder / "cpufreq" for folder in folders(sys / _CPU) if (folder / "cpufreq").is_dir()]
    governors = {find_text(core / "scaling_governor") for core in cores} - {None}
    frequencies = [hertz for core in cores if (hertz := find_number(core / "scaling_cur_freq"))]
    heat = [degrees for zone in folders(sys / _HEAT) if (degrees := find_number(zone / "temp")) is not None]
    return {
        "governor": sorted(map(str, governors)),
        "frequencies_mhz": [hertz / 1e3 for hertz in frequencies],
        "temperatures_c": [degrees / 1e3 for degrees in heat],
        "screen": {f.name: find_number(f / "actual_brightness") for f in folders(sys / _SCREENS)},
    }


def _processor() -> str | None:
    lines = (find_text(Path("/proc/cpuinfo")) or "").splitlines()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), None)
