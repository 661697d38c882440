"""An external meter's log, a CSV of time and power, matched by the time of day with what the device did.

The first row names the columns: a time (seconds since the epoch or since the meter's start, milliseconds, or ISO 8601)
and a power, or a voltage and a current; units in brackets count (``Current (mA)``, ``power[mW]``).
"""

from __future__ import annotations

import bisect
import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import numpy as np

from fedspzo.device_runtime.energy.source import COUNTER, Facts, Gap
from fedspzo.device_runtime.errors import EnergyError

NAME = "csv"
#: Relative uncertainty of a meter's scale: assumed, as for inexpensive USB meters.
GAIN = 0.01
_UNITS = {"m": 1e-3, "µ": 1e-6, "u": 1e-6, "μ": 1e-6}
_COLUMNS = {
    "time": r"time|^date|^elapsed|^t$|^seconds",
    "watts": r"power|^watts?$|^p$|^[mµuμ]?w$",
    "volts": r"volt|vbus|^[uv]$|^[mµuμ]v$",
    "amperes": r"current|^amp|ibus|^[ia]$|^[mµuμ]a$",
}
#: Seconds since the epoch are beyond the first of these, milliseconds beyond the second.
_EPOCH_S, _EPOCH_MS = 1e8, 1e11


@dataclass(frozen=True)
class Log:
    """A meter's readings.

    Attributes:
        name: of the file.
        times: float64 [rows], rising, in s: since the epoch, or since some start.
        watts: float64 [rows].
        absolute: whether the times are since the epoch.
    """

    name: str
    times: np.ndarray
    watts: np.ndarray
    absolute: bool

    @property
    def joules(self) -> np.ndarray:
        """float64 [rows], used since the first row: power by the trapezoid rule."""
        return np.concatenate([[0.0], np.cumsum(np.diff(self.times) * (self.watts[1:] + self.watts[:-1]) / 2)])

    @property
    def period(self) -> float:
        """Seconds between rows, their median."""
        return float(np.median(np.diff(self.times)))

    @property
    def resolution(self) -> float:
        """W: the least difference between rows that differ."""
        steps = np.abs(np.diff(self.watts))
        return float(steps[steps > 0].min(initial=np.inf)) if steps.any() else 0.0


def read_log(file: Path, volts: float | None = None) -> Log:
    """A meter's log. Raises EnergyError, naming the line, when it is not one."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise EnergyError("energy.log-unreadable", f"{file} cannot be read ({error}); check the path") from None
    lines = text.splitlines()
    delimiter = max(";\t,", key=lines[0].count) if lines else ","
    rows = [row for row in csv.reader(lines, delimiter=delimiter) if row]
    names = [name.strip("# ").lower() for name in rows[0]] if rows else []
    words = [re.split(r"[(\[]", name)[0].strip() for name in names]
    columns = {what: at for what, form in _COLUMNS.items() for at, word in enumerate(words) if re.search(form, word)}
    wanted = ["time", "watts"] if "watts" in columns else ["time", "volts", "amperes"]
    if not set(wanted) <= set(columns):
        raise EnergyError(
            "energy.log-header",
            f"{file} has no header that names its columns; name a time and a power, or a time, a voltage and a current",
        )
    numbers = np.zeros((len(rows) - 1, len(wanted)))
    for number, row in enumerate(rows[1:]):
        for at, what in enumerate(wanted):
            try:
                cell = row[columns[what]].strip()
                numbers[number, at] = _seconds(cell) if what == "time" else float(cell.replace(",", "."))
            except (IndexError, ValueError):
                raise EnergyError(
                    "energy.log-cell",
                    f"line {number + 2} of {file} has no {what}, which its header promises; correct the line",
                ) from None
    if len(numbers) < 2 or not np.isfinite(numbers).all() or (np.diff(numbers[:, 0]) <= 0).any():
        raise EnergyError(
            "energy.log-rows",
            f"{file} is not a series of measurements; give two or more rows of finite numbers, sorted by time",
        )
    watts = np.prod([numbers[:, at] * _unit(names[columns[what]]) for at, what in enumerate(wanted) if at], axis=0)
    times, name = numbers[:, 0], names[columns["time"]]
    if times[0] > _EPOCH_MS or re.search(r"(?<![a-z])ms(?![a-z])|milli", name):
        times = times / 1e3
    return Log(file.name, times, watts, bool(times[0] > _EPOCH_S))


def _seconds(cell: str) -> float:
    try:
        return float(cell.replace(",", "."))
    except ValueError:
        moment = datetime.fromisoformat(cell.replace("Z", "+00:00"))
        return (moment if moment.tzinfo else moment.astimezone()).astimezone(timezone.utc).timestamp()


def _unit(name: str) -> float:
    """The factor to W, V or A of a column's name."""
    bracketed = re.search(r"[(\[]\s*([mµuμ]?)[wva]\s*[)\]]|[_ ]([mµuμ]?)[wva]$|^([mµuμ])[wva]$", name)
    return _UNITS.get(next(filter(None, bracketed.groups()), ""), 1.0) if bracketed else 1.0


