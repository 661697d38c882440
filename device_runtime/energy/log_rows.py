"""Lines of a meter's log: the header among what stands above it, and what a row below it says."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from fedspzo.device_runtime.energy.log_columns import Columns, choose_columns, unit_row
from fedspzo.device_runtime.energy.log_times import Unreadable, day_first, read_moment, read_number
from fedspzo.device_runtime.errors import EnergyError

#: Lines in which the header is looked for.
_PREAMBLE = 60
#: Seconds since the epoch are between these.
_EPOCH, _LATEST = 1e9, 4e9


def find_header(file: Path, lines: Sequence[str], volts: bool) -> tuple[int, str, Columns]:
    """The last line above the first row of numbers that names columns: its number from 0 on, what separates cells, and
    its columns. It has as many cells as that row."""
    header: tuple[int, str, Columns, int] | None = None
    reason = ""
    for number, line in enumerate(lines[:_PREAMBLE]):
        if header is not None:
            at, delimiter, columns, width = header
            row = split_cells(file, number + 1, line, delimiter)
            if _is_row(row, columns, delimiter):
                if width not in (len(row), _width(row)):
                    reason = (
                        f"line {at + 1} names columns, and has {width} cells and line {number + 1} has {_width(row)}"
                    )
                    raise _no_header(file, reason)
                return at, delimiter, columns
        for delimiter in [mark for mark in ";\t," if mark in line.strip()] or [" "]:
            names = split_cells(file, number + 1, line, delimiter)
            below = split_cells(file, number + 2, lines[number + 1], delimiter) if number + 1 < len(lines) else []
            found = choose_columns(names, below if unit_row(below) else (), volts)
            if isinstance(found, Columns):
                header = number, delimiter, found, len(names) if len(names) == len(below) else _width(names)
                break
            if "names no time" not in found and "names no power" not in found:
                reason = reason or f"line {number + 1}: {found}"
    if header is not None:
        return header[:3]
    if not any(line.strip() for line in lines):
        raise EnergyError("energy.log-empty", f"{file} is empty; let the meter write to it, or give another")
    raise _no_header(file, reason)


def _no_header(file: Path, reason: str) -> EnergyError:
    return EnergyError(
        "energy.log-header",
        f"{file} has no header that names its columns{f' ({reason})' if reason else ''}; name a time and a power, or a"
        " time, a voltage and a current, with their units",
    )


def _width(cells: Sequence[str]) -> int:
    """How many cells there are, without empty ones at the end."""
    return max((at for at, cell in enumerate(cells, 1) if cell.strip()), default=0)


def split_cells(file: Path, number: int, line: str, delimiter: str) -> list[str]:
    """A line's cells. Raises EnergyError where it is not of a CSV."""
    if delimiter == " ":
        return line.split()
    try:
        return next(csv.reader([line], delimiter=delimiter, skipinitialspace=True), [])
    except csv.Error as error:
        raise EnergyError(
            "energy.log-line", f"line {number} of {file} is not of a CSV ({error}); correct the line"
        ) from None


def split_rows(file: Path, lines: Sequence[str], start: int, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Rows below the header with their numbers, from 1 on."""
    for number, line in enumerate(lines[start + 1 :], start=start + 2):
        if line.strip(" \t,;") and not line.lstrip().startswith("#"):
            yield number, split_cells(file, number, line, delimiter)


def is_readable(row: Sequence[str], columns: Columns) -> bool:
    """Whether its powers are numbers."""
    try:
        return bool([read_number(row[column.at]) for column in columns.watts])
    except (IndexError, Unreadable):
        return False


def _is_row(cells: Sequence[str], columns: Columns, delimiter: str) -> bool:
    """Whether these are numbers, and not names or remarks."""
    try:
        read_row(cells, columns, find_days([(0, cells)], columns), delimiter != ",")
    except Unreadable:
        return False
    return True


def find_days(rows: Sequence[tuple[int, Sequence[str]]], columns: Columns) -> bool | None:
    """Whether their dates begin with the day; None where they may begin with either."""
    return day_first([" ".join(row[c.at] for c in columns.times if c.at < len(row)) for _, row in rows])


def read_row(row: Sequence[str], columns: Columns, day: bool | None, commas: bool) -> tuple[float, str, list[float]]:
    """A row's moment, what it is since, and its values. Raises Unreadable."""
    if len(row) <= max(column.at for column in (*columns.times, *columns.watts)):
        raise Unreadable("it has too few cells")
    moment, kind = _moment([row[column.at] for column in columns.times], columns, day)
    read = [column.read(row[column.at], commas) for column in columns.watts]
    if not np.isfinite([moment, *read]).all():
        raise Unreadable("not finite")
    return moment, kind, read


def _moment(cells: Sequence[str], columns: Columns, day: bool | None) -> tuple[float, str]:
    """See :func:`read_moment`; a unit that the column names counts, where it can be."""
    factor = columns.times[0].factor
    if factor is None or len(cells) > 1 or not re.fullmatch(r"\s*[-+\d.,eE]+\s*", cells[0]):
        return read_moment(" ".join(cells), day, columns.zone)
    raw = read_number(cells[0])
    seconds = raw * factor
    if seconds > _LATEST or (factor == 1e-3 and _EPOCH < raw < _LATEST):
        raise Unreadable("a time that cannot be in the unit that its column names")
    return seconds, "epoch" if seconds > _EPOCH else ""
