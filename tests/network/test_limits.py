"""What no message may do to a job, with real processes and a real mosquitto."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from federation import Processes, assert_equal_replicas, finish, held, read_rounds
from patience import wait_until
from plain_mosquitto import plain_mosquitto

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
