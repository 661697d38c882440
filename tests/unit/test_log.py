"""What comes from outside reaches terminals and logs as text, and nothing else."""

from __future__ import annotations

import json
import logging
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from fedspzo.device_runtime.log import printable, written_log

OPERATIONS = Path(__file__).parents[2] / "docs" / "operations.md"
HOSTILE = "a\x1b]0;title\x07\n2026-01-01 INFO all is well\r\x9b2J\u202eevil"


def test_what_acts_on_a_terminal_is_escaped() -> None:
    said = printable(HOSTILE)
    assert said.isprintable()
    assert printable("\ud800") == r"\ud800"  # which no file takes
    assert said.startswith(r"a\x1b]0;title\x07\n2026")
    assert printable("größer, ∂L: 10 µJ") == "größer, ∂L: 10 µJ"
    assert printable("x" * 1000, 10) == "x" * 10 + "…"


@pytest.mark.parametrize("as_json", [False, True])
def test_a_log_acts_on_no_terminal(tmp_path: Path, as_json: bool, capsys: pytest.CaptureFixture[str]) -> None:
    """Its own line ends and tabs stay, of tracebacks say."""
    with written_log(file=tmp_path / "log", as_json=as_json):
        logging.getLogger("fedspzo.any").warning("one\n\ttwo %s", HOSTILE)
    for text in ((tmp_path / "log").read_text(encoding="utf-8"), capsys.readouterr().err):
        assert text.replace("\n", "").replace("\t", "").isprintable()
        said = json.loads(text)["message"] if as_json else text
        assert "one\n\ttwo a\\x1b]0;title\\x07\n2026" in said


@pytest.mark.skipif(not shutil.which("logrotate"), reason="logrotate is not installed")
def test_a_log_is_rotated_while_it_is_written(tmp_path: Path) -> None:
    """By the settings of docs/operations.md."""
    found = re.search(r"/var/log/fedspzo(/.*?})", OPERATIONS.read_text(encoding="utf-8"), re.DOTALL)
    assert found
    (tmp_path / "settings").write_text(f"{tmp_path}{found[1]}\n")
    rotate = ("logrotate", "--force", "--state", tmp_path / "state", tmp_path / "settings")
    log = logging.getLogger("fedspzo.any")
    with written_log(file=tmp_path / "server.log"):
        for word in ("one", "two", "three"):
            log.warning(word)
            if word != "three":
                subprocess.run(rotate, check=True)
    for file, word in {"server.log": "three", "server.log.1": "two"}.items():
        assert (tmp_path / file).read_text(encoding="utf-8").split()[-1] == word
    assert (tmp_path / "server.log.2.gz").exists()
