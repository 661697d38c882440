"""The demo's users, who know what they meant and only accept or reject what the assistant shows them."""

from __future__ import annotations

import json
from pathlib import Path

from fedspzo.demo.settings import Settings
from fedspzo.device_runtime.data.feedback import ACCEPTED, REJECTED
from fedspzo.device_runtime.data.store import load_data
from fedspzo.device_runtime.data.suggestion import suggest
from fedspzo.device_runtime.engines.protocol import create_engine
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.replica.weights import Replica
from fedspzo.device_runtime.step.runner import Forward
from fedspzo.device_runtime.step.scores import predict, read_answer


def write_feedback(settings: Settings, bundle: Bundle, meant: dict[str, Path], folder: Path) -> dict[str, Path]:
    """Show each user the suggestion of the untrained model for their sentences, and write down what they do.

    Args:
        meant: user → their sentences with what they meant, which no device gets to see.
        folder: gets a file of feedback for each device.
    """
    forward, task = Forward(create_engine(settings.engine, threads=2), Replica(bundle)), bundle.manifest.task
    folder.mkdir()
    found = {}
    for user, path in meant.items():
        logits = predict(forward, load_data(path, bundle))[1]
        lines = []
        for sentence, row in zip(path.read_text(encoding="utf-8").splitlines(), logits, strict=True):
            said = json.loads(sentence)
            suggestion = suggest(read_answer(task, row)[1], round=0)
            reward = ACCEPTED if suggestion.shown == said[task.target] else REJECTED
            lines.append(json.dumps(suggestion.record({"text": said["text"]}, reward)) + "\n")
        found[user] = folder / f"{user}.jsonl"
        found[user].write_text("".join(lines), encoding="utf-8")
    return found
