"""Generated assistant requests for the demo: ten confusable intents, filled from the templates in ``intents.toml``.

Training and test sentences come from separate templates and separate slot fillers. Generation orders the sentences by
a hash, so that it gives the same examples for a seed on every platform and Python version.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice, product, zip_longest
from pathlib import Path
from typing import Any, Literal

import numpy as np

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Split = Literal["train", "test"]

MIN_PER_DEVICE = 16
"""The fewest examples that `partition` gives a device."""

MAX_WORDS = 9
"""The longest sentence, punctuation counted: short sentences keep the demo's forward passes cheap."""

_SLOT = re.compile(r"\{(\w+)\}")
_WORD = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True)
class Example:
    """A request and the index of its intent in `Intents.intents`."""

    text: str
    label: int


@dataclass(frozen=True)
class Phrases:
    """Interchangeable phrases (templates or slot fillers), separate for training and test."""

    train: tuple[str, ...]
    test: tuple[str, ...]

    def of(self, split: Split) -> tuple[str, ...]:
        """The phrases of one split."""
        return self.train if split == "train" else self.test


@dataclass(frozen=True)
class Intent:
    """An intent: its name, a label of the task ``intents``, and its sentence templates."""

    name: str
    templates: Phrases


@dataclass(frozen=True)
class Intents:
    """The intents, in label order, and the slot fillers that their templates share."""

    intents: tuple[Intent, ...]
    slots: Mapping[str, Phrases]


def load() -> Intents:
    """Read the intents that come with the package."""
    data = tomllib.loads(Path(__file__).with_name("intents.toml").read_text(encoding="utf-8"))
    return Intents(
        intents=tuple(Intent(name, _phrases(entry)) for name, entry in data["intents"].items()),
        slots={name: _phrases(entry) for name, entry in data["slots"].items()},
    )


def generate(intents: Intents, split: Split, per_intent: int, seed: int) -> list[Example]:
    """Make `per_intent` distinct sentences of each intent, spread evenly over its templates, in a shuffled order."""
    order = partial(_digest, seed)
    examples: list[Example] = []
    for label, intent in enumerate(intents.intents):
        by_template = [
            sorted(_expand(template, intents.slots, split), key=order) for template in intent.templates.of(split)
        ]
        interleaved = (text for text in chain.from_iterable(zip_longest(*by_template)) if text is not None)
        texts = list(islice(dict.fromkeys(interleaved), per_intent))
        if len(texts) < per_intent:
            raise ValueError(f"intent {intent.name!r} has {len(texts)} distinct {split} sentences, not {per_intent}")
        examples.extend(Example(text, label) for text in texts)
    return sorted(examples, key=lambda example: order(example.text))


def partition(examples: Sequence[Example], devices: int, alpha: float, seed: int) -> list[list[Example]]:
    """Share the examples out among devices, each label in Dirichlet(`alpha`) proportions: a small alpha is skewed.

    Devices left with fewer than `MIN_PER_DEVICE` examples are topped up from the largest one.
    """
    if len(examples) < MIN_PER_DEVICE * devices:
        raise ValueError(f"{len(examples)} examples are too few for {devices} devices of {MIN_PER_DEVICE} or more")
    rng = np.random.default_rng(seed)
    shares: list[list[Example]] = [[] for _ in range(devices)]
    for label in sorted({example.label for example in examples}):
        members = [example for example in examples if example.label == label]
        rng.shuffle(members)
        cuts = (np.cumsum(rng.dirichlet(np.full(devices, alpha)))[:-1] * len(members)).round().astype(int)
        for share, start, stop in zip(shares, [0, *cuts], [*cuts, len(members)], strict=True):
            share.extend(members[start:stop])
    while len(smallest := min(shares, key=len)) < MIN_PER_DEVICE:
        smallest.append(max(shares, key=len).pop())
    for share in shares:
        rng.shuffle(share)
    return shares


def _phrases(entry: Mapping[str, Any]) -> Phrases:
    """The phrases of a table of the data file."""
    return Phrases(train=tuple(entry["train"]), test=tuple(entry["test"]))


def _expand(template: str, slots: Mapping[str, Phrases], split: Split) -> Iterator[str]:
    """Every sentence of a template that is not too long."""
    names = _SLOT.findall(template)
    for fillers in product(*(slots[name].of(split) for name in names)):
        text = template.format(**dict(zip(names, fillers, strict=True)))
        if len(_WORD.findall(text)) <= MAX_WORDS:
            yield text


def _digest(seed: int, text: str) -> bytes:
    """A key that sorts sentences in an order random in the seed."""
    return hashlib.sha256(f"{seed} {text}".encode()).digest()
