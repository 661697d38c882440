"""Which columns of a meter's log are the time and the power: by their names and units, and by nothing else."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timezone

from fedspzo.device_runtime.energy.log_times import Unreadable, read_number, read_zone

TIME, WATTS, VOLTS, AMPERES = "time", "power", "voltage", "current"
#: What columns of a kind are called, word by word; the unit alone will do.
_NAMES = {
    TIME: {"time", "timestamp", "datetime", "date", "elapsed", "t", "ts", "seconds", "sec", "millis", "epoch", "clock"},
    WATTS: {"power", "powers", "wattage", "p"},
    VOLTS: {"voltage", "voltages", "vbus", "u"},
    AMPERES: {"current", "currents", "amperage", "ibus", "i"},
}  # fmt: skip
#: Words that tell the kind before any unit does.
_STEMS = {
    TIME: r"(date|up|run)?time(stamp)?s?", WATTS: r"powers?", VOLTS: r"(milli|micro|kilo)?volt(s|age|ages)?",
    AMPERES: r"currents?",
}  # fmt: skip
#: All other words that a power, a voltage or a current may have beside it, and be what the device takes at the moment.
_BESIDE = {
    "active", "real", "input", "output", "in", "out", "main", "total", "bus", "usb", "dc", "consumption", "draw",
    "channel", "inst", "instant", "instantaneous", "measured",
}  # fmt: skip
#: Words that make a time something else than a moment.
_NO_MOMENT = {
    "on", "off", "zone", "duration", "remaining", "max", "peak", "avg", "average", "mean", "energy", "charge",
    "capacity", "cost", "price", "set", "setpoint", "target", "status", "state", "level", "error", "limit",
    "frequency", "temp", "temperature", "percent", "today", "total", "ticks", "samples", "d", "days", "cs",
}  # fmt: skip
_BRACKETS = re.compile(r"[(\[{]([^)\]}]*)[)\]}]")
_PREFIXES = {"": 1.0, "n": 1e-9, "µ": 1e-6, "m": 1e-3, "k": 1e3}
_BASES = {WATTS: ("w", "watt"), VOLTS: ("v", "volt"), AMPERES: ("a", "amp", "ampere")}
_WORDS = {"milli": 1e-3, "micro": 1e-6, "nano": 1e-9, "kilo": 1e3}
_TIMES = {"s": 1.0, "sec": 1.0, "seconds": 1.0, "ms": 1e-3, "milliseconds": 1e-3, "millis": 1e-3, "µs": 1e-6,
    "microseconds": 1e-6, "ns": 1e-9, "nanoseconds": 1e-9,
    "min": 60.0, "minutes": 60.0, "h": 3600.0, "hours": 3600.0,
}  # fmt: skip
#: How a time is written, as in (YYYY-MM-DD HH:MM:SS) or (local time); and a zone in a column's name.
_FORM = re.compile(
    r"[ymdhsf]+([-:./ T,]+[ymdhsfap]+)+|iso( ?8601)?|(unix )?epoch|unix( time)?|local( time)?|elapsed|relative|24 ?h",
    re.IGNORECASE,
)
_ZONE = re.compile(r"(?<![a-z])(?:utc|gmt)(?![a-z])\s*([+-][01]?\d(?::?[0-5]\d)?)?", re.IGNORECASE)


@dataclass(frozen=True)
class Column:
    """A column.

    Attributes:
        at: its number.
        name: as the header has it.
        kind: of what it is.
        factor: to s, W, V or A; None where it names no unit.
    """

    at: int
    name: str
    kind: str
    factor: float | None

    def read(self, cell: str, commas: bool) -> float:
        """A cell's value in s, W, V or A; it may name a unit of its own.

        Args:
            commas: whether decimals may be marked by a comma.

        Raises:
            Unreadable: it is not a number, or not in a unit of the kind.
        """
        match = re.fullmatch(r"\s*([-+\d.,]+(?:[eE][-+]?\d+)?)\s*([a-zA-Zµμ]*)\s*", cell)
        number, unit = match.groups() if match else (cell, "")
        if "," in number and not commas:
            raise Unreadable(f"'{cell}' has a comma in a number")
        value = read_number(number)
        factor = scale(self.kind, _plain(unit)) if unit else self.factor
        if unit and factor is None:
            raise Unreadable(f"'{cell}' is in another unit")
        return value * (1.0 if factor is None else factor)


@dataclass(frozen=True)
class Columns:
    """The columns that count.

    Attributes:
        times: one, or the date's and the clock's.
        watts: whose product is the power, or a current alone.
        kind: of the first of ``watts``.
        refused: why others that were named so do not count, as clauses.
    """

    times: tuple[Column, ...]
    watts: tuple[Column, ...]
    kind: str
    refused: tuple[str, ...]

    @property
    def zone(self) -> timezone | None:
        """Of dates that name none, as a column of the time names it."""
        zones = (match for column in self.times if (match := _ZONE.search(column.name)))
        return next((read_zone(match[1]) for match in zones), None)


def choose_columns(names: Sequence[str], units: Sequence[str], volts: bool) -> Columns | str:
    """What counts of a header, or why it does not name what is needed, as a clause.

    Args:
        names: as the header has them.
        units: as a row below it has them; empty without such a row.
        volts: whether the voltage is known, so that a current is enough.
    """
    found: dict[str, list[Column]] = {kind: [] for kind in _NAMES}
    refused: list[tuple[str, str]] = []
    for at, name in enumerate(names):
        kind, why = _classify(name)
        if not kind:
            continue
        unit = units[at].strip() if at < len(units) else ""
        factor = None if why else _factor(kind, name, unit)
        if isinstance(factor, str):
            why = factor
        if why:
            refused.append((kind, f"'{name.strip()}' {why}"))
        elif not isinstance(factor, str):
            found[kind].append(Column(at, name.strip(), kind, factor))
    times = _pick_times(found[TIME])
    if isinstance(times, str):
        return times
    if not times:
        return _none_usable("time", [clause for kind, clause in refused if kind == TIME])
    for wanted in ((WATTS,), (VOLTS, AMPERES), (AMPERES,)):
        if wanted == (AMPERES,) and not volts:
            continue
        if all(found[kind] for kind in wanted):
            for kind in wanted:  # one that names its unit is surer than one that does not
                found[kind] = [column for column in found[kind] if column.factor is not None] or found[kind]
            twice = next((kind for kind in wanted if len(found[kind]) > 1), None)
            if twice:
                several = " and ".join(f"'{column.name}'" for column in found[twice])
                return f"it has more than one {twice} ({several}); keep one of them"
            return Columns(
                times, tuple(found[kind][0] for kind in wanted), wanted[0], tuple(clause for _, clause in refused)
            )
    if found[AMPERES]:
        return "it has a current and no voltage; give the supply's with --volts"
    return _none_usable("power", [clause for kind, clause in refused if kind != TIME])


def _none_usable(what: str, refused: Sequence[str]) -> str:
    return f"it has no {what} that can be used ({'; '.join(refused)})" if refused else f"it names no {what}"


def unit_row(cells: Sequence[str]) -> bool:
    """Whether cells are units, as in a row below a header."""
    known = {"", *_TIMES, *(prefix + base for prefix in _PREFIXES for bases in _BASES.values() for base in bases)}
    plain = [_plain(cell).strip("()[] ").lower() for cell in cells]
    return any(plain) and all(cell in known or cell in ("wh", "mwh", "mah", "ah", "°c", "c", "ω") for cell in plain)


def _words(text: str) -> list[str]:
    """Of a name without its brackets, and without numbers."""
    bare = _BRACKETS.sub(" ", _plain(text)).replace("%", " percent ")
    bare = re.sub(r"(?<=[a-z]{3})(?=[A-Z])|(?<=[A-Za-z])-(?=[A-Za-z])", " ", bare)  # powerLevel, but not mA or kWh
    return [word for word in re.split(r"[^a-zA-Zµ0-9+-]+", bare) if not re.fullmatch(r"[+-]?\d*", word)]


def _classify(name: str) -> tuple[str, str]:
    """What a column is of, and why it is something else after all; two empty texts where it is nothing of interest."""
    words = _words(name)
    lower = [word.lower() for word in words]
    if lower == ["t"] and name.strip().startswith("T"):
        return "", ""  # a temperature
    compound = [kind for kind, stem in _STEMS.items() if any(re.fullmatch(stem, word) for word in lower)]
    kinds = [kind for kind in _NAMES if any(word in _NAMES[kind] or _is_unit(kind, word) for word in lower)]
    kind = (compound or kinds or [""])[0]
    if kind in ("", TIME):
        return ("" if _NO_MOMENT & set(lower) else kind), ""
    strange = next((word for word in words if not _belongs(kind, word)), "")
    return kind, f"may be no {kind} of the moment ('{strange}')" if strange else ""


def _belongs(kind: str, word: str) -> bool:
    """Whether a word beside others says nothing but the kind, its unit, or where it is measured."""
    lower = word.lower()
    named = lower in _NAMES[kind] or re.fullmatch(_STEMS[kind], lower) or scale(kind, word) is not None
    return bool(named) or _says_where(lower) or lower == ("current" if kind == WATTS else "supply")


def _says_where(word: str) -> bool:
    return word in _BESIDE or bool(re.fullmatch(r"ch\d*", word))


def _is_unit(kind: str, word: str) -> bool:
    return kind != TIME and scale(kind, word) is not None


def _factor(kind: str, name: str, unit: str) -> float | str | None:
    """To SI units; None where no unit is named; a clause where the unit is not the kind's."""
    said = [part.strip() for part in _BRACKETS.findall(_plain(name)) if part.strip()]
    said += [_plain(unit).strip("()[] ")] if unit and not said else []
    for part in said:
        form = kind == TIME and (_FORM.fullmatch(part) or _ZONE.fullmatch(part))
        beside = kind != TIME and all(_says_where(word) for word in part.lower().split())
        if scale(kind, part) is None and not form and not beside:
            return f"is in '{part}'"
    factors = {scale(kind, part): part for part in (*said, *_words(name))}
    factors.pop(None, None)
    if len(factors) > 1:
        return f"is in {' and '.join(repr(part) for part in factors.values())}"
    return next(iter(factors), None)


