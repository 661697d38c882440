"""The conditions of a device (power, heat, network) as Linux reports them, and the limits for taking part.

Sources: Documentation/ABI/testing/sysfs-class-power and sysfs-class-thermal, proc_net, NetworkManager's Metered.
"""

from __future__ import annotations

import logging
import math
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

log = logging.getLogger(__name__)

#: Cooling devices that slow the processor down while they are in use; a fan is one too, and harms nobody.
_SLOWING = ("processor", "cpufreq", "cpuidle", "intel_powerclamp", "thermal-cpufreq", "thermal-devfreq")
#: Network interfaces that are modems.
_MODEMS = ("wwan", "ppp", "rmnet")
#: Bits of the Raspberry Pi's firmware: under-voltage, frequency capped, throttled, soft temperature limit; now.
_PI_SLOWED = 0b1111
_PI_FIRMWARE = "sys/devices/platform/soc/soc:firmware/get_throttled"


@dataclass(frozen=True)
class Conditions:
    """How a device fares.

    Attributes:
        battery: charge between 0 and 1; 1 where there is no battery.
        charging: whether it is connected to power.
        temperature_c: of its hottest sensor, in °C; NaN where it has no sensor.
        throttled: whether the processor is slowed down, for heat or for lack of power.
        metered: whether its network is known to cost by volume.
    """

    battery: float = 1.0
    charging: bool = True
    temperature_c: float = math.nan
    throttled: bool = False
    metered: bool = False


@dataclass(frozen=True)
class Limits:
    """Within which conditions a device takes part in rounds.

    Attributes:
        battery: the least charge, between 0 and 1.
        temperature_c: the highest temperature, in °C.
        charging: only while connected to power.
        unmetered: only on a network that is not metered.
    """

    battery: float = 0.0
    temperature_c: float = math.inf
    charging: bool = False
    unmetered: bool = False

    def unmet(self, now: Conditions) -> str:
        """The name of the first limit that is not kept now; "" where all are."""
        kept = {
            "charging": now.charging or not self.charging,
            "battery": now.battery >= self.battery,
            "temperature_c": not now.temperature_c > self.temperature_c,
            "unmetered": not (self.unmetered and now.metered),
        }
        return next((name for name, holds in kept.items() if not holds), "")

    def refusal(self, now: Conditions) -> str:
        """Why the device does not take part now; "" where it does."""
        return {
            "": "",
            "charging": "it is not charging",
            "battery": f"its battery is at {now.battery:.0%}, below {self.battery:.0%}",
            "temperature_c": f"it is at {now.temperature_c:.1f} °C, above {self.temperature_c:g} °C",
            "unmetered": "its network is metered",
        }[self.unmet(now)]


#: A device that always takes part.
UNLIMITED = Limits()


class Watch:
    """Looks how a device fares, and says when it takes part in no round, and when it does again.

    Attributes:
        limits: within which it takes part; others may be set at any time.
        seen: how it fared at the last look.
    """

    def __init__(self, limits: Limits = UNLIMITED, conditions: Callable[[], Conditions] | None = None) -> None:
        """``conditions`` tells how the device fares; None for what Linux tells."""
        self.limits = limits
        self.seen = Conditions()
        self._conditions = conditions or read_conditions
        self._said = ""

    def look(self) -> str:
        """Why the device takes part in no round now; "" where it does."""
        self.seen = self._conditions()
        reason = self.limits.refusal(self.seen)
        if reason != self._said:
            log.warning(f"takes part in no round now: {reason}" if reason else "takes part in rounds again")
            self._said = reason
        return reason


def read_conditions(root: Path = Path("/")) -> Conditions:
    """What the system says now; what it does not say is taken for good.

    Args:
        root: the folder in which ``sys`` and ``proc`` lie.
    """
    battery, charging = _power(root / "sys/class/power_supply")
    return Conditions(battery, charging, _temperature(root), _throttled(root), _metered(root))


def _power(supplies: Path) -> tuple[float, bool]:
    """The lowest of the system's batteries, and whether none is being used up; no battery means mains."""
    batteries = [folder for folder in _entries(supplies) if _is_battery(folder)]
    levels = [int(level) for folder in batteries if (level := _read(folder / "capacity")).isdecimal()]
    if not levels:
        return 1.0, True
    discharging = any(_read(folder / "status") == "Discharging" for folder in batteries)
    return min(100, *levels) / 100, not discharging


def _is_battery(supply: Path) -> bool:
    """Whether it powers the machine: a mouse's battery has the scope of a device."""
    return _read(supply / "type") == "Battery" and _read(supply / "scope") != "Device"


def _temperature(root: Path) -> float:
    zones = _numbers(root / "sys/class/thermal", "thermal_zone", "temp", 1000.0)
    batteries = _numbers(root / "sys/class/power_supply", "", "temp", 10.0)
    # Zones without a sensor behind them read as nothing, zero, or far below freezing.
    return max((degrees for degrees in (*zones, *batteries) if -50.0 < degrees < 200.0 and degrees), default=math.nan)


def _throttled(root: Path) -> bool:
    cooling = [
        int(state)
        for folder in _entries(root / "sys/class/thermal")
        if folder.name.startswith("cooling_device") and _read(folder / "type").lower().startswith(_SLOWING)
        if (state := _read(folder / "cur_state")).isdecimal()
    ]
    try:
        firmware = int(_read(root / _PI_FIRMWARE) or "0", 16)
    except ValueError:
        firmware = 0
    return any(cooling) or bool(firmware & _PI_SLOWED)


def _metered(root: Path) -> bool:
    """Whether the default route goes over a modem, or over a network that NetworkManager takes for metered."""
    interface = _default_interface(root / "proc/net/route")
    if not interface:
        return False
    kind = _read(root / "sys/class/net" / interface / "uevent")
    if interface.startswith(_MODEMS) or "DEVTYPE=wwan" in kind.split():
        return True
    command = ["nmcli", "--get-values", "GENERAL.METERED", "device", "show", interface]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):  # most boards have no NetworkManager
        return False
    return said.startswith("yes")


def _default_interface(routes: Path) -> str:
    """The interface of the default route with the smallest metric."""
    found = []
    for line in _read(routes).splitlines()[1:]:
        fields = line.split()
        if len(fields) > 7 and fields[1] == fields[7] == "00000000" and fields[6].isdecimal():
            found.append((int(fields[6]), fields[0]))
    return min(found, default=(0, ""))[1]


def _numbers(folder: Path, prefix: str, name: str, unit: float) -> Iterator[float]:
    """The numbers in the files of a name in a folder's folders, in units of ``1 / unit``."""
    for entry in _entries(folder):
        if entry.name.startswith(prefix):
            try:
                yield int(_read(entry / name)) / unit
            except ValueError:  # a sensor that is switched off
                continue


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
