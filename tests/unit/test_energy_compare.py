"""Two measurements of joules against each other, and what is kept of one on disk."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from refusals import raises

from fedspzo.energy.compare import Measurement, compare, comparison_lines, read_measurement


def test_a_difference_is_found_as_often_as_stated() -> None:
    random = np.random.default_rng(0)
    held = 0
    for _ in range(400):
        one, other = (Measurement("m", tuple(random.normal(mean, 0.3, 5)), "rapl host") for mean in (2.0, 2.5))
        compared = compare(one, other)
        held += abs(compared.difference - 0.5) <= compared.half_width
    assert held >= 0.94 * 400
    assert compare(Measurement("a", (1.0, 1.1, 0.9), "x"), Measurement("b", (2.0, 2.1, 1.9), "x")).differ


def test_what_is_no_measurement_gets_a_sentence(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    for text in (
        "{",
        "[]",
        '{"repetitions": 3}',
        "null",
        '{"source": "a", "repetitions": [1, NaN]}',
        '{"source": "a", "repetitions": [1, Infinity]}',
    ):
        file.write_text(text)
        with raises("energy.not-a-measurement", "a.json", "--json"):
            read_measurement(file)
    file.write_text(json.dumps({"source": "rapl", "repetitions": [1.0]}))
    with raises("energy.no-repetitions", "--repeat"):
        read_measurement(file)
    file.write_text(json.dumps({"source": "rapl", "repetitions": [1.0, 1.2], "machine": {"host": "a"}}))
    other = Measurement("b", (1.0, 1.2), "rapl b")
    lines = comparison_lines(compare(read_measurement(file), other))
    assert "they do not differ" in lines[1]
    assert "different machines" in lines[2]
    assert compare(other, other).ratio == pytest.approx(1.0)
