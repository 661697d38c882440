"""How much memory a process may take, and what it then does with a frozen base."""

from __future__ import annotations

import logging

import pytest
from refusals import raises

from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.platform.memory import available_bytes
from fedspzo.device_runtime.step.budget import parse_memory, streams
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


def test_auto_keeps_to_what_is_free(bundle: Bundle) -> None:
    limit, free = parse_memory("auto"), available_bytes()
    assert free is not None
    assert limit is not None
    assert 0 < limit < 2 * free
    assert not streams(bundle.manifest, "litert", "auto")  # a tiny model


def test_what_does_not_fit_streams_or_is_told(bundle: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    manifest = bundle.manifest
    kept = forecast_inference(manifest, "litert", streams=False).total
    assert forecast_inference(manifest, "litert", streams=True).total <= kept
    assert not streams(manifest, "litert", f"{kept // 1000 + 1}k")
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        assert streams(manifest, "litert", "1MB")
    assert "MB at least, more than --memory 1MB" in caplog.text
    with raises("engine.keeps-all", "'torch' keeps the whole model in memory", "--memory all"):
        streams(manifest, "torch", "1MB")
    assert not streams(manifest, "torch", "all")
