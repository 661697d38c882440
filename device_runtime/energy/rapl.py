"""Processor packages by their running average power limit counters (Linux powercap, ``intel-rapl``; AMD has it too).

A package's counter covers its cores and what else is on the chip, but not its memory, which the subdomain ``dram``
counts where there is one: packages and their memory are added up. Other subdomains are part of their package,
``intel-rapl-mmio`` is the same package by another way, and the dies of one package that run together show one counter.
``psys`` contains packages and more, and is a source of its own. See Documentation/power/powercap/powercap.rst of the
kernel.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fedspzo.device_runtime.energy.source import COUNTER, Facts, Gap, find_number, find_text, folders, read_number

POWERCAP = Path("/sys/class/powercap")
NAME, PSYS_NAME = "rapl", "psys"
#: J: steps of the coarsest energy unit in use (2⁻¹⁴ J), and s: how often processors update it.
RESOLUTION_J, PERIOD_S = 2.0**-14, 1e-3
#: The counters follow a wall meter to a few per cent (Khan et al. 2018, "RAPL in Action").
GAIN = 0.02
#: W: more than any package draws; a counter that says so was set back.
MOST_W = 2000.0
#: J by which counters of one package's dies differ at most, read one after the other, if they are the same one.
_TOGETHER_J = 1.0


@dataclass
class _Domain:
    counter: Path
    span: int
    last: int


class Rapl:
    """Counters of a machine together. See :class:`fedspzo.device_runtime.energy.source.Source`."""

    def __init__(self, name: str, domains: list[Path], clock: Callable[[], float], scope: str, *remarks: str) -> None:
        """Start at the counters as they are. Raises Gap when one cannot be read."""
        self.name = name
        self._clock = clock
        self._domains = [_open(folder) for folder in domains]
        self._joules = 0.0
        self._at = clock()
        self.facts = Facts(COUNTER, RESOLUTION_J, PERIOD_S, GAIN, scope, remarks)

    def read(self) -> float:
        """Joules since the start, over the points where counters start again."""
        counts = [read_number(domain.counter) for domain in self._domains]
        moves = [_move(domain, count) for domain, count in zip(self._domains, counts, strict=True)]
        now = self._clock()
        for domain, count in zip(self._domains, counts, strict=True):
            domain.last = count
        seconds, self._at = now - self._at, now
        if None in moves:
            raise Gap("a counter was set back that does not say where it starts again")
        moved = sum(move for move in moves if move is not None) / 1e6
        if moved > MOST_W * len(counts) * (seconds + 1):
            raise Gap("a counter was set back, as by a suspension of the machine")
        self._joules += moved
        return self._joules


def _open(folder: Path) -> _Domain:
    counter = folder / "energy_uj"
    return _Domain(counter, find_number(folder / "max_energy_range_uj") or 0, read_number(counter))


def _move(domain: _Domain, count: int) -> int | None:
    """µJ since the last time; None where that cannot be told."""
    if count < domain.last and domain.span < domain.last:
        return None
    return unwrap(domain.last, count, domain.span)


def unwrap(before: int, after: int, span: int) -> int:
    """How far a counter went that starts again beyond ``span``; right as long as it went less than all of it."""
    return after - before if after >= before else after - before + span + 1


def find_rapl(root: Path = POWERCAP, clock: Callable[[], float] = time.monotonic) -> Rapl | str:
    """The packages' and their memory's counters, or why there are none."""
    named = _named(root)
    packages = [folder for folder, name in named.items() if name.startswith("package")]
    packages = [folder for folder in packages if "mmio" not in folder.name] or packages
    if not packages:
        return f"{root} has no package of intel-rapl"
    try:
        counted, twice = _once(packages, named)
        memories = [
            folder
            for folder, name in named.items()
            if name == "dram" and any(folder.name.startswith(f"{package.name}:") for package in counted)
        ]
        readable = [folder for folder in memories if find_number(folder / "energy_uj") is not None]
        several = f"{len(counted)} processor packages" if len(counted) > 1 else "one processor package"
        scope = f"{several} with dram (package+dram)" if readable else several
        blind = "no radio, no screen, no power supply's losses"
        remarks = [
            f"it sees the processor and its memory alone: {blind}"
            if readable
            else f"it sees the processor alone: no memory outside of it, {blind}"
        ]
        remarks += ["the dies of a package show one counter, which counts once"] * twice
        remarks += ["the memory's counter cannot be read"] * (len(readable) < len(memories))
        return Rapl(NAME, [*counted, *readable], clock, scope, *remarks)
    except Gap as gap:
        return _unreadable(packages) or str(gap)


def find_psys(root: Path = POWERCAP, clock: Callable[[], float] = time.monotonic) -> Rapl | None:
    """The platform's counter, where there is one that can be read."""
    domains = [folder for folder, name in _named(root).items() if name.startswith("psys") and "mmio" not in folder.name]
    try:
        said = "what it contains beside the processor is the maker's choice"
        return Rapl(PSYS_NAME, domains[:1], clock, "the platform (psys)", said) if domains else None
    except Gap:
        return None


def _named(root: Path) -> dict[Path, str]:
    """Domains and subdomains, wherever they lie, by their names; each once."""
    form = re.compile(r"intel-rapl(-mmio)?(:\d+){1,2}")
    top = [folder for folder in folders(root) if form.fullmatch(folder.name)]
    below = [sub for folder in top for sub in folders(folder) if form.fullmatch(sub.name)]
    each = {folder.name: folder for folder in (*below, *top)}
    return {folder: find_text(folder / "name") or "" for _, folder in sorted(each.items())}


def _once(packages: list[Path], named: dict[Path, str]) -> tuple[list[Path], bool]:
    """Packages, dies that show one counter as one, and whether there were any. Raises Gap when one is unreadable."""
    counted: list[Path] = []
    seen: list[tuple[str, int]] = []
    for package in packages:
        owner, die, _ = named[package].partition("-die-")
        count = read_number(package / "energy_uj")
        if die and any(owner == one and abs(count - other) <= _TOGETHER_J * 1e6 for one, other in seen):
            continue
        counted.append(package)
        seen.append((owner, count))
    return counted, len(counted) < len(packages)


def _unreadable(packages: list[Path]) -> str:
    for package in packages:
        counter = package / "energy_uj"
        if find_number(counter) is None and counter.exists():
            return f"{counter} is root's alone; run as root, or have root let others read it (chmod a+r)"
    return ""
