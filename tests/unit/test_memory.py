"""How much memory a process may take, and what it then does with a frozen base."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from refusals import raises

from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.platform.memory import available_bytes, free_in_group
from fedspzo.device_runtime.step.budget import open_engine, parse_memory, streams_within
from fedspzo.device_runtime.step.cost import forecast_inference


@pytest.mark.parametrize(
    ("text", "expected"),
    [("all", None), ("300MB", 300_000_000), ("300M", 300_000_000), ("1.5 GB", 1_500_000_000), ("64kB", 64_000)],
)
def test_sizes(text: str, expected: int | None) -> None:
    assert parse_memory(text) == expected


@pytest.mark.parametrize("text", ["", "300", "0MB", "-1GB", "much", "300MiB", "nanGB"])
def test_other_sizes_are_refused(text: str) -> None:
    with raises("option.memory", f"{text!r}", "give a size such as 300MB"):
        parse_memory(text)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"memory.max": "max\n"}, None),
        ({"memory.max": "1000\n"}, None),
        ({"a/memory.max": "1000\n", "a/memory.current": "300\n"}, 700),
        ({"a/memory.max": "1000\n", "a/memory.current": "300\n", "a/memory.stat": "anon 9\ninactive_file 200\n"}, 900),
        ({"a/memory.max": "9000", "a/memory.current": "1", "memory.max": "500", "memory.current": "100"}, 400),
        ({"a/memory.max": "10", "a/memory.current": "30"}, 0),
        ({"a/memory.max": "none", "a/memory.current": "?"}, None),
    ],
)
def test_limits_of_a_group_of_processes_count(tmp_path: Path, files: dict[str, str], expected: int | None) -> None:
    """And those of the groups that it is in."""
    (tmp_path / "a").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert free_in_group(tmp_path, "/a") == expected


def test_auto_keeps_to_what_is_free(bundle: Bundle) -> None:
    limit, free = parse_memory("auto"), available_bytes()
    assert free is not None
    assert limit is not None
    assert 0 < limit < 2 * free
    assert not streams_within(bundle.manifest, "litert", "auto")  # a tiny model


def test_what_does_not_fit_is_told(bundle: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    manifest = bundle.manifest
    kept = forecast_inference(manifest, "litert", streams=False).total
    assert forecast_inference(manifest, "litert", streams=True).total <= kept
    assert not streams_within(manifest, "litert", f"{kept // 1000 + 1}k")
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        assert not streams_within(manifest, "litert", "1MB")  # all of it is trained
    assert "MB at least, more than --memory 1MB; give more" in caplog.text
    with raises("engine.keeps-all", "'torch' keeps the whole model in memory", "--memory all"):
        streams_within(manifest, "torch", "1MB")
    assert not streams_within(manifest, "torch", "all")
    with raises("engine.unknown", "'foo'"):
        open_engine(manifest, "foo", 1, "1MB")
    with raises("option.memory", "--memory"):
        parse_memory("\uff11\uff10\uff10MB")  # digits of another script
