"""What no message may do to a job, with real processes and a real mosquitto."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import flooder as flooder_program
import pytest
from federation import Processes, assert_equal_replicas, finish, held, read_rounds
from patience import wait_until
from plain_mosquitto import plain_mosquitto
from ports import free_port

from fedspzo.broker.mqtt.mosquitto import ManagedBroker
from fedspzo.broker.mqtt.mosquitto_program import installed
from fedspzo.broker.server.status import read_status
from fedspzo.device_runtime.model.bundle import Bundle

pytestmark = pytest.mark.skipif(not installed(), reason="mosquitto is not installed")
Write = Callable[[Path, int], Path]


def standing(folder: Path) -> dict[str, int]:
    """Device → its round, of those that the server knows."""
    return {device["name"]: device["round"] for device in read_status(folder)["devices"]}


@pytest.mark.slow
def test_a_late_device_at_a_broker_that_takes_small_packets(
    bundle_folder: Path, tmp_path: Path, write_examples: Write
) -> None:
    """It gets the journal in pages that fit, and the others go on."""
    with plain_mosquitto(tmp_path, "max_packet_size 1500") as url:
        processes = Processes(bundle_folder, tmp_path, url, write_examples)
        try:
            server = processes.server("--rounds", "40", "--devices", "1", "--cohort", "1")
            first = processes.device("a")
            read_rounds(server, 25)
            with held(first):
                processes.device("late")
                wait_until(lambda: "late" in standing(tmp_path / "server"))
            _, last, log = finish(server)
            assert "packet-too-large" not in log
            assert_equal_replicas(Bundle(bundle_folder), tmp_path, last, {"a", "late"})
        finally:
            processes.stop()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sync", "noise"])
def test_a_login_that_floods_is_named_and_cut_off(
    bundle_folder: Path, tmp_path: Path, write_examples: Write, kind: str
) -> None:
    """With valid messages or with rubbish; all rounds close, and the others are not accused."""
    with ManagedBroker(tmp_path / "broker", port=free_port(), plain_port=(plain := free_port())) as broker:
        place = f"127.0.0.1:{plain}"
        processes = Processes(bundle_folder, tmp_path, f"mqtt://{place}", write_examples)
        accesses = {access.user: access for access in broker.add_users(["server", "a", "b", "flooder"])}
        processes.logins = {name: f"mqtt://{name}:{access.password}@{place}" for name, access in accesses.items()}
        file = tmp_path / "flooder.json"
        file.write_text(json.dumps(asdict(replace(accesses["flooder"], url=f"mqtt://{place}", authority=""))))
        for name in ("a", "b"):
            processes.device(name)
        server = processes.server("--rounds", "2000", "--devices", "2", "--cut-off", str(broker.folder))
        read_rounds(server, 2)
        assert server.stdout is not None
        rounds: list[str] = []  # all that it says is read, or it would wait for the pipe
        threading.Thread(target=lambda: rounds.extend(server.stdout), daemon=True).start()  # type: ignore[arg-type]
        flooder = subprocess.Popen(
            [sys.executable, Path(flooder_program.__file__), file, "--kind", kind, "--bytes-per-second", "400000",
             "--bundle-identity", Bundle(bundle_folder).identity.hex()],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            assert flooder.stdout is not None
            said = (json.loads(line) for line in flooder.stdout)
            assert next(said) == {"connected": True}
            assert next(line for line in said if line != {"connected": True}) == {"cut": True}
            assert next(said) == {"connected": False}, "its login is no more"
            closed = len(rounds)
            wait_until(lambda: len(rounds) > closed + 20)
            devices = {device["name"]: device for device in read_status(tmp_path / "server")["devices"]}
            assert (devices["flooder"]["cut_off"], devices["flooder"]["floods"] >= 2) == (True, True)
            assert [devices[name]["floods"] for name in ("a", "b")] == [0, 0]
        finally:
            flooder.kill()
            flooder.wait()
            *_, (_, log) = processes.stop()
        assert "device 'flooder' sends far more than it needs to" in log
