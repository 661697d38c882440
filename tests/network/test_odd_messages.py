"""Odd messages with good signatures, from a device to a server and from a server to a device: nobody ends by them."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest
from heard import HeardByDevice, HeardByServer

from fedspzo.device_runtime.data.store import DataStore
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.model.modes import MODES

#: Errors that say that the server ends a device.
ENDS = {"", "device.refused"}


@pytest.mark.parametrize("mode", MODES)
def test_no_message_of_a_device_ends_a_server(tmp_path: Path, mode: str) -> None:
    """benchmarks/mutated_inputs.py has it hear many more."""
    heard = HeardByServer(tmp_path, mode, Random(7))
    heard.hear_extremes()
    for _ in range(100):
        heard.turn()
    heard.check()
    heard.close()


def test_no_odd_message_of_its_server_breaks_a_device(pinned: Bundle, store: DataStore, tmp_path: Path) -> None:
    heard = HeardByDevice(pinned, tmp_path, store, Random(7))
    assert set(heard.hear_extremes()) <= ENDS
    assert {heard.turn() for _ in range(60)} <= ENDS
    heard.device.state.close()
