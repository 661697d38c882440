"""What deploy/compose.yml has containers do, done by processes: no container runs here."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from patience import PATIENCE_S, wait_until
from ports import free_port

from fedspzo.broker.mqtt.mosquitto_program import installed
from fedspzo.device_runtime.protocol.signing import PIN

COMPOSE = Path(__file__).resolve().parents[2] / "deploy" / "compose.yml"


@pytest.fixture
def written(tmp_path: Path) -> Callable[[str], str]:
    """What stands in the file, with the folders, ports and names that there are here."""
    here = {
        "/var/lib/fedspzo": str(tmp_path / "state"),
        "/srv/fedspzo": str(tmp_path / "job"),
        "8883": str(free_port()),
        "8443": str(free_port()),
        "${HOST:?is the name of this machine} broker": "localhost",
        "${HOST}": "localhost",
        "${OPTIONS:-}": "--rounds 1",
        "mqtts://broker": "mqtts://localhost",
        "0.0.0.0": "127.0.0.1",
    }

    def read(text: str) -> str:
        for there, value in here.items():
            text = text.replace(there, value)
        return text

    return read


@pytest.fixture
def start() -> Iterator[Callable[[list[str]], None]]:
    """Starts fedspzo as the image does, until the end of the test."""
    with ExitStack() as stack:

        def start(arguments: list[str]) -> None:
            process = subprocess.Popen([sys.executable, "-m", "fedspzo", *arguments])
            stack.callback(process.wait)
            stack.callback(process.terminate)

        yield start


@pytest.mark.slow
@pytest.mark.skipif(not installed(), reason="mosquitto is not installed")
def test_the_commands_run_and_become_healthy(
    bundle_folder: Path, tmp_path: Path, written: Callable[[str], str], start: Callable[[list[str]], None]
) -> None:
    shutil.copytree(bundle_folder, tmp_path / "job" / "bundle", ignore=shutil.ignore_patterns(PIN))
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"

    def healthy(service: dict[str, Any]) -> bool:
        kind, *command = map(written, service["healthcheck"]["test"])
        assert kind == "CMD"
        tried = subprocess.run(command, env={**os.environ, "PATH": path}, capture_output=True, timeout=PATIENCE_S)
        return tried.returncode == 0

    services = yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))["services"]
    for name in ("broker", "server"):
        assert not healthy(services[name])
        start(shlex.split(written(services[name]["command"])))
        wait_until(partial(healthy, services[name]))
