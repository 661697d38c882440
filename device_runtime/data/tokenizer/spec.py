"""A part of a tokenizer.json, read field by field: what is not understood is named, never skipped."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from fedspzo.device_runtime.errors import BundleError

#: A JSON object that describes a part.
Spec = Mapping[str, Any]
T = TypeVar("T")


def read(data: bytes) -> Any:
    """The JSON of some bytes. Raises ValueError when they are not JSON."""
    return json.loads(data, parse_float=_decimal)


def _decimal(number: str) -> float:
    """A number with a point, rounded twice as serde_json does: the last bit decides between equally likely tokens."""
    digits, _, power = number.lower().partition("e")
    whole, _, fraction = digits.lstrip("-").partition(".")
    significand, exponent = int(whole), int(power or 0)
    for digit in fraction:
        longer = significand * 10 + int(digit)
        if longer >= 1 << 64:
            break
        significand, exponent = longer, exponent - 1
    power_of_ten = float(f"1e{abs(exponent)}")
    size = float(significand) / power_of_ten if exponent < 0 else float(significand) * power_of_ten
    return -size if number.startswith("-") else size


def build(spec: Spec, role: str, kinds: Mapping[str, Callable[[Spec], T]]) -> T:
    """The part that a JSON object describes.

    Args:
        spec: the object; its "type" says which kind of part it is.
        role: what kinds these are, for the message.
        kinds: name of a kind → what makes it of the object.

    Raises:
        BundleError: the kind is unknown, or the object lacks a field.
    """
    try:
        kind = spec["type"]
        if kind not in kinds:
            raise unsupported(f"the {role} '{kind}'")
        return kinds[kind](spec)
    except (KeyError, TypeError, AttributeError) as error:
        raise BundleError(
            "tokenizer.incomplete",
            f"tokenizer.json has an incomplete {role} ({type(error).__name__}: {error}); export the bundle again",
        ) from None


def unsupported(what: str) -> BundleError:
    """The error to raise for what only the `tokenizers` library reads."""
    return BundleError(
        "tokenizer.unsupported",
        f"tokenizer.json has {what}, which the tokenizer in Python cannot read; install the package tokenizers, or"
        " choose a model with another tokenizer",
    )
