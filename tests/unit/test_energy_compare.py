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
    held = np.zeros(4)
    for _ in range(400):
        one, other = (Measurement("m", tuple(random.normal(mean, 0.3, 5)), "rapl host") for mean in (2.0, 2.5))
        compared = compare(one, other)
        held += (
            abs(compared.difference - 0.5) <= compared.half_width,
            abs(compared.ratio - 1.25) <= compared.ratio_half_width,
            abs(compared.one - 2.0) <= compared.one_half_width,
            abs(compared.other - 2.5) <= compared.other_half_width,
        )
    assert held[0] >= 0.94 * 400
    assert held.min() >= 0.92 * 400
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


def test_what_a_loss_takes_comes_first(tmp_path: Path) -> None:
    """A step of B takes half as much, and it needs four times as many."""
    files = []
    for name, joules, steps, loss in (
        ("a", 2.0, 10, 1.2),
        ("b", 1.0, 40, 1.2),
        ("c", 1.0, None, 1.2),
        ("d", 1.0, 5, 1.1),
    ):
        files.append(tmp_path / f"{name}.json")
        target = {"loss": loss, "steps": steps}
        each = [joules, joules * 1.01, joules * 0.99]
        files[-1].write_text(json.dumps({"source": "rapl", "repetitions": each, "target": target}))
    one, *others = map(read_measurement, files)
    compared = compare(one, others[0])
    assert compared.ratio == pytest.approx(0.5)
    assert compared.to_loss is not None
    assert compared.to_loss.ratio == pytest.approx(2.0)
    assert compared.to_loss.differ
    lines = comparison_lines(compared)
    assert "A takes 20 ± 0.5 J to the loss, B 40 ± 0.99 J: 2.000 ± " in lines[0]
    assert "A takes 2 ± " in lines[2]
    none = Measurement("e", (1.0, 1.1), "rapl ")
    for other, said in ((others[1], "B did not reach 1.2"), (others[2], "A to 1.2 and B to 1.1"), (none, "B to none")):
        assert compare(one, other).to_loss is None
        assert said in comparison_lines(compare(one, other))[0]
    assert not compare(none, none).reason
