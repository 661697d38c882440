"""An external meter's log, a CSV of time and power, matched by the time of day with what the device did.

A row names the columns: a time, and a power, or a voltage and a current. A column that does not say what it is does not
count (:mod:`log_columns`). Rows that cannot be read are passed over where they are few, and named.
"""

from __future__ import annotations

import bisect
import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedspzo.device_runtime.energy.log_columns import AMPERES, TIME, Columns, choose_columns, unit_row
from fedspzo.device_runtime.energy.log_times import day_first, over_midnight, read_moment, read_number
from fedspzo.device_runtime.energy.source import COUNTER, Facts, Gap
from fedspzo.device_runtime.errors import EnergyError

NAME = "csv"
#: Relative uncertainty of a meter's scale: assumed, as for inexpensive USB meters.
GAIN = 0.01
#: Lines in which the header is looked for, and one row in so many that may be bad (one where there are at least _FEW).
_PREAMBLE, _BAD, _FEW = 60, 50, 8
#: Seconds since the epoch are between these.
_EPOCH, _LATEST = 1e9, 4e9
#: V: from here on a product of voltage and current is taken for mains, of which it is the apparent power.
_MAINS = 80.0


@dataclass(frozen=True)
class Log:
    """A meter's readings.

    Attributes:
        name: of the file.
        times: float64 [rows], rising, in s: since the epoch, or since some start.
        watts: float64 [rows].
        absolute: whether the times are since the epoch.
        remarks: what was passed over or taken for granted, each a sentence.
    """

    name: str
    times: np.ndarray
    watts: np.ndarray
    absolute: bool
    remarks: tuple[str, ...] = ()

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
    """A meter's log.

    Args:
        volts: the supply's, for a log that has a current alone.

    Raises:
        EnergyError: it is none, or does not say what it measured; the sentence names the line.
    """
    lines = _read_lines(file)
    start, delimiter, columns = _find_header(file, lines, volts is not None)
    rows = list(_rows(lines, start, delimiter))
    if rows and unit_row(rows[0][1]) and not _readable(rows[0][1], columns):
        rows = rows[1:]
    day = day_first([" ".join(row[c.at] for c in columns.times if c.at < len(row)) for _, row in rows])
    times, values, numbers, since, bad = [], [], [], "", []
    for number, row in rows:
        try:
            cells = [row[column.at] for column in columns.times]
            moment, kind = _moment(cells, columns, day)
            read = [column.read(row[column.at], delimiter != ",") for column in columns.watts]
            if not np.isfinite(read).all() or not np.isfinite(moment):
                raise ValueError("not finite")
            since = since or kind
            if kind != since:
                raise ValueError("a time of another kind")
        except (IndexError, ValueError) as error:
            bad.append((number, str(error)))
            continue
        times.append(moment)
        values.append(read)
        numbers.append(number)
    _refuse_bad(file, columns, bad, len(rows))
    remarks = [f"line {number} of {file.name} cannot be read and was passed over" for number, _ in bad[:5]]
    remarks += [f"{column}, which does not count" for column in columns.refused]
    powers = np.array(values).reshape(-1, len(columns.watts))
    watts, said = _watts(file, columns, powers, numbers, volts)
    moments = over_midnight(np.array(times)) if since == "midnight" else np.array(times)
    if not since and columns.times[0].factor is None:
        remarks.append("the log's times name no unit and are taken to be in s")
    moments, watts, merged = _in_order(file, moments, watts, numbers)
    return Log(file.name, moments, watts, since == "epoch", (*remarks, *said, *merged))


def _read_lines(file: Path) -> list[str]:
    try:
        raw = file.read_bytes()
    except OSError as error:
        raise EnergyError("energy.log-unreadable", f"{file} cannot be read ({error}); check the path") from None
    wide = raw.startswith((b"\xff\xfe", b"\xfe\xff"))
    for encoding in ("utf-16",) if wide else ("utf-8-sig", "cp1252"):
        try:
            return raw.decode(encoding).splitlines()
        except UnicodeDecodeError as error:
            failed = error
    raise EnergyError("energy.log-unreadable", f"{file} cannot be read ({failed}); write it as UTF-8")


def _find_header(file: Path, lines: Sequence[str], volts: bool) -> tuple[int, str, Columns]:
    """The header's line, what separates cells, and its columns."""
    reason = ""
    for number, line in enumerate(lines[:_PREAMBLE]):
        for delimiter in [mark for mark in ";\t," if mark in line.strip()] or [" "]:
            names = _cells(line, delimiter)
            below = _cells(lines[number + 1], delimiter) if number + 1 < len(lines) else []
            found = choose_columns(names, below if unit_row(below) else (), volts)
            if isinstance(found, Columns):
                return number, delimiter, found
            if "names no time" not in found and "names no power" not in found:
                reason = reason or found
    raise EnergyError(
        "energy.log-header",
        f"{file} has no header that names its columns{f': {reason}' if reason else ''}; name a time and a power, or a"
        " time, a voltage and a current, with their units",
    )


