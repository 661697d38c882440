"""An enrolment key in a job of real processes over mosquitto: a device without its certificate is in no sum."""

from __future__ import annotations

import shutil
import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from federation import Processes, read_rounds
from patience import PATIENCE_S, wait_until
from plain_mosquitto import plain_mosquitto

from fedspzo.broker.mqtt.mosquitto_program import installed
from fedspzo.broker.server.state_folder import DATABASE, read_history
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.privacy.certificates import certify
from fedspzo.device_runtime.protocol.signatures import scheme
from fedspzo.device_runtime.replica.state import read_identity

HONEST = {"a", "b", "c", "d"}
#: A device that says without a certificate that it is ready, and a server that introduces it to the others.
INTRUDER = "from fedspzo.device_runtime.device.masking import Masker; Masker.refusal = lambda *_: ''"
LIAR = "from fedspzo.broker.server import summing; summing.check_partner = lambda *_: None"
RUN = "; import sys; from fedspzo.cli import main; sys.exit(main())"
ENROLMENT = scheme().private_key(bytes(range(32)))


@pytest.fixture
def processes(bundle_folder: Path, tmp_path: Path, write_examples: Callable[[Path, int], Path]) -> Iterator[Processes]:
    """With a bundle that names the enrolment key."""
    strict = Path(shutil.copytree(bundle_folder, tmp_path / "strict"))
    replace(Bundle(bundle_folder).manifest, enrolment_key=ENROLMENT.public.hex()).write(strict)
    with plain_mosquitto(tmp_path) as url:
        started = Processes(strict, tmp_path, url, write_examples)
        yield started
        started.stop()


def read_open(state: Path) -> tuple[set[str], set[str]]:
    """Who is in a group of the open round, and whose masked results the server has of them."""
    with closing(sqlite3.connect(state / DATABASE)) as connection:
        connection.execute("BEGIN")
        groups = connection.execute("SELECT devices FROM summed").fetchall()
        results = connection.execute("SELECT device FROM results").fetchall()
    return {name for (devices,) in groups for name in devices.split()}, {name for (name,) in results}


@pytest.mark.slow
@pytest.mark.skipif(not installed(), reason="mosquitto is not installed")
def test_nobody_is_summed_with_a_device_that_is_not_certified(processes: Processes, tmp_path: Path) -> None:
    """An honest server leaves it out and names it; one that lies gets its masked result, and none of the others'."""
    state = tmp_path / "server"
    keys = {name: read_identity(tmp_path / name, name)[1] for name in sorted(HONEST)}
    (tmp_path / "certificates").write_text("".join(f"{certify(ENROLMENT, key).hex()}\n" for key in keys.values()))
    logs = {name: tmp_path / f"{name}.log" for name in (*keys, "intruder", "without", "server", "liar")}

    def said(name: str) -> str:
        return logs[name].read_text() if logs[name].exists() else ""

    def log_to(name: str) -> tuple[str, str]:
        return "--log-file", str(logs[name])

    for name in keys:
        processes.device(name, more=["--certificate", tmp_path / "certificates", *log_to(name)])
    processes.device("intruder", program=(sys.executable, "-c", INTRUDER + RUN), more=log_to("intruder"))
    options = ("--rounds", "5000", "--mode", "secure", "--cohort", "5", "--devices", "5", "--quorum", "4",
               "--deadline", "4")  # fmt: skip
    server = processes.server(*options, *log_to("server"))
    read_rounds(server, 2)
    assert "of at least 4 devices with certificates" in said("server")
    assert "a result of 'intruder' was refused: its key has no certificate of the bundle's" in said("server")
    assert all(set(closed.devices) == HONEST for closed in read_history(state))

    without = processes.device("without", more=log_to("without"))
    wait_until(lambda: "does not take part" in said("without"), lambda: said("without"))
    without.kill()
    without.wait(PATIENCE_S)
    assert f"fedspzo certify --key FILE {read_identity(tmp_path / 'without')[1].hex()})" in said("without")

    server.terminate()
    server.wait(PATIENCE_S)
    processes.server(*options, *log_to("liar"), program=(sys.executable, "-c", LIAR + RUN))
    refusal = "a device's keys were refused: its key has no certificate"
    seen = []

    def over() -> bool:
        seen.append(read_open(state))
        refused = all(refusal in said(name) for name in HONEST) and "intruder" in seen[-1][1]
        return refused or any("intruder" in closed.devices for closed in read_history(state))

    wait_until(over, lambda: said("liar"))
    assert all(set(closed.devices) <= HONEST for closed in read_history(state))
    groups, results = seen[-1]
    assert (groups, results) == (HONEST | {"intruder"}, {"intruder"})
