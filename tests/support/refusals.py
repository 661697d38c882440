"""Refusals: an error with its kind that names the thing and the cure; a command's one sentence and status 1 or 78."""

from __future__ import annotations

import re

import pytest

from fedspzo.cli import SERVING, main
from fedspzo.device_runtime.errors import FedSPZOError


class raises:
    """The block raises an error of this kind whose text has each of ``named``: the thing and the cure.

    Nothing of the error is kept: files that its frames hold open are closed when the block has ended.
    """

    def __init__(self, kind: str, *named: object) -> None:
        self._kind, self._named = kind, named

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, __: object) -> bool:
        if error is not None and not isinstance(error, FedSPZOError):
            return False
        assert error is not None, f"nothing was raised; expected {self._kind}"
        assert error.kind == self._kind, repr(error)
        assert all(str(part) in str(error) for part in self._named), f"{self._named} are not all in: {error}"
        return True


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    status = main(list(map(str, arguments)))
    *progress, error = capsys.readouterr().err.strip().splitlines()
    # Work that takes long shows where it is, and a device says with how many examples it starts.
    assert all(" … " in line or " INFO " in line for line in progress), progress
    assert error.startswith(f"fedspzo {arguments[0]}: ")
    passing = re.search(r"\[(broker\.|state\.(in-use|unusable)|server\.http-port-in-use)", error)
    assert status == (78 if arguments[0] in SERVING and not passing else 1)
    return error
