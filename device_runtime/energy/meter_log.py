"""An external meter's log, a CSV of time and power.

A row names the columns: a time, and a power, or a voltage and a current. A column that does not say what it is does not
count (:mod:`log_columns`). Rows that cannot be read are passed over where they are few, and named.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from fedspzo.device_runtime.energy.log_columns import AMPERES, TIME, Columns, choose_columns, unit_row
from fedspzo.device_runtime.energy.log_rows import find_days, find_header, is_readable, read_row, split_rows
from fedspzo.device_runtime.energy.log_times import Unreadable, over_midnight
from fedspzo.device_runtime.errors import EnergyError

#: Of how many rows one may be bad, or of how few.
_BAD, _FEW = 50, 8
#: Times the power below which 99 % of the rows are: from here on one is named.
_STRANGE = 10.0
#: Numbers of days since 1900, as spreadsheets have dates, of 1982 to 2064, and the seconds between rows in such days.
_DAYS, _APART = (30_000.0, 60_000.0), 1e-3
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

    @property
    def outlier(self) -> str:
        """Of a power that is out of all proportion, as a clause; else ""."""
        at = int(self.watts.argmax())
        common = float(np.quantile(self.watts, 0.99))
        if not 0 < _STRANGE * common < self.watts[at]:
            return ""
        after = self.times[at] - self.times[0]
        return f"the largest power, {self.watts[at]:.4g} W, {after:.4g} s after the first row, is far above all others"


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
    start, delimiter, columns = find_header(file, lines, volts is not None)
    rows = list(split_rows(file, lines, start, delimiter))
    if rows and unit_row(rows[0][1]) and not is_readable(rows[0][1], columns):
        rows = rows[1:]
    day = find_days(rows, columns)
    times, values, numbers, since, bad = [], [], [], "", []
    for number, row in rows:
        try:
            moment, kind, read = read_row(row, columns, day, delimiter != ",")
            since = since or kind
            if kind != since:
                raise Unreadable("a time of another kind")
        except Unreadable as error:
            again = choose_columns(row, (), volts is not None)
            if isinstance(again, Columns) and again != columns:
                raise EnergyError(
                    "energy.log-headers",
                    f"line {start + 1} and line {number} of {file} name columns, and not the same; keep one header and"
                    " the rows below it",
                ) from None
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
        _refuse_days(file, moments, numbers)
    kept, strays = find_strays(moments, max(len(rows) // _BAD, int(len(rows) >= _FEW)))
    remarks += [f"line {numbers[at]} of {file.name} is out of the order of time and was passed over" for at in strays]
    numbers = [numbers[at] for at in kept]
    stamps, means, merged = _in_order(file, moments[kept], watts[kept], numbers)
    log = Log(file.name, stamps, means, since == "epoch", (*remarks, *said, *merged))
    largest = numbers[int(watts[kept].argmax())]
    return replace(log, remarks=(*log.remarks, f"{log.outlier} (line {largest})")) if log.outlier else log


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
        f"line {number} of {file} has no {wanted} that can be read ({why}), as"
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


def _refuse_days(file: Path, times: np.ndarray, numbers: Sequence[int]) -> None:
    """Raises EnergyError where numbers without a unit may be a spreadsheet's days."""
    if len(times) > 1 and (times > _DAYS[0]).all() and (times < _DAYS[1]).all() and np.median(np.diff(times)) < _APART:
        raise EnergyError(
            "energy.log-days",
            f"line {numbers[0]} of {file}: {times[0]:.10g} may be seconds, or days as a spreadsheet has dates; write it"
            " as 2026-11-30 00:53:00, or name the unit, as in Time (s)",
        )


def find_strays(times: np.ndarray, most: int) -> tuple[np.ndarray, list[int]]:
    """The rows that rise, and the single ones beside them where these are few enough; else all, and an empty list."""
    back = np.flatnonzero(np.diff(times) < 0)
    strays = []
    for at in back.tolist() if len(back) <= most else ():
        ahead = at == 0 or times[at - 1] <= times[at + 1]
        behind = at + 2 >= len(times) or times[at] <= times[at + 2]
        strays.append(at if ahead and not behind else at + 1)
    kept = np.delete(np.arange(len(times)), strays)
    return (kept, strays) if (np.diff(times[kept]) >= 0).all() else (np.arange(len(times)), [])


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
