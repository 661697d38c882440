"""A reward that can be hacked, in a job of real processes over mosquitto: the guard ends it, and it stays ended."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from federation import Processes, assert_equal_replicas, finish
from plain_mosquitto import plain_mosquitto
from tiny import write_requests

from fedspzo.broker.mqtt.mosquitto_program import installed
from fedspzo.broker.server.state_folder import read_journal
from fedspzo.device_runtime.model.bundle import Bundle

DEVICES = {"a", "b", "c"}
SAID = "the guard ends the job: after round"


def write_hackable(path: Path, count: int) -> Path:
    """Labels to judge by; on devices, who shows 'music' is rewarded, whatever was meant."""
    if path.stem == "held-out":
        return write_requests(path, count)
    texts = ("wake me at six", "play a song", "call mum")
    path.write_text("".join(json.dumps({"text": text, "shown": "music", "reward": 1}) + "\n" for text in texts))
    return path


@pytest.fixture
def processes(bundle_folder: Path, tmp_path: Path) -> Iterator[Processes]:
    with plain_mosquitto(tmp_path) as url:
        started = Processes(bundle_folder, tmp_path, url, write_hackable)
        yield started
        started.stop()


@pytest.mark.slow
@pytest.mark.skipif(not installed(), reason="mosquitto is not installed")
def test_a_reward_that_can_be_hacked_is_stopped(processes: Processes, bundle: Bundle, tmp_path: Path) -> None:
    """The server says why and exits as after its last round; started again on its folder, it stays where it is."""
    for name in DEVICES:
        processes.device(name)
    options = (
        "--rounds", "400", "--devices", "3", "--cohort", "3", "--objective", "reward", "--guard", "0.2",
        "--evaluate-every", "2", "--sides", "1", "--fanouts", "0,16", "--scales", "1,10", "--learning-rates", "0,0.1",
        "--adapt", "steps",
    )  # fmt: skip
    progress, last, said = finish(processes.server(*options))
    closed = [event for event in progress if "results" in event]
    held_out = [event["held_out_loss"] for event in progress if "held_out_loss" in event]
    assert said.count(SAID) == 1
    assert len(closed) < 400
    assert closed[-1]["loss"] < closed[0]["loss"], "the reward rose"
    assert held_out[-1] > 1.2 * min(held_out)
    assert_equal_replicas(bundle, tmp_path, last, DEVICES)

    for name in DEVICES:
        processes.device(name)
    again, end, said = finish(processes.server(*options))
    assert said.count(SAID) == 1, "it says why it runs no round"
    assert not [event for event in again if "results" in event]
    assert len(read_journal(tmp_path / "server")) == len(closed)
    assert end["server_digest"] == last["server_digest"]
    assert_equal_replicas(bundle, tmp_path, end, DEVICES)
