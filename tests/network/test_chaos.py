"""Chaos, at a length that fits the slow tests; ``make chaos`` does more of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from chaos import Chaos

from fedspzo.broker.mqtt.mosquitto_program import installed


@pytest.mark.slow
@pytest.mark.skipif(not installed(), reason="mosquitto is not installed")
def test_nothing_is_lost_in_chaos(
    bundle_folder: Path, tmp_path: Path, write_examples: Callable[[Path, int], Path]
) -> None:
    chaos = Chaos(bundle_folder, tmp_path, write_examples, seed=7, rounds=60, wanted=60)
    chaos.run()
    found = chaos.check()
    print(found)
    assert sum(chaos.faults.values()) >= 60
