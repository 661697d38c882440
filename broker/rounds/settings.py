"""What a setting of a job may be: its type, its bounds and its choices, as the field's metadata says them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import Field, field
from typing import Any

from fedspzo.device_runtime.errors import PlanError

#: Sizes are at least this; all numbers lie between the other and its negative where nothing else is said.
TINY, MOST = 1e-9, 1_000_000_000
#: A field's type, or that of its elements → the types of values that it takes, and what to call one and several.
_TYPES: Mapping[str, tuple[tuple[type, ...], str, str]] = {
    "int": ((int,), "a whole number", "a list of whole numbers"),
    "float": ((float, int), "a number", "a list of numbers"),
    "str": ((str,), "a word", "a list of words"),
    "bool": ((bool,), "true or false", "a list of true and false"),
}


def setting(default: Any, help: str, **more: Any) -> Any:
    """A field that is an option: ``least`` and ``most`` are its bounds, ``choices`` what it is one of."""
    return field(default=default, metadata={"help": help, **more})


def check_value(described: Field[Any], value: Any) -> Any:
    """A value of one of the job's fields, in the field's type.

    Raises:
        PlanError: it has another type, is out of the field's range, or none of its choices.
    """
    name, kind, known = described.name, str(described.type), described.metadata
    element = kind.removeprefix("tuple[").removesuffix(", ...]")
    types, one, several = _TYPES[element]
    values = (value,) if kind == element else value
    if not isinstance(values, (list, tuple)) or not all(
        isinstance(each, types) and isinstance(each, bool) == (element == "bool") for each in values
    ):
        raise PlanError("job.wrong-type", f"{name} is {one if kind == element else several}, not {value!r}")
    for each in values:
        if "choices" in known and each not in known["choices"]:
            choices = ", ".join(map(str, known["choices"]))
            raise PlanError("job.unknown-choice", f"{name} is one of {choices}, not {each!r}")
        least, most = known.get("least", -MOST), known.get("most", MOST)
        if element in ("int", "float") and not least <= each <= most:
            raise PlanError("job.out-of-range", f"{name} lies between {least:g} and {most:g}, not {each}")
    found = tuple(float(each) if element == "float" else each for each in values)
    return found[0] if kind == element else found
