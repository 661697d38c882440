"""How the `tokenizers` library classifies characters, and Unicode's normal forms with the fate of each character.

Properties come from ``data.tokenizer.tables``. Combining classes and decompositions are Python's, whose
later ones are left out: Unicode never changes those that a character has.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator
from functools import cache, lru_cache

from fedspzo.device_runtime.data.tokenizer.tables import LOWER, SETS
from fedspzo.device_runtime.data.tokenizer.text import Change

#: White_Space, which has not changed for long.
WHITESPACE = "\t\n\v\f\r \x85\xa0\u1680" + "".join(map(chr, range(0x2000, 0x200B))) + "\u2028\u2029\u202f\u205f\u3000"


_LETTERS = ("Lu", "Ll", "Lt", "Lm", "Lo")


def _bytes() -> list[str]:
    chars = [chr(byte) if 33 <= byte <= 126 or 161 <= byte <= 172 or byte >= 174 else "" for byte in range(256)]
    others = map(chr, range(256, 512))
    return [char or next(others) for char in chars]


#: Each byte as a printable character, as byte-level tokenizers have it.
BYTES = _bytes()


@cache
def ranges(name: str) -> list[tuple[int, int]]:
    """First and last code points of the runs of a set; "L" is all letters. Raises KeyError for an unknown set."""
    if name == "L":
        return _joined(sorted(run for kind in _LETTERS for run in ranges(kind)))
    edges, place = [], 0
    for width in SETS[name].split():
        place += int(width, 36)
        edges.append(place)
    return [(start, stop - 1) for start, stop in zip(edges[::2], edges[1::2], strict=True)]


@cache
def members(name: str) -> frozenset[str]:
    """The characters of a small set."""
    return frozenset(chr(point) for start, stop in ranges(name) for point in range(start, stop + 1))


@cache
def lower(char: str) -> str:
    """A character's lower case, without regard to what is around it."""
    return _late_lower().get(char, char.lower())


@cache
def byte_level(char: str) -> str:
    """A character's bytes, each as a printable character."""
    return "".join(BYTES[byte] for byte in char.encode())


def decomposed(chars: Iterable[str], compatible: bool) -> Iterator[Change]:
    """NFD, or NFKD: combining marks in canonical order, each with the change that it is."""
    pending: list[tuple[int, str, int]] = []
    for char in chars:
        for part, (form, order) in enumerate(_decomposition(char, compatible)):
            if not order:
                yield from _in_order(pending)
            pending.append((order, form, min(part, 1)))
    yield from _in_order(pending)


def composed(chars: Iterable[str], compatible: bool) -> Iterator[Change]:
    """NFC, or NFKC, with the change that each character is."""
    base: Change | None = None
    marks: list[Change] = []
    last: int | None = None
    for char, kind in decomposed(chars, compatible):
        order = _combining_class(char)
        if base is None:
            if order:
                yield char, kind
            else:
                base = char, kind
            continue
        joined = _composition(base[0], char) if last is None or last < order else None
        if joined:
            base = joined, base[1] + kind - 1
        elif order:
            marks.append((char, kind))
            last = order
        else:
            yield base
            yield from marks
            base, marks, last = (char, kind), [], None
    if base:
        yield base
    yield from marks


def _joined(runs: list[tuple[int, int]]) -> list[tuple[int, int]]:
    joined: list[tuple[int, int]] = []
    for start, stop in runs:
        if joined and start == joined[-1][1] + 1:
            start, _ = joined.pop()
        joined.append((start, stop))
    return joined


def _in_order(pending: list[tuple[int, str, int]]) -> Iterator[Change]:
    pending.sort(key=lambda entry: entry[0])
    yield from [(char, kind) for _, char, kind in pending]
    pending.clear()


@cache
def _decomposition(char: str, compatible: bool) -> list[tuple[str, int]]:
    known = char in members("decomposes")
    forms = unicodedata.normalize("NFKD" if compatible else "NFD", char) if known else char
    return [(form, _combining_class(form)) for form in forms]


@cache
def _combining_class(char: str) -> int:
    return unicodedata.combining(char) if char in members("combines") else 0


@lru_cache(maxsize=1 << 16)
def _composition(base: str, char: str) -> str | None:
    joined = unicodedata.normalize("NFC", base + char)
    return joined if len(joined) == 1 and joined in members("decomposes") else None


@cache
def _late_lower() -> dict[str, str]:
    points = [chr(int(number, 36)) for number in LOWER.split()]
    return dict(zip(points[::2], points[1::2], strict=True))
