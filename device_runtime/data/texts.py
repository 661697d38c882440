"""What a record's fields must be, and what a message says of them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from fedspzo.device_runtime.errors import DataError

#: Half a character, which JSON can write and no encoding can.
_SURROGATE = re.compile("[\ud800-\udfff]")


@contextmanager
def at(where: str) -> Iterator[None]:
    """Errors of the block say where they are, in front."""
    try:
        yield
    except DataError as error:
        raise DataError(error.kind, f"{where}: {error}") from None


def check_text(field: str, text: str) -> None:
    """Raise DataError when a text has half characters, which no tokenizer takes."""
    if _SURROGATE.search(text):
        raise DataError(
            "data.invalid-unicode",
            f"the field '{field}' is not valid Unicode; remove the surrogates (\\ud800 to \\udfff)",
        )


def missing_field(field: str, task: str, record: Mapping[str, object]) -> DataError:
    """What is raised where a record lacks a text field of a task."""
    return DataError(
        "data.missing-field", f"the text field '{field}' is missing, which task '{task}' needs; {found(record)}"
    )


def found(record: Mapping[str, object]) -> str:
    """The names that there are, for who has named a column otherwise."""
    return f"the record has {', '.join(map(repr, record)) or 'no fields'}"