def _cells(line: str, delimiter: str) -> list[str]:
    if delimiter == " ":
        return line.split()
    return next(csv.reader([line], delimiter=delimiter, skipinitialspace=True), [])


def _rows(lines: Sequence[str], start: int, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Rows below the header with their numbers, from 1 on."""
    for number, line in enumerate(lines[start + 1 :], start=start + 2):
        if line.strip(" \t,;") and not line.lstrip().startswith("#"):
            yield number, _cells(line, delimiter)


def _readable(row: Sequence[str], columns: Columns) -> bool:
    try:
        return bool([read_number(row[column.at]) for column in columns.watts])
    except (IndexError, ValueError):
        return False


def _moment(cells: Sequence[str], columns: Columns, day: bool | None) -> tuple[float, str]:
    """See :func:`read_moment`; a unit that the column names counts, where it can be."""
    factor = columns.times[0].factor
    if factor is None or len(cells) > 1 or not re.fullmatch(r"\s*[-+\d.,eE]+\s*", cells[0]):
        return read_moment(" ".join(cells), day)
    raw = read_number(cells[0])
    seconds = raw * factor
    if seconds > _LATEST or (factor == 1e-3 and _EPOCH < raw < _LATEST):
        raise ValueError("a time that cannot be in the unit that its column names")
    return seconds, "epoch" if seconds > _EPOCH else ""


def _refuse_bad(file: Path, columns: Columns, bad: Sequence[tuple[int, str]], rows: int) -> None:
    if not bad or len(bad) <= max(rows // _BAD, int(rows >= _FEW)):
        return
    number, why = bad[0]
    if why == "not finite":
        raise EnergyError(
            "energy.log-rows", f"line {number} of {file} is not a measurement; give two or more rows of finite numbers"
        )
    wanted = " or ".join([TIME, *(f"'{column.name}'" for column in columns.watts)])
    raise EnergyError(
        "energy.log-cell",
        f"line {number} of {file} has no {wanted} that can be read{f' ({why})' if ' ' in why else ''}, as"
        f" {len(bad)} of {rows} rows; correct the line",
    )


def _watts(
    file: Path, columns: Columns, values: np.ndarray, numbers: Sequence[int], volts: float | None
) -> tuple[np.ndarray, list[str]]:
    """float64 [rows], and what was taken for granted."""
    remarks = [
        f"'{column.name}' names no unit and is taken to be in W, V or A"
        for column in columns.watts
        if column.factor is None
    ]
    scaled = values.copy()
    for at, column in enumerate(columns.watts):
        one = scaled[:, at]
        low, high = float(one.min(initial=0.0)), float(one.max(initial=0.0))
        if low < 0 and -low > 0.02 * high:
            if high > 0.02 * -low:
                number = numbers[int(np.flatnonzero(one * one[np.flatnonzero(one)[0]] < 0)[0])]
                raise EnergyError(
                    "energy.log-sign",
                    f"'{column.name}' of {file} turns its sign in line {number}, as if the device fed the meter; cut"
                    " the log to where it measures what the device takes",
                )
            scaled[:, at] = -one
            remarks.append(f"'{column.name}' is negative and is taken for what the device uses")
    if len(columns.watts) == 2 and len(scaled) and float(np.median(np.abs(scaled[:, 0]))) > _MAINS:
        raise EnergyError(
            "energy.log-apparent",
            f"{file} has voltages of mains and no power: their product with the current is the apparent power, which is"
            " more than what is used; give a meter's log of active power",
        )
    watts = np.prod(scaled, axis=1)
    if columns.kind == AMPERES and volts is not None:
        watts = watts * volts
        remarks.append(f"the supply is taken to have {volts:g} V, as stated")
    return watts, remarks


def _in_order(
    file: Path, times: np.ndarray, watts: np.ndarray, numbers: Sequence[int]
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Rows of one stamp as one, their mean. Raises EnergyError where times go back, or are too few."""
    back = np.flatnonzero(np.diff(times) < 0)
    if len(back):
        raise EnergyError(
            "energy.log-rows",
            f"line {numbers[back[0] + 1]} of {file} is earlier than the one before; give rows sorted by time",
        )
    stamps, which, counts = np.unique(times, return_inverse=True, return_counts=True)
    if len(stamps) < 2:
        raise EnergyError(
            "energy.log-rows", f"{file} is not a series of measurements; give two or more rows with times that rise"
        )
    means = np.bincount(which, weights=watts) / counts
    twice = int((counts > 1).sum())
    first = numbers[int(np.flatnonzero(counts[which] > 1)[0])] if twice else 0
    remarks = [f"{twice} times stand in several rows, first in line {first}; their means count"] if twice else []
    return stamps, means, remarks


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
            (how, *log.remarks, f"the meter's scale is taken to be right to {GAIN:.0%}"),
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
