"""Processor packages by their running average power limit counters (Linux powercap, ``intel-rapl``; AMD has it too).

A package's counter covers its cores and what else is on the chip, so only packages are added up: their subdomains are
part of them, ``psys`` contains them, and ``intel-rapl-mmio`` is the same package by another way. Documentation:
Documentation/power/powercap/powercap.rst of the kernel.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fedspzo.device_runtime.energy.source import COUNTER, Facts, Gap, find_number, find_text, folders, read_number

POWERCAP = Path("/sys/class/powercap")
NAME = "rapl"
#: J: steps of the coarsest energy unit in use (2⁻¹⁴ J), and s: how often processors update it.
RESOLUTION_J, PERIOD_S = 2.0**-14, 1e-3
#: The counters follow a wall meter to a few per cent (Khan et al. 2018, "RAPL in Action").
GAIN = 0.02
#: W: more than any package draws; a counter that says so was set back.
MOST_W = 2000.0


@dataclass
class _Package:
    counter: Path
    span: int
    last: int


class Rapl:
    """The packages of a machine together. See :class:`fedspzo.device_runtime.energy.source.Source`."""

    name = NAME

    def __init__(self, packages: list[Path], clock: Callable[[], float] = time.monotonic) -> None:
        """Start at the counters as they are. Raises Gap when one cannot be read."""
        self._clock = clock
        self._packages = [
            _Package(
                folder / "energy_uj", read_number(folder / "max_energy_range_uj"), read_number(folder / "energy_uj")
            )
            for folder in packages
        ]
        self._joules = 0.0
        self._at = clock()
        several = f"{len(packages)} processor packages" if len(packages) > 1 else "the processor's package"
        remarks = (
            "it sees the processor alone: no memory outside of it, no radio, no screen, no power supply's losses",
        )
        self.facts = Facts(COUNTER, RESOLUTION_J, PERIOD_S, GAIN, several, remarks)

    def read(self) -> float:
        """Joules since the start, over the points where counters start again."""
        counts = [read_number(package.counter) for package in self._packages]
        moved = sum(unwrap(p.last, count, p.span) for p, count in zip(self._packages, counts, strict=True)) / 1e6
        now = self._clock()
        for package, count in zip(self._packages, counts, strict=True):
            package.last = count
        seconds, self._at = now - self._at, now
        if moved > MOST_W * len(counts) * (seconds + 1):
            raise Gap("a counter was set back, as by a suspension of the machine")
        self._joules += moved
        return self._joules


def unwrap(before: int, after: int, span: int) -> int:
    """How far a counter went that starts again beyond ``span``; right as long as it went less than all of it."""
    return after - before if after >= before else after - before + span + 1


def find_rapl(root: Path = POWERCAP, clock: Callable[[], float] = time.monotonic) -> Rapl | str:
    """The packages' counters, or why there are none."""
    domains = [folder for folder in folders(root) if re.fullmatch(r"intel-rapl(-mmio)?:\d+", folder.name)]
    packages = [folder for folder in domains if (find_text(folder / "name") or "").startswith("package")]
    plain = [folder for folder in packages if "mmio" not in folder.name]
    if not packages:
        return f"{root} has no package of intel-rapl"
    try:
        return Rapl(plain or packages, clock)
    except Gap as gap:
        unreadable = next((p for p in plain or packages if find_number(p / "energy_uj") is None), None)
        if unreadable is not None and (unreadable / "energy_uj").exists():
            return (
                f"{unreadable / 'energy_uj'} is root's alone; run as root, or have root let others read it (chmod a+r)"
            )
        return str(gap)