class Replay:
    """A meter's log as a source that is read after the fact, at moments of the device's own clock.

    See :class:`fedspzo.device_runtime.energy.source.Source`.
    """

    name = NAME

    def __init__(self, log: Log, offset: float, how: str) -> None:
        """Lay a log over a clock.

        Args:
            offset: what is added to the log's times to give the clock's.
            how: the offset was found, as a sentence.
        """
        self._times, self._joules, self._period = log.times + offset, log.joules, log.period
        self.now = 0.0
        self.facts = Facts(
            COUNTER, log.resolution * log.period, log.period, GAIN, "what the meter feeds",
            (how, f"the meter's scale is taken to be right to {GAIN:.0%}"),
        )  # fmt: skip

    def read(self) -> float:
        """Joules up to ``now``. Raises Gap where the log has no row near."""
        after = bisect.bisect_left(self._times, self.now)
        if not 0 < after < len(self._times):
            raise Gap("the meter's log does not reach so far")
        if self._times[after] - self._times[after - 1] > 10 * self._period:
            raise Gap("the meter's log has a hole")
        return float(np.interp(self.now, self._times, self._joules))


def align_edges(log: Log, times: Sequence[float], busy: Sequence[float], most: float = 600.0) -> tuple[float, float]:
    """The offset at which a meter's power follows the work best, and their correlation there.

    Args:
        times: moments of the device's clock, rising.
        busy: share of the time around each that was work and not waiting.
        most: seconds by which the first moments of both may differ, either way, when the log's times are the clock's;
            else anything that keeps the log over the work is tried.

    Raises:
        EnergyError: no offset fits well, or another fits as well.
    """
    grid = max(log.period, float(np.median(np.diff(times))))
    clock = np.arange(times[0], times[-1], grid)
    work = np.interp(clock, times, busy)
    span = log.times[-1] - log.times[0]
    length = clock[-1] - clock[0]
    if span < length or work.std() == 0:
        raise EnergyError(
            "energy.log-too-short",
            f"{log.name} is shorter than the measurement, or the work has no edges; give the --offset",
        )
    low, high = clock[0] - log.times[0] - (span - length), clock[0] - log.times[0]
    if log.absolute:
        low, high = max(low, -most), min(high, most)
    offsets = np.arange(low, high + grid / 8, grid / 4)
    scores = np.array([_correlation(work, np.interp(clock - offset, log.times, log.watts)) for offset in offsets])
    if not len(scores) or scores.max() < 0.7:
        raise EnergyError(
            "energy.log-does-not-fit",
            f"the power in {log.name} does not follow the work at any offset; give the --offset",
        )
    best = int(scores.argmax())
    far = np.abs(offsets - offsets[best]) > length / 10
    if far.any() and scores[far].max() > scores[best] - 0.05:
        raise EnergyError(
            "energy.log-ambiguous", f"the power in {log.name} follows the work at several offsets; give the --offset"
        )
    return float(offsets[best]), float(scores[best])


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.corrcoef(one, other)[0, 1]) if other.std() > 0 else 0.0
