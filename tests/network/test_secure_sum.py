"""Rounds whose results are masked, over a broker: the server learns sums, which are those of the plain integers."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import pytest
from federation import broker
from patience import PATIENCE_S
from test_server import copy_bundle, make_job

from fedspzo.broker.mqtt.embedded import EmbeddedBroker
from fedspzo.broker.rounds.aggregate import close_round
from fedspzo.broker.rounds.groups import close_sums
from fedspzo.broker.server.server import Server
from fedspzo.broker.server.state_folder import read_history, read_journal
from fedspzo.device_runtime.data.store import DataStore
from fedspzo.device_runtime.device.agent import Agent
from fedspzo.device_runtime.engines.protocol import create_engine
from fedspzo.device_runtime.link.access import Access
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.replica.state import DeviceState

__all__ = ["broker"]


class Device:
    """An agent on a thread of its own."""

    def __init__(self, url: str, bundle: Bundle, folder: Path, store: DataStore, least: str = "robust") -> None:
        self.state = DeviceState(folder, bundle, folder.name)
        self.agent = Agent(Access(url), "default", create_engine("litert"), self.state, lambda: store, least=least)
        self.agent.connect()
        self.thread = threading.Thread(target=self.agent.run, daemon=True)
        self.thread.start()

    def digest(self) -> bytes:
        self.thread.join(PATIENCE_S)
        assert not self.thread.is_alive()
        return self.state.replica.digest()


@pytest.mark.parametrize(("mode", "cohort", "devices"), [("groups", 12, 12), ("secure", 4, 5)])
def test_a_job_whose_results_are_masked(
    bundle: Bundle, broker: EmbeddedBroker, store: DataStore, tmp_path: Path, mode: str, cohort: int, devices: int
) -> None:
    own = copy_bundle(bundle, tmp_path / "bundle")
    job = replace(make_job(rounds=3, cohort=cohort), mode=mode)
    with Server(own, job, Access(broker.url), tmp_path / "server", devices=devices, serve_after=0) as server:
        running = [Device(broker.url, own, tmp_path / f"device-{n}", store, mode) for n in range(devices)]
        result = server.wait(PATIENCE_S)
    assert result is not None
    assert {device.digest() for device in running} == {result.digest}
    entries = read_journal(tmp_path / "server")
    for entry in entries:
        assert entry.plan.mode == mode
        assert sum(each.devices for each in entry.sums) == cohort
        assert entry == close_sums(entry.plan, entry.sums, close_round)
    assert [len(closed.devices) for closed in read_history(tmp_path / "server")] == [cohort] * 3
