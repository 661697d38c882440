"""Which sources this device has, and which one a user chose."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fedspzo.device_runtime.energy.android import Phone, find_android
from fedspzo.device_runtime.energy.jetson import HWMON, find_jetson
from fedspzo.device_runtime.energy.pmic import ask_firmware, find_pmic
from fedspzo.device_runtime.energy.power_supply import SUPPLIES, find_batteries
from fedspzo.device_runtime.energy.rapl import POWERCAP, find_psys, find_rapl
from fedspzo.device_runtime.energy.source import Gap, Search, Source
from fedspzo.device_runtime.errors import EnergyError


@dataclass(frozen=True)
class Places:
    """Where sources are looked for."""

    powercap: Path = POWERCAP
    hwmon: Path = HWMON
    supplies: Path = SUPPLIES
    pmic: Callable[[], str] = ask_firmware
    phone: Phone | None = None

    @classmethod
    def under(cls, root: Path) -> Places:
        """The same under another root folder than /, as where a container sees its host's."""

        def moved(path: Path) -> Path:
            return root / path.relative_to("/")

        return cls(moved(POWERCAP), moved(HWMON), moved(SUPPLIES))


def find_sources(places: Places) -> Search:
    """All sources that are here: those that see the whole device before those that see a part of it."""
    found: list[Source] = []
    missing: list[tuple[str, str]] = []
    if places.phone is not None:
        sources, reason = find_android(places.phone)
        found += sources
        missing += [("android", reason)] if reason else []
    for name, one in (("jetson", find_jetson(places.hwmon)), ("pi5", find_pmic(places.pmic))):
        if isinstance(one, str):
            missing.append((name, one))
        else:
            found.append(one)
    sources, reason = find_batteries(places.supplies)
    found += sources
    missing += [("battery", reason)] if reason else []
    package = find_rapl(places.powercap)
    if isinstance(package, str):
        missing.append(("rapl", package))
    else:
        found.append(package)
    platform = find_psys(places.powercap)
    found += [platform] if platform else []
    return Search(found, missing)


def choose_source(name: str, places: Places) -> Source:
    """The source of a name, or with "auto" the first that can be read now.

    Raises:
        EnergyError: no such source can be read; the sentence says what was looked for.
    """
    search = find_sources(places)
    named = [source for source in search.found if name in ("auto", source.name)]
    usable = [source for source in named if name != "auto" or not settled(source)]
    if usable:
        return usable[0]
    looked = "; ".join(f"{kind}: {reason}" for kind, reason in search.missing)
    others = ", ".join(source.name for source in search.found)
    if name == "auto" and not named:
        raise EnergyError(
            "energy.no-sensor",
            f"this device has no readable energy sensor ({looked}); give a meter's --csv, or estimate with"
            " --joules-per-flop",
        )
    if name == "auto":
        raise EnergyError(
            "energy.no-reading-now",
            f"no energy sensor can be read now ({others}); if the charger is connected, disconnect it",
        )
    raise EnergyError(
        "energy.unknown-source", f"there is no energy source '{name}' here ({looked}); choose from: {others or 'none'}"
    )


def settled(source: Source) -> str:
    """Read a source once, so that it infers what it can; why that cannot be at the moment, or ""."""
    try:
        source.read()
    except Gap as gap:
        return str(gap)
    return ""
