"""The demo on several machines, as its document has it: each in a network namespace, over TLS, with cables pulled."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from machines import Network, missing
from patience import PATIENCE_S, wait_until

from fedspzo.broker.mqtt.mosquitto_program import installed
from fedspzo.broker.server.state_folder import read_history, read_journal
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.protocol.signing import PIN
from fedspzo.device_runtime.replica.state import SNAPSHOT
from fedspzo.device_runtime.replica.weights import Replica

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "several-machines.md"
#: Machines are folders here, and scp copies between them.
COPY = """
scp() { local from=("${@:1:$#-1}") to=${!#}; to=${to#*@}; cp "${from[@]}" "../${to%%.local:*}/${to#*:}"; }
set -euo pipefail
"""
ROUNDS = 60

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not installed(), reason="mosquitto is not installed"),
    pytest.mark.skipif(bool(missing()), reason=missing()),
]


@pytest.fixture
def network() -> Iterator[Network]:
    with Network(["laptop", "pi", "phone"]) as network:
        yield network


def test_the_demo_as_it_is_written(
    network: Network, bundle_folder: Path, tmp_path: Path, write_examples: Callable[[Path, int], Path]
) -> None:
    blocks = dict(re.findall(r"```sh (\w+)\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL))
    environment = {
        **os.environ,
        "HOST": network.addresses["laptop"],
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    running: list[subprocess.Popen[str]] = []

    def start(name: str, more: str = "") -> subprocess.Popen[str]:
        command = ["bash", "-c", f"{COPY}{blocks[name]}{more}"]
        running.append(network.start(name, command, tmp_path / name, environment))
        return running[-1]

    for name in network.addresses:
        (tmp_path / name).mkdir()
    laptop = tmp_path / "laptop"
    shutil.copytree(bundle_folder, laptop / "bundle", ignore=shutil.ignore_patterns(PIN))
    for name in ("held-out", "pi", "phone"):
        write_examples(laptop / f"{name}.jsonl", 12)
    start("laptop", "touch ready\nwait %2\n")
    wait_until((laptop / "ready").exists)
    for file in ("access/phone.json", "mosquitto-state/ca.pem", "phone.jsonl"):
        shutil.copy(laptop / file, tmp_path / "phone")
    for name in ("pi", "phone"):
        start(name)
    for number, name in enumerate(("pi", "phone"), 1):
        wait_until(lambda: closed(laptop) >= 10 * number)  # noqa: B023
        network.cut(name)
        time.sleep(1)
        before = closed(laptop)
        time.sleep(4)
        assert closed(laptop) <= before + 1
        network.mend(name)
    assert [process.wait(PATIENCE_S) for process in running] == [0, 0, 0], (laptop / "server.log").read_text()
    assert closed(laptop) == ROUNDS
    replica = Replica(Bundle(laptop / "bundle"))
    replica.apply_all(read_journal(laptop / "server"))
    for name in ("pi", "phone"):
        there = Replica(Bundle(tmp_path / name / "bundle"), tmp_path / name / "state" / SNAPSHOT)
        assert (there.round, there.digest()) == (ROUNDS, replica.digest())


def closed(laptop: Path) -> int:
    """Rounds that the server has closed."""
    return len(read_history(laptop / "server"))
