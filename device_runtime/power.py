"""Battery and mains as Linux tells of them (Documentation/ABI/testing/sysfs-class-power)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

SUPPLIES = Path("/sys/class/power_supply")


@dataclass(frozen=True)
class Power:
    """How a device is powered.

    Attributes:
        battery: charge between 0 and 1; 1 where there is no battery.
        charging: whether it is connected to power.
    """

    battery: float
    charging: bool


def read_power(supplies: Path = SUPPLIES) -> Power:
    """What the system's batteries say; a machine without one is connected to power."""
    batteries = [folder for folder in _entries(supplies) if _read(folder / "type") == "Battery"]
    levels = [int(level) for folder in batteries if (level := _read(folder / "capacity")).isdecimal()]
    if not levels:
        return Power(1.0, True)
    discharging = any(_read(folder / "status") == "Discharging" for folder in batteries)
    return Power(min(100, *levels) / 100, not discharging)


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""
