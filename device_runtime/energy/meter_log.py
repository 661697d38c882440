"""An external meter's log, a CSV of time and power.

A row names the columns: a time, and a power, or a voltage and a current. A column that does not say what it is does not
count (:mod:`log_columns`). Rows that cannot be read are passed over where they are few, and named.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedspzo.device_runtime.energy.log_columns import AMPERES, TIME, Columns, choose_columns, unit_row
from fedspzo.device_runtime.energy.log_times import day_first, over_midnight, read_moment, read_number
from fedspzo.device_runtime.errors import EnergyError

#: Lines in which the header is looked for; of how many rows one may be bad, or of how few.
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
    def period(self) -> float:
        """Seconds between rows, their median."""
        return float(np.median(np.diff(self.times)))

    @property
    def resolution(self) -> float:
        """W: the least difference between rows that differ, or less where all rows are whole multiples of less."""
        steps = np.abs(np.diff(self.watts))
        parts = int(np.gcd.reduce(np.round(np.abs(self.watts) * 1e6).astype(np.int64)))
        return min(float(steps[steps > 0].min()), parts / 1e6) if steps.any() else 0.0


def read_log(file: Path, volts: float | None = None) -> Log:
    """A meter's log.

    Args:
        volts: the supply's, for a log that has a current alone.

    Raises:
        EnergyError: the file is no log, or does not say what it measured, and the sentence names the line; or the
            ``volts`` are not those of a supply of direct current.
    """
    if volts is not None:
        _check_volts(volts)
    lines = _read_lines(file)
    start, delimiter, columns = _find_header(file, lines, volts is not None)
    rows = list(_rows(file, lines, start, delimiter))
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


def check_log(file: Path, volts: float | None, later: bool) -> None:
    """Whether a log that grows can be read when the time has come.

    Args:
        later: it may be missing for now, as what was done when is kept.

    Raises:
        EnergyError: it is missing or cannot be read; or ``volts`` are not those of a supply of direct current.
    """
    if volts is not None:
        _check_volts(volts)
    if file.exists() or not later:
        _read_lines(file, "give a log that can be read, or --timeline, and the log afterwards to energy report")


def _check_volts(volts: float) -> None:
    if not 0 < volts < np.inf:
        raise EnergyError("option.volts", f"--volts is {volts:g}; give the supply's voltage, such as 5")
    if volts > _MAINS:
        raise EnergyError(
            "option.volts-of-mains",
            f"--volts {volts:g} is of mains: its product with the current is the apparent power, which is more than"
            " what is used; give a meter's log of active power",
        )


def _read_lines(file: Path, cure: str = "check the path") -> list[str]:
    try:
        raw = file.read_bytes()
    except OSError as error:
        raise EnergyError("energy.log-unreadable", f"{file} cannot be read ({error}); {cure}") from None
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
            names = _cells(file, number + 1, line, delimiter)
            below = _cells(file, number + 2, lines[number + 1], delimiter) if number + 1 < len(lines) else []
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


def _cells(file: Path, number: int, line: str, delimiter: str) -> list[str]:
    if delimiter == " ":
        return line.split()
    try:
        return next(csv.reader([line], delimiter=delimiter, skipinitialspace=True), [])
    except csv.Error as error:
        raise EnergyError(
            "energy.log-line", f"line {number} of {file} is not of a CSV ({error}); correct the line"
        ) from None


def _rows(file: Path, lines: Sequence[str], start: int, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Rows below the header with their numbers, from 1 on."""
    for number, line in enumerate(lines[start + 1 :], start=start + 2):
        if line.strip(" \t,;") and not line.lstrip().startswith("#"):
            yield number, _cells(file, number, line, delimiter)


def _readable(row: Sequence[str], columns: Columns) -> bool:
    try:
        return bool([read_number(row[column.at]) for column in columns.watts])
    except (IndexError, ValueError):
        return False


def _moment(cells: Sequence[str], columns: Columns, day: bool | None) -> tuple[float, str]:
    """See :func:`read_moment`; a unit that the column names counts, where it can be."""
    factor = columns.times[0].factor
    if factor is None or len(cells) > 1 or not re.fullmatch(r"\s*[-+\d.,eE]+\s*", cells[0]):
        return read_moment(" ".join(cells), day, columns.zone)
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
