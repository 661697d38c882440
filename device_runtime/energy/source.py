"""Sources of energy readings, and how they describe themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

#: Whether :meth:`Source.read` gives the joules used since some start, or the watts of the moment.
COUNTER, POWER = "counter", "power"


@dataclass(frozen=True)
class Facts:
    """What a source can tell.

    Attributes:
        kind: :data:`COUNTER` or :data:`POWER`.
        resolution: the least difference that it can tell, in J or W.
        period: seconds between updates of its value; where its maker does not say, the least that is plausible. What
            the readings themselves show of it counts where that is more.
        gain: relative standard uncertainty of its scale, by its maker's words or an assumption.
        scope: what is measured, in words.
        remarks: what was inferred and why, each a sentence.
        measured: False for an estimate from counted operations.
        gauge: its maker does not say how often it is updated and how late, which its readings must show.
    """

    kind: str
    resolution: float
    period: float
    gain: float
    scope: str
    remarks: tuple[str, ...] = ()
    measured: bool = True
    gauge: bool = False


class Gap(Exception):
    """A source cannot say at the moment what the device uses; the reason is a clause. It may be able to later."""


class Source(Protocol):
    """Gives readings, one at a time.

    Attributes:
        name: by which users choose it.
    """

    name: str

    @property
    def facts(self) -> Facts:
        """What it can tell; inference may have learnt more since the last time."""

    def read(self) -> float:
        """Joules since some start, which never start again, or the watts of the moment.

        Raises:
            Gap: it cannot say at the moment.
            EnergyError: it contradicts itself, and nothing that it says can be believed.
        """


@dataclass(frozen=True)
class Search:
    """What was looked for.

    Attributes:
        found: sources, the one to prefer first.
        missing: for each kind of source that is not here, its name and why, as a clause.
    """

    found: Sequence[Source]
    missing: Sequence[tuple[str, str]]


def read_text(file: Path) -> str:
    """A small file's words. Raises Gap when it cannot be read (any more)."""
    try:
        return file.read_text(encoding="ascii", errors="replace").strip()
    except OSError as error:
        raise Gap(f"{file} cannot be read ({error.strerror})") from None


def read_number(file: Path) -> int:
    """The integer in a small file. Raises Gap when it holds no integer."""
    text = read_text(file)
    try:
        return int(text)
    except ValueError:
        raise Gap(f"{file} holds '{text[:40]}', which is not a number") from None


def find_text(file: Path) -> str | None:
    """A small file's words, or None."""
    try:
        return read_text(file)
    except Gap:
        return None


def find_number(file: Path) -> int | None:
    """The integer in a small file, or None."""
    try:
        return read_number(file)
    except Gap:
        return None


def folders(root: Path) -> list[Path]:
    """What lies in a folder, in order; nothing where it cannot be listed."""
    try:
        return sorted(root.iterdir())
    except OSError:
        return []
