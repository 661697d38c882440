"""Commands that refuse what they are given: one sentence, status 1, no traceback."""

from __future__ import annotations

import pytest

from fedspzo.cli import main


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main(list(map(str, arguments))) == 1
    error = capsys.readouterr().err.strip()
    assert error.count("\n") == 0, error
    assert error.startswith(f"fedspzo {arguments[0]}: ")
    return error
