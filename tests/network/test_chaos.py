"""Chaos, at a length that fits the slow tests; ``make chaos`` does more of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from chaos import Chaos

from fedspzo.broker.mqtt.mosquitto_program import installed


@pytest.mark.slow
@pytest.mark.skipif(not installed(), reason="mosquitto is not installed")
@pytest.mark.parametrize(
    ("mode", "devices", "rounds", "faults"), [("robust", 6, 60, 60), ("secure", 6, 10, 25), ("groups", 14, 5, 15)]
)
def test_nothing_is_lost_in_chaos(
    bundle_folder: Path,
    tmp_path: Path,
    write_examples: Callable[[Path, int], Path],
    mode: str,
    devices: int,
    rounds: int,
    faults: int,
) -> None:
    chaos = Chaos(bundle_folder, tmp_path, write_examples, 7, devices, rounds, faults, mode)
    chaos.run()
    found = chaos.check()
    print(found)
    assert sum(chaos.faults.values()) >= faults
