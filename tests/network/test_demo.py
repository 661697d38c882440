"""The main job as a newcomer runs it, held to what the README says of it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from patience import TEST_S
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer

from fedspzo.broker.server.status import read_status
from fedspzo.device_runtime.model.bundle import Bundle

KEYS = {
    "rounds", "devices", "accuracy_before", "accuracy_after", "loss_before", "loss_after", "bytes_up_per_device_round",
    "bytes_down_per_device_round", "seconds", "seconds_per_device_step", "device_peak_rss_mb", "server_digest",
    "device_digests", "replay_digest", "engine", "method",
}  # fmt: skip


def fedspzo(folder: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "fedspzo", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=TEST_S)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_demo(tmp_path: Path) -> None:
    started = time.monotonic()
    said = fedspzo(tmp_path, "demo")
    seconds = time.monotonic() - started
    run = tmp_path / "runs" / "demo"
    summary = json.loads((run / "summary.json").read_text())
    print(said, json.dumps(summary, indent=1), f"{seconds:.0f} s as a whole process")
    assert summary.keys() >= KEYS
    # As in the README: fixed texts and weights, but for some whose two best scores are equal up to rounding.
    assert summary["accuracy_before"] == pytest.approx(0.488, abs=2 / 400)
    assert summary["accuracy_after"] >= summary["accuracy_before"] + 0.10
    assert summary["loss_after"] <= summary["loss_before"] * 2 / 3
    assert summary["ceiling_accuracy"] > summary["accuracy_after"]
    assert {summary["server_digest"], *summary["device_digests"].values()} == {summary["replay_digest"]}
    assert len(summary["device_digests"]) == summary["devices"] == 8
    assert summary["bytes_up_per_device_round"] <= 192 + 4 * 256  # a share of what a device says at the start included
    assert summary["device_peak_rss_mb"] <= 260
    assert (run / "accuracy.png").stat().st_size > 10_000
    assert "are bit-identical" in said
    assert [device["behind"] for device in read_status(run / "server")["devices"]] == [0] * 8

    assert "make_call" in fedspzo(tmp_path, "predict", str(run), "phone my sister").splitlines()[0]
    shown = [fedspzo(tmp_path, "status", str(folder)).splitlines()[:2] for folder in (run, run / "server")]
    assert shown[0] == shown[1]
    fedspzo(tmp_path, "materialize", str(run), "--out", "checkpoint")
    assert abs(checkpoint_accuracy(tmp_path / "checkpoint", run) - summary["accuracy_after"]) <= 1 / 400 + 1e-9


@torch.inference_mode()
def checkpoint_accuracy(checkpoint: Path, run: Path) -> float:
    """Accuracy on the held-out file with transformers alone and the labels' vectors beside the checkpoint."""
    bundle = Bundle(run / "bundle")
    names = [label.name for label in bundle.manifest.task.labels]
    labels = load_file(checkpoint / "labels.safetensors")["labels"].T
    model, tokenizer = AutoModel.from_pretrained(checkpoint).eval(), AutoTokenizer.from_pretrained(checkpoint)
    records = [json.loads(line) for line in (run / "data" / "held-out.jsonl").read_text().splitlines()]
    tokens = tokenizer([record["text"] for record in records], padding=True, return_tensors="pt")
    mask = tokens["attention_mask"][..., None].float()
    hidden = model(**tokens).last_hidden_state
    pooled = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1))
    answers = (pooled @ labels).argmax(dim=1).numpy()
    return float(np.mean([names[answer] == record["label"] for answer, record in zip(answers, records, strict=True)]))
