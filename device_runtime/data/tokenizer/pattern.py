"""Where a pattern matches: Oniguruma's regular expressions, as tokenizer.json has them, put into Python's.

Classes such as ``\\p{L}`` become ranges of the code points that the `tokenizers` library has in them. What does not
mean the same in both languages is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache

from fedspzo.device_runtime.data.tokenizer.spec import Spec, unsupported
from fedspzo.device_runtime.data.tokenizer.text import Match
from fedspzo.device_runtime.data.tokenizer.unicode import WHITESPACE, ranges

#: Stretches of some characters, in order and without gaps.
Pattern = Callable[[str], list[Match]]

#: White space, and general categories.
CLASSES = ("s", "L", "Lu", "Ll", "Lt", "Lm", "Lo", "M", "N", "Nd")

_TOKEN = re.compile(
    r"""(?P<property>\\[pP]\{\^?\w+\}) | (?P<class>\\[sSdD]) | (?P<escape>\\[rntvf\\\W_]) | (?P<open>\[\^?)
    | (?P<close>\]) | (?P<group>\(\?(?:i?:|<?[=!]|>)|\((?!\?)|\)) | (?P<repeat>\{\d+,?\d*\}|\{,\d+\}|[?*+]) | (?P<or>\|)
    | (?P<anchor>[.^$(&\\]) | (?P<char>.)""",
    re.VERBOSE | re.DOTALL,
)


def pattern(spec: Spec) -> Pattern:
    """The pattern that a JSON object ``{"String": …}`` or ``{"Regex": …}`` describes."""
    return matches(re.escape(spec["String"]) if "String" in spec else translated(spec["Regex"]))


def matches(expression: str) -> Pattern:
    """The stretches that a regular expression of Python's matches, and those between them."""
    try:
        finder = re.compile(expression).finditer
    except re.error as error:
        raise unsupported(f"a pattern that this Python does not compile ({error})") from None

    def find(chars: str) -> list[Match]:
        found, place = [], 0
        for match in finder(chars):
            start, stop = match.span()
            if place < start:
                found.append((place, start, False))
            found.append((start, stop, True))
            place = stop
        if place < len(chars):
            found.append((place, len(chars), False))
        return found

    return find


@cache
def in_brackets(name: str, inverse: bool = False) -> str:
    """A set of code points for use between brackets: a general category, or another of the tables' sets."""
    runs = [(ord(char), ord(char)) for char in sorted(WHITESPACE)] if name == "s" else ranges(name)
    if inverse:
        edges = [-1, *(edge for run in runs for edge in run), 0x110000]
        runs = [(a + 1, b - 1) for a, b in zip(edges[::2], edges[1::2], strict=True) if a + 1 < b]
    return "".join(f"\\U{start:08x}-\\U{stop:08x}" for start, stop in runs)


@cache
def translated(expression: str) -> str:
    """A regular expression of Oniguruma's in Python's language.

    Raises:
        BundleError: it has something that is not known to mean the same.
    """
    parts: list[str] = []
    inside = False
    for token in _TOKEN.finditer(expression):
        kind, part = str(token.lastgroup), token.group()
        if kind in ("property", "class"):
            name = part[2:].strip("{^}") or {"s": "s", "d": "Nd"}[part[1].lower()]
            if name not in CLASSES:
                raise unsupported(f"the class '{part}' in a pattern")
            part = in_brackets(name, part[1].isupper() != ("^" in part))
            parts.append(part if inside else f"[{part}]")
        elif kind == "open":
            if inside:
                raise unsupported(f"the pattern '{expression}' with brackets in brackets")
            inside = True
            parts.append(part)
        elif kind == "close":
            inside = False
            parts.append(part)
        elif inside and kind not in ("char", "escape"):
            if part == "&":
                raise unsupported(f"the pattern '{expression}' with '&' in brackets")
            parts.append("".join("\\" + char for char in part))
        elif kind == "anchor" and part != "&":
            raise unsupported(f"the pattern '{expression}' with '{part}'")
        elif kind == "repeat" and part == "+" and parts[-1].endswith("}"):
            raise unsupported(f"the pattern '{expression}' with a repeated repetition")
        else:
            parts.append(part)
    return "".join(parts)
