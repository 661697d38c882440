"""What the methods are compared on: three kinds of model and of data, made on this machine and kept in a folder.

``intents``: requests to an assistant, all-MiniLM-L6-v2 (real weights), by similarity to label descriptions.
``opinions``: words whose verdict a decoder never read, by the next word. ``comparisons``: words and denials that an
encoder never saw, by a masked word.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from languages import NEW_GOOD, NEW_MORE, comparison, opinion, train_decoder, train_encoder

from fedspzo.demo import intents
from fedspzo.device_runtime.data.store import DataStore, load_data
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.export.network.target import Target
from fedspzo.export.pipeline import export_bundle
from fedspzo.export.tasks import load_task

TRAIN, TEST, BATCHES = 1800, 400, (4, 8)


@dataclass(frozen=True)
class Setting:
    """A model with a task and data.

    Attributes:
        name: of it.
        bundle: θ₀, with graphs for LiteRT and PyTorch.
        train: the examples that are shared out among devices.
        test: held-out examples.
        target: the training loss to reach, as a share of the loss at the start.
    """

    name: str
    bundle: Bundle
    train: DataStore
    test: DataStore
    target: float


def open_setting(name: str, folder: Path) -> Setting:
    """The setting of that name, made the first time."""
    make, length, target = SETTINGS[name]
    place = folder / name
    if not (place / "done").exists():
        place.mkdir(parents=True, exist_ok=True)
        model, task = make(place)
        export_bundle(model, load_task(task), Target(["litert", "torch"], BATCHES, [length]), place / "bundle")
        (place / "done").touch()
    bundle = Bundle(place / "bundle")
    train, test = (load_data(place / f"{split}.jsonl", bundle) for split in ("train", "test"))
    return Setting(name, bundle, train, test, target)


def _make_intents(place: Path) -> tuple[str, str]:
    source = intents.load()
    for split, each in (("train", TRAIN // 10), ("test", TEST // 10)):
        examples = intents.generate(source, split, each, 0)
        _write(place / f"{split}.jsonl", ({"text": e.text, "label": source.intents[e.label].name} for e in examples))
    return "minilm", "intents"


def _make_opinions(place: Path) -> tuple[str, str]:
    train_decoder(place / "model")
    _write_drawn(place, lambda draw: opinion(draw, len(NEW_GOOD)))
    return str(place / "model"), "sst2"


def _make_comparisons(place: Path) -> tuple[str, str]:
    train_encoder(place / "model")
    _write_drawn(place, lambda draw: comparison(draw, len(NEW_MORE), denied=0.3))
    task = place / "comparisons.toml"
    task.write_text(
        '[masked]\ntemplate = "{sentence} , so the winner is {mask} ."\n'
        'labels = { second = "second", first = "first" }\n',
        encoding="utf-8",
    )
    return str(place / "model"), str(task)


def _write_drawn(place: Path, sentence: Callable[[random.Random], tuple[str, bool]]) -> None:
    for split, count in (("train", TRAIN), ("test", TEST)):
        draw = random.Random(split)
        drawn = (sentence(draw) for _ in range(count))
        _write(place / f"{split}.jsonl", ({"sentence": text, "label": int(label)} for text, label in drawn))


def _write(file: Path, records: Iterable[dict[str, object]]) -> None:
    file.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


SETTINGS: dict[str, tuple[Callable[[Path], tuple[str, str]], int, float]] = {
    "intents": (_make_intents, 12, 0.8),
    "opinions": (_make_opinions, 20, 0.75),
    "comparisons": (_make_comparisons, 20, 0.85),
}
