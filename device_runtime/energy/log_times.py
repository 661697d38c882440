"""Moments as meters write them: seconds and their parts since the epoch or a start, dates, and times of the day."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone

import numpy as np

#: Numbers since the epoch: from here on they are s, ms, µs and ns; and seconds after which none is.
_EPOCHS = ((1e17, 1e-9), (1e14, 1e-6), (1e11, 1e-3), (1e8, 1.0))
_LATEST = 4e9
_CLOCK = re.compile(r"^(?:(\d+)\s*[d.]\s*)?(\d{1,3}):(\d{2})(?::(\d{2}(?:[.,]\d+)?))?\s*([AaPp])?\.?[Mm]?\.?$")
_DATE = re.compile(r"^(\d{1,2})([/.-])(\d{1,2})\2(\d{4}|\d{2})$")
_DAY = 86400.0


class Unreadable(ValueError):
    """A cell that cannot be read, with why, as a clause for people."""


def read_number(cell: str) -> float:
    """A number with a decimal point or comma. Raises Unreadable where it is not a number, or may mark thousands."""
    text = cell.strip()
    if not re.fullmatch(r"[+-]?(\d+([.,]\d*)?|[.,]\d+)([eE][+-]?\d+)?|[+-]?(nan|inf(inity)?)", text, re.IGNORECASE):
        raise Unreadable(f"'{text}' is no number")
    return float(text.replace(",", "."))


def day_first(cells: Sequence[str]) -> bool | None:
    """Whether dates such as 14/11/2023 begin with the day; None where all of them may begin with either."""
    first = second = 0
    said: bool | None = None
    for cell in cells:
        if match := _DATE.match(cell.strip().split(" ")[0].split("T")[0]):
            first, second = max(first, int(match[1])), max(second, int(match[3]))
            said = True if match[2] == "." else said
        if re.search(r"\d\s*[AaPp]\.?[Mm]", cell) and _DATE.match(cell.strip().split(" ")[0]):
            said = False if said is None else said
    if first > 12 or second > 12:
        return first > 12
    return said


def read_zone(text: str | None) -> timezone:
    """By its hours, and perhaps minutes, from UTC, such as +1 or -0330."""
    match = re.fullmatch(r"([+-])(\d{1,2}):?(\d\d)?", text or "+0")
    if match is None:
        raise ValueError(text)
    return timezone((1 if match[1] == "+" else -1) * timedelta(hours=int(match[2]), minutes=int(match[3] or 0)))


def read_moment(cell: str, day: bool | None, zone: timezone | None = None) -> tuple[float, str]:
    """A moment in s, and what it is since: "epoch", "midnight", or "" for an unknown start in a unit to be applied.

    Args:
        cell: the text.
        day: whether dates begin with the day; None where they may begin with either.
        zone: of dates that name none; None for the device's.

    Raises:
        Unreadable: it is no moment, or one that may be read in two ways.
    """
    try:
        return _read_moment(cell.strip(), day, zone)
    except Unreadable:
        raise
    except (ValueError, OverflowError):
        raise Unreadable(f"'{cell.strip()}' is no time in a form that is known") from None


def _read_moment(text: str, day: bool | None, zone: timezone | None) -> tuple[float, str]:
    try:
        number = read_number(text)
    except ValueError:
        pass
    else:
        factor = next((factor for least, factor in _EPOCHS if number >= least), None)
        if factor and number * factor > _LATEST:
            raise Unreadable(f"'{text}' is no time since 1970; write it as 2026-11-30 00:53:00")
        return (number * factor, "epoch") if factor else (number, "")
    if re.fullmatch(r"\d+:\d\d", text):
        raise Unreadable(f"'{text}' may be hours and minutes, or minutes and seconds; write all three")
    if (clock := _clock(text)) is not None:
        return clock, "midnight"
    head, _, rest = text.replace("T", " ", 1).partition(" ")
    if match := _DATE.match(head):
        if day is None:
            raise Unreadable(f"'{head}' may begin with the day or the month")
        one, two, year = int(match[1]), int(match[3]), int(match[4])
        date = datetime(year + 2000 * (year < 100), two if day else one, one if day else two)
        if year < 100 and date > datetime.now() + timedelta(days=1):
            raise Unreadable(f"'{head}' may begin with the year; write it with four digits")
        seconds = _clock(rest.strip()) if rest.strip() else 0.0
        if seconds is None:
            raise ValueError(text)
        return _in_zone(date + timedelta(seconds=seconds), zone).timestamp(), "epoch"
    plain = re.sub(r"(\d),(\d)", r"\1.\2", text.replace("/", "-")).replace("Z", "+00:00").replace(" UTC", "+00:00")
    plain = re.sub(r"(\.\d{6})\d+", r"\1", plain)
    plain = re.sub(r"\.(\d{1,5})(?!\d)", lambda m: "." + m[1].ljust(6, "0"), plain)
    moment = datetime.fromisoformat(re.sub(r"\s+([+-]\d\d:?\d\d)$", r"\1", plain))
    return _in_zone(moment, zone).timestamp(), "epoch"


def _in_zone(moment: datetime, zone: timezone | None) -> datetime:
    if moment.tzinfo:
        return moment
    return moment.replace(tzinfo=zone) if zone else moment.astimezone()


def over_midnight(times: np.ndarray) -> np.ndarray:
    """Times of the day, past midnight too, as seconds that rise."""
    wraps = np.concatenate([[0], np.cumsum(np.diff(times) < -_DAY / 2)])
    return times + _DAY * wraps


def _clock(text: str) -> float | None:
    """Seconds since midnight or since a start; None where it is no such time."""
    match = _CLOCK.match(text)
    if match is None:
        return None
    days, hours, minutes, seconds, half = match.groups()
    hour = int(hours)
    if half:
        hour = hour % 12 + 12 * (half in "pP")
    rest = float(seconds.replace(",", ".")) if seconds else 0.0
    if int(minutes) > 59 or rest >= 61:
        return None
    return _DAY * int(days or 0) + 3600.0 * hour + 60.0 * int(minutes) + rest
