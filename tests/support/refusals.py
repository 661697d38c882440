"""Refusals: an error with its kind that names the thing and the cure; a command's one sentence and status 1."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from fedspzo.cli import main
from fedspzo.device_runtime.errors import FedSPZOError


@contextmanager
def raises(kind: str, *named: object) -> Iterator[pytest.ExceptionInfo[FedSPZOError]]:
    """The block raises an error of this kind whose text has each of ``named``: the thing and the cure."""
    with pytest.raises(FedSPZOError) as caught:
        yield caught
    assert caught.value.kind == kind, repr(caught.value)
    text = str(caught.value)
    assert all(str(part) in text for part in named), f"{named} are not all in: {text}"


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main(list(map(str, arguments))) == 1
    *progress, error = capsys.readouterr().err.strip().splitlines()
    assert all(" … " in line for line in progress), progress  # work that takes long shows where it is
    assert error.startswith(f"fedspzo {arguments[0]}: ")
    return error
