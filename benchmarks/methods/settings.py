"""What the methods are compared on: models and data, made on this machine or copied, and kept in a folder.

``intents``: generated requests to an assistant, all-MiniLM-L6-v2 (real weights), by similarity to label descriptions.
``opinions``: words whose verdict a decoder never read, by the next word. ``comparisons``: words and denials that an
encoder never saw, by a masked word.

``minilm-clinc-phone``, ``minilm-snips``, ``minilm-banking77``: the same model on real requests, from a folder DATA that
is laid out as ``benchmarks/real_tasks.py`` says. Nothing of it is part of this repository. ``smollm2-sst2``,
``smollm2-trec``, ``smollm2-agnews``, ``smollm2-boolq``: SmolLM2-135M-Instruct by the next word, on the same.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from languages import NEW_GOOD, NEW_MORE, comparison, opinion, train_decoder, train_encoder

from fedspzo.broker.simulation.partition import subset
from fedspzo.demo import intents
from fedspzo.device_runtime.data.store import DataStore, load_data
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.export.network.target import Target
from fedspzo.export.pipeline import export_bundle
from fedspzo.export.tasks import load_task

TRAIN, TEST, BATCHES = 1800, 400, (4, 8)
#: Where a setting keeps public data, of other labels than its own.
PUBLIC = "public"


@dataclass(frozen=True)
class Setting:
    """A model with a task and data.

    Attributes:
        name: of it.
        bundle: θ₀, with graphs for LiteRT and PyTorch; published methods train the model's own weights.
        labelled: the same with the labels' vectors trained as well.
        train: the examples that are shared out among devices.
        test: held-out examples, :data:`TEST` at most.
        target: the training loss to reach, as a share of the loss at the start.
        place: its folder.
    """

    name: str
    bundle: Bundle
    labelled: Bundle
    train: DataStore
    test: DataStore
    target: float
    place: Path


@dataclass(frozen=True)
class Recipe:
    """How a setting is made.

    Attributes:
        make: writes the data into a folder, and says which model and task to export.
        lengths: tokens that the bundle has graphs for.
        target: see :class:`Setting`.
        source: folder of the real data; "" where the data are generated.
        public: folder of other real data, which whoever exports may have; "" where no method needs any.
    """

    make: Callable[[Path], tuple[str, str]]
    lengths: Sequence[int]
    target: float
    source: str = ""
    public: str = ""


def open_setting(name: str, folder: Path, data: Path | None = None) -> Setting:
    """The setting of that name, made the first time.

    Args:
        data: where real data are; needed the first time.
    """
    recipe = SETTINGS[name]
    place = folder / name
    if not (place / "done").exists():
        place.mkdir(parents=True, exist_ok=True)
        if recipe.source:
            _copy(place, recipe.source, data)
            if recipe.public:
                _copy(place / PUBLIC, recipe.public, data)
        model, task = recipe.make(place)
        for out, frozen in (("bundle", ["labels"]), ("labelled", [])):
            target = Target(["litert", "torch"], BATCHES, recipe.lengths, freeze=frozen)
            export_bundle(model, load_task(task), target, place / out)
        (place / "done").touch()
    bundle = Bundle(place / "bundle")
    train, test = (load_data(place / f"{split}.jsonl", bundle) for split in ("train", "test"))
    test = subset(test, test.sample(0, TEST))
    return Setting(name, bundle, Bundle(place / "labelled"), train, test, recipe.target, place)


def _copy(place: Path, source: str, data: Path | None) -> None:
    """The files of real data that a setting needs."""
    if data is None:
        raise SystemExit(f"{place} is made of real data; say with --data where the folder {source} is")
    place.mkdir(parents=True, exist_ok=True)
    for file in (data / source).iterdir():
        shutil.copyfile(file, place / file.name)


def _real(model: str, place: Path) -> tuple[str, str]:
    own = place / "task.toml"
    return model, str(own) if own.exists() else SETTINGS[place.name].source


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


SETTINGS = {
    "intents": Recipe(_make_intents, (12,), 0.8),
    "opinions": Recipe(_make_opinions, (20,), 0.75),
    "comparisons": Recipe(_make_comparisons, (20,), 0.85),
    "minilm-clinc-phone": Recipe(partial(_real, "minilm"), (12, 16, 24), 0.9, "clinc-phone", "banking77"),
    "minilm-snips": Recipe(partial(_real, "minilm"), (12, 16, 24), 0.9, "snips", "banking77"),
    "minilm-banking77": Recipe(partial(_real, "minilm"), (12, 16, 32), 0.9, "banking77", "snips"),
    "smollm2-sst2": Recipe(partial(_real, "smollm2"), (16, 32, 64), 0.8, "sst2", "trec"),
    "smollm2-trec": Recipe(partial(_real, "smollm2"), (16, 32, 64), 0.8, "trec", "agnews"),
    "smollm2-agnews": Recipe(partial(_real, "smollm2"), (16, 32, 64), 0.8, "agnews", "trec"),
    "smollm2-boolq": Recipe(partial(_real, "smollm2"), (64, 128, 192), 0.9, "boolq", "trec"),
}
#: Those that need no data from elsewhere.
GENERATED = tuple(name for name, recipe in SETTINGS.items() if not recipe.source)
