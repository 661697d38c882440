"""The operator's documentation, run as it is written."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from patience import PATIENCE_S

from fedspzo.broker.mqtt.mosquitto_program import installed

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "operations.md"


@pytest.mark.slow
@pytest.mark.skipif(not installed() or not shutil.which("curl"), reason="mosquitto or curl is not installed")
def test_from_a_broker_to_two_devices(
    bundle_folder: Path, tmp_path: Path, write_examples: Callable[[Path, int], Path]
) -> None:
    shutil.copytree(bundle_folder, tmp_path / "bundle", ignore=shutil.ignore_patterns("server.pub"))
    for name in ("held-out", "phone-1", "phone-2"):
        write_examples(tmp_path / f"{name}.jsonl", 12)
    installation, *blocks = re.findall(r"```sh\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    assert "pip install" in installation
    blocks = [block.replace("0.0.0.0", "127.0.0.1") for block in blocks]
    script = "set -euo pipefail -m\ntrap 'kill $(jobs -p) 2>/dev/null' EXIT\n" + "".join(blocks)
    environment = {**os.environ, "HOST": "localhost", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "fedspzo_round " in done.stdout
    assert "; the model's digest is " in done.stdout
    assert "round 40 of 40: counted" in done.stdout
