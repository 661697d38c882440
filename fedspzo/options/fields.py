"""Options of the command line and keys of a settings file, made from the fields of a dataclass.

A field whose metadata has ``help`` is an option; ``metavar`` and ``choices`` are as in argparse. Options that are not
given leave no trace in the namespace, so that what was given wins over whatever else sets a field.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator
from dataclasses import MISSING, Field, dataclass, fields
from pathlib import Path
from typing import Any

#: A field's type, or that of its elements → what reads it, and what it is called.
_READERS: dict[str, tuple[Callable[[str], Any], str]] = {
    "int": (int, "a whole number"),
    "float": (float, "a number"),
    "str": (str, "a text"),
    "Path": (Path, "a path"),
}


@dataclass(frozen=True)
class Described:
    """An option, for the reference.

    Attributes:
        name: of the field, and of the key in a file.
        flag: on the command line.
        type: as it is written in the source.
        default: as it is typed; "" for none.
        help: what it says.
    """

    name: str
    flag: str
    type: str
    default: str
    help: str


def reference(settings: type[Any]) -> list[Described]:
    """All options of a dataclass, in order."""
    return [
        Described(own.name, _flag(own), str(own.type), _show(own.default), own.metadata["help"])
        for own in _options(settings)
    ]


def add_options(
    parser: argparse._ActionsContainer, settings: type[Any], only: Iterable[str] | None = None, **defaults: Any
) -> None:
    """Add the options of a dataclass, or those that are named; ``defaults`` are named where they differ."""
    for own in _options(settings):
        if only is None or own.name in only:
            help, default = own.metadata["help"], _show(defaults.get(own.name, own.default))
            if default and "(default: " not in help:
                help = f"{help} ({default})"
            more: dict[str, Any] = {"action": "store_true"}
            if own.type != "bool":
                more = {"type": _reader(str(own.type)), "metavar": own.metadata.get("metavar")}
                if "choices" in own.metadata and not str(own.type).startswith("tuple"):
                    more = {"type": more["type"], "choices": tuple(own.metadata["choices"])}
            parser.add_argument(_flag(own), default=argparse.SUPPRESS, help=help.replace("%", "%%"), **more)


def given(options: argparse.Namespace, settings: type[Any], only: Iterable[str] | None = None) -> dict[str, Any]:
    """The fields of a dataclass, or those of them that are named, that were given."""
    names = [own.name for own in _options(settings) if only is None or own.name in only]
    return {name: getattr(options, name) for name in names if hasattr(options, name)}


def _options(settings: type[Any]) -> Iterator[Field[Any]]:
    return (own for own in fields(settings) if "help" in own.metadata)


def _flag(own: Field[Any]) -> str:
    return f"--{own.name.replace('_', '-')}"


def _show(default: Any) -> str:
    """A default as it is typed; "" where it need not be shown."""
    if default is MISSING or default is None or default is False or default == ():
        return ""
    if isinstance(default, tuple):
        return ",".join(map(_show, default))
    return f"{default:g}" if isinstance(default, float) else str(default)


def _reader(kind: str) -> Callable[[str], Any]:
    """What reads a type's values from a word of the command line; those of a tuple are separated by commas."""
    read, called = _READERS[kind.removeprefix("tuple[").removesuffix(", ...]").removesuffix(" | None")]
    several = kind.startswith("tuple[")

    def convert(word: str) -> Any:
        try:
            return tuple(read(each.strip()) for each in word.split(",") if each) if several else read(word)
        except ValueError:
            wanted = f"{called}, or several separated by commas" if several else called
            raise argparse.ArgumentTypeError(f"it is {wanted}, not '{word}'") from None

    return convert