def scale(kind: str, unit: str) -> float | None:
    """The factor of a unit; None where it is not one of the kind."""
    if kind == TIME:
        return _TIMES.get(unit.lower().replace("us", "µs") if unit.lower() == "us" else unit.lower())
    lower = unit.lower()
    for word, factor in _WORDS.items():
        if lower.startswith(word):
            return factor if lower[len(word) :].rstrip("s") in _BASES[kind] else None
    if unit.startswith("M"):
        return None  # milli in capitals, or mega
    for prefix, factor in _PREFIXES.items():
        bases: Mapping[str, Sequence[str]] = _BASES
        for candidate in {prefix, "u" if prefix == "µ" else prefix}:
            if lower.startswith(candidate) and lower[len(candidate) :].rstrip("s") in bases[kind]:
                return factor
    return None


def _pick_times(columns: Sequence[Column]) -> tuple[Column, ...] | str:
    dates = [column for column in columns if re.match(r"\W*date\b(?!.*time)", _plain(column.name).lower())]
    clocks = [column for column in columns if column not in dates]
    if len(dates) == 1 and len(clocks) == 1 and re.match(r"\W*(time|clock)\b", clocks[0].name.lower()):
        return dates[0], clocks[0]
    if len(columns) > 1:
        exact = [c for c in columns if re.search(r"epoch|unix|timestamp|datetime", c.name.lower())]
        if len(exact) == 1:
            return tuple(exact)
        several = " and ".join(f"'{column.name}'" for column in columns)
        return f"it has more than one time ({several}); keep one of them"
    return tuple(columns)


def _plain(text: str) -> str:
    return text.strip("# \t\"'").replace("μ", "µ").replace("us)", "µs)").replace("us]", "µs]")
