"""Raw readings and joules step by step as tables on disk: CSV, or Parquet where pyarrow is installed."""

from __future__ import annotations

import csv
import importlib.util
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from fedspzo.device_runtime.energy.figures import NORMAL
from fedspzo.device_runtime.energy.meter import Account
from fedspzo.device_runtime.energy.source import COUNTER
from fedspzo.device_runtime.errors import EnergyError

#: Column → its cells.
Table = Mapping[str, Sequence[float | None]]


def readings_table(account: Account) -> Table:
    """The time in s, what was read in J or W, and the seconds of each phase since the reading before."""
    readings = account.readings
    unit = "joules" if account.facts.kind == COUNTER else "watts"
    values = [float(value) if np.isfinite(value) else None for value in readings.values]
    phases = {f"{phase} (s)": spent.tolist() for phase, spent in readings.seconds.items()}
    return {"time (s)": readings.times.tolist(), unit: values, **phases}


def series_table(account: Account, bounds: Sequence[tuple[float, float]], losses: Sequence[float]) -> Table:
    """Each step's times in s, loss, and joules with the idle power and above it, by readings between which it lies.

    A step that is shorter than the source takes to show it, or more uncertain than it is large, has no joules. An
    estimate has no interval, and is called one.
    """
    readings, idle = account.readings, account.idle.watts
    known = np.isfinite(readings.values)
    times, values = readings.times[known], readings.values[known]
    steps = np.diff(times)
    used = values if account.facts.kind == COUNTER else np.concatenate(
        [[0.0], np.cumsum((values[1:] + values[:-1]) / 2 * steps)]
    )  # fmt: skip
    pace, poll = account.pace, float(np.median(steps)) if len(steps) else np.inf
    shows = 2 * pace.period + pace.most + poll
    if account.facts.gauge:
        times = times - (pace.period + pace.least + pace.most) / 2  # by which it is behind
    rows: list[tuple[float | None, float | None, float | None]] = []
    for begin, end in bounds:
        if not end - begin >= shows:
            rows.append((None, None, None))
            continue
        gross = float(np.interp(end, times, used) - np.interp(begin, times, used))
        above = None if idle is None else gross - idle * (end - begin)
        width = None if above is None or not account.facts.measured else _half_width(account, above, end - begin)
        vague = above is not None and width is not None and not width <= abs(above)
        rows.append((None, None, None) if vague else (gross, above, width))
    word = "" if account.facts.measured else " by ESTIMATE"
    return {
        "step": [float(number) for number in range(1, len(bounds) + 1)],
        "begin (s)": [begin for begin, _ in bounds],
        "end (s)": [end for _, end in bounds],
        "loss": list(losses),
        f"joules with idle{word}": [gross for gross, _, _ in rows],
        f"joules above idle{word}": [above for _, above, _ in rows],
        "half of its 95 % interval": [width for _, _, width in rows],
    }


def _half_width(account: Account, joules: float, seconds: float) -> float:
    """Of a step's joules: both its ends by rounding and by how far behind the readings may be, what power does between
    readings, the idle power's, and the scale's."""
    readings, facts, pace = account.readings, account.facts, account.pace
    poll = float(np.median(np.diff(readings.times)))
    above = joules / seconds
    behind = (above + (account.idle.watts or 0.0)) * (pace.period + pace.most - pace.least)
    late = math.hypot(behind, above * poll)  # between two readings power is at idle or more
    ends = math.sqrt(2 / 12) * (math.hypot(facts.resolution, late) if facts.kind == COUNTER else late)
    between = 0.0
    if facts.kind != COUNTER:
        each = max(pace.period, poll)
        between = float(np.sqrt(np.nanmean(np.diff(readings.values) ** 2) / 2 * seconds * each))
        between = math.hypot(between, facts.resolution / math.sqrt(12) * seconds)
    idle = (account.idle.half_width or 0.0) * seconds
    return math.hypot(NORMAL * ends, NORMAL * between, idle, NORMAL * facts.gain * joules)


def check_table(file: Path) -> None:
    """Raises EnergyError when a table cannot be written in the form that its name asks for."""
    if file.suffix not in (".csv", ".parquet"):
        raise EnergyError("option.table-form", f"{file} is neither .csv nor .parquet; give a name that ends so")
    if file.suffix == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise EnergyError(
            "option.no-pyarrow", f"{file} needs pyarrow, which is not installed; install it, or give a .csv"
        )


def check_place(file: Path) -> None:
    """Raises EnergyError when no file can be written there."""
    place = file if file.exists() else file.parent
    if file.is_dir() or not file.parent.is_dir() or not os.access(place, os.W_OK):
        why = "it is a folder" if file.is_dir() else "its folder is missing, or may not be written to"
        raise EnergyError("option.unwritable", f"{file} cannot be written ({why}); give another path")


def write_table(file: Path, table: Table) -> None:
    """Write it as its name says. Raises EnergyError when it cannot be written."""
    check_table(file)
    try:
        if file.suffix == ".parquet":
            import pyarrow
            import pyarrow.parquet

            pyarrow.parquet.write_table(pyarrow.table(dict(table)), file)
            return
        with file.open("w", encoding="utf-8", newline="") as out:
            writer = csv.writer(out)
            writer.writerow(table)
            writer.writerows(
                ["" if cell is None else cell for cell in row] for row in zip(*table.values(), strict=True)
            )
    except OSError as error:
        raise EnergyError(
            "energy.table-unwritable",
            f"{file} cannot be written ({error.strerror}); make room, or choose another folder",
        ) from None
