"""The comparison of methods: how operations to a loss are counted, and a small study from models to tables."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from patience import TEST_S
from results import WHOLE, Rows, interval, tables
from robustness import CONDITIONS
from study import DEFAULT
from study import main as study
from trial import Trained

METHODS = Path(__file__).parents[2] / "benchmarks" / "methods"


def curve(*losses: float) -> Trained:
    return Trained([float(k) for k in range(len(losses))], list(losses), losses[-1], 0.5, len(losses))


def test_operations_until_a_loss_is_reached() -> None:
    falling = curve(1.0, 0.9, 0.7, 0.5, 0.4)
    assert falling.smooth.reached(0.8) == pytest.approx(1.5)
    assert falling.smooth.reached(0.3) == math.inf
    assert curve(1.0, 0.2, 1.0, 0.9, 0.9).smooth.reached(0.5) == math.inf, "one lucky point is no progress"


def test_a_loss_that_is_left_again_is_not_held() -> None:
    assert curve(1.0, 0.8, 0.6, 0.5, 0.5).smooth.until(0.7) == pytest.approx(1.5)
    back = curve(1.0, 0.8, 0.6, 0.5, 0.9, 0.9)
    assert (back.smooth.reached(0.7), back.smooth.until(0.7)) == (pytest.approx(1.5), math.inf)


def test_methods_are_compared_seed_by_seed_with_the_best_rival() -> None:
    """To the loss that the best two-sided whole-model method brings every seed to."""
    spent = {"decomfl": (4, 6), "decomfl-one-sided": (2, 3), "fedzo": (8, 8), "frozen": (1, 1)}

    def row(method: str) -> dict[str, object]:
        curves = [
            Trained([0.0, 1e9 * rounds, 10e9], [1.0, 0.5, 0.5], 0.5, 0.5, 10).as_dict() for rounds in spent[method]
        ]
        choice = {"method": method, "perturbations": 1, "rate": 1.0, "batch": 4}
        return {"setting": "intents", "method": method, "choice": choice, "tuning": curves[0], "curves": curves}

    rows = Rows([row(method) for method in spent])
    assert rows.target("intents") == 0.5
    (rival, gains), *none = rows.gains("frozen", WHOLE, 1.0).values()
    assert (rival, list(gains), none) == ("decomfl-one-sided", [2, 3], [])
    assert "| frozen | **2.45** (2.0–3.0) | 2.45 (2.0–3.0; decomfl-one-sided) |" in tables(rows, "")
    alone = Rows([row(name) for name in ("decomfl-one-sided", "frozen")])
    assert alone.target("intents") == 0.5, "without a two-sided method, that of the best of all"


def test_a_method_that_learns_nothing_sets_no_target() -> None:
    """As two-sided differences do where tuning took too high a rate; and defaults may be all that ran."""

    def row(method: str, *losses: float) -> dict[str, object]:
        curves = [curve(1.0, *losses, losses[-1]).as_dict()]
        choice = {"method": method, "perturbations": 1, "rate": 1.0, "batch": 4} if method != DEFAULT else {}
        return {"setting": "intents", "method": method, "choice": choice, "tuning": curves[0], "curves": curves}

    default = row(DEFAULT, 0.5, 0.4)
    rows = Rows([default, row("decomfl", 1.5, 2.0), row("decomfl-one-sided", 0.9, 0.7)])
    assert rows.target("intents") == 0.7
    assert "| intents | decomfl |" in tables(rows, "")
    alone = Rows([default])
    assert alone.target("intents") == 0.4
    assert "| intents | default |" in tables(alone, "")


def test_an_interval_narrows_with_settings_and_seeds() -> None:
    logs = np.log([1.0, 2.0, 4.0])
    assert interval([logs]) == (pytest.approx(1.0), pytest.approx(4.0))
    low, high = interval([logs] * 4)
    assert 1.0 < low < 2.0 < high < 4.0
    assert interval([np.log([3.0])] * 2) == (pytest.approx(3.0), pytest.approx(3.0))


@pytest.mark.slow
def test_a_small_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Models are made, methods tuned and compared, tables and pictures drawn; a second time nothing is run again."""
    command = [
        "study.py", "--folder", str(tmp_path), "--settings", "opinions", "--methods", "planned", "frozen", "decomfl",
        "--tuning", "8", "--forwards", "16",
    ]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, METHODS / "study.py", *command[1:]], check=True, env=environment, timeout=TEST_S)
    runs = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").iterdir()}
    assert len(runs) == 2 * (8 + 3) + 1 + 3
    monkeypatch.setattr(sys, "argv", command)
    study()
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").iterdir()} == runs
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [row["method"] for row in rows] == ["planned", "frozen", "decomfl"]
    assert rows[0]["choice"] == json.loads((tmp_path / "plans" / "opinions.json").read_text())["options"]
    options = [
        "--rows",
        tmp_path / "rows.json",
        "--folder",
        tmp_path,
        "--table",
        tmp_path / "table.md",
        "--png",
        tmp_path / "picture.png",
    ]
    subprocess.run([sys.executable, METHODS / "results.py", *options], check=True, env=environment, timeout=TEST_S)
    table = (tmp_path / "table.md").read_text()
    assert "| opinions | frozen |" in table
    assert "| opinions | planned | fanouts" in table or "| opinions | planned | split" in table
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
    options = ["--folder", tmp_path, "--rows", tmp_path / "rows.json", "--methods", "planned", "--forwards", "8"]
    done = subprocess.run(
        [sys.executable, METHODS / "robustness.py", *options],
        check=True, env=environment, timeout=TEST_S, stdout=subprocess.PIPE, encoding="utf-8",
    )  # fmt: skip
    assert [line.split(" | ")[2] for line in done.stdout.splitlines()[2:]] == list(CONDITIONS)
