"""`fedspzo bench` measures real steps, directions and processes, and says what it holds them against."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from fedspzo.bench.watch import run_watched
from fedspzo.cli import main
from fedspzo.device_runtime.model.bundle import Bundle

CUT = ("--split", "3", "--fanouts", "1,2")


@pytest.mark.parametrize(
    ("what", "names"),
    [
        ("step", ["step"]),
        ("apply", ["1 direction", "8 directions"]),
        ("memory", ["peak memory of a step"]),
        ("startup", ["process start to first step done", "peak memory"]),
    ],
)
@pytest.mark.parametrize("more", [(), ("--threads", "2", "--ahead")])
def test_each_figure_has_a_bound(
    bundle: Bundle, capsys: pytest.CaptureFixture[str], what: str, names: list[str], more: tuple[str, ...]
) -> None:
    command = ["bench", what, str(bundle.folder), *CUT, "--repeats", "2", *more]
    assert main([*command, "--json"]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [figure["name"] for figure in found] == names
    for figure in found:
        better_high = figure["unit"].startswith("G")
        ratio = figure["bound"] / figure["value"] if better_high else figure["value"] / figure["bound"]
        assert figure["ratio"] == pytest.approx(ratio)
        assert figure["value"] > 0
    assert main(command) == 0
    assert capsys.readouterr().out.count("; bound ") == len(names)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--shape", "3x7"), "--shape is not a shape of this bundle (4x12)"),
        (("--shape", "large"), "--shape is not a shape of this bundle (4x12)"),
        (("--repeats", "0"), "give at least 1 [bench.repeats]"),
        (("--threads", "0"), "at least 1 thread, not 0"),
        (("--engine", "onnx"), "there is no engine 'onnx'"),
        (("--fanouts", "1,0"), "fanouts are at least 1"),
    ],
)
def test_what_cannot_be_measured_gets_a_sentence(
    bundle: Bundle, capsys: pytest.CaptureFixture[str], more: tuple[str, ...], message: str
) -> None:
    assert main(["bench", "startup", str(bundle.folder), *CUT, *more]) == 1
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said


def test_peak_memory_counts_children_and_files_in_memory() -> None:
    size = 30_000_000
    child = f"import time; held = bytes(range(250)) * {size // 250}; time.sleep(0.2)"
    file = f"os.write(os.memfd_create('file'), bytes({size}))"
    script = f"import os, subprocess, sys; {file}; subprocess.run([sys.executable, '-c', {child!r}]); print('out')"
    status, output, errors, peak = run_watched([sys.executable, "-c", script])
    assert (status, output, errors) == (0, "out\n", "")
    assert 2 * size <= peak < 4 * size
    assert run_watched([sys.executable, "-c", "raise SystemExit('why')"])[:3] == (1, "", "why\n")


def test_a_bundle_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "step", str(tmp_path / "nowhere")]) == 1
    assert "nowhere" in capsys.readouterr().err
