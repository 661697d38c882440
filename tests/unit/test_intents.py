"""Tests of the generated intent data: what it contains, that it is reproducible, and how it is shared out."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence

import pytest

from fedspzo.demo.intents import MIN_PER_DEVICE, Example, Intents, generate, load, partition
from fedspzo.export.tasks import load_task


@pytest.fixture(scope="module")
def intents() -> Intents:
    return load()


@pytest.fixture(scope="module")
def train(intents: Intents) -> list[Example]:
    return generate(intents, "train", 180, seed=0)


@pytest.fixture(scope="module")
def test(intents: Intents) -> list[Example]:
    return generate(intents, "test", 40, seed=0)


def _hash(examples: Sequence[Example]) -> str:
    lines = (f"{example.label} {example.text}" for example in examples)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def test_the_intents_are_the_labels_of_the_task(intents: Intents) -> None:
    task = load_task("intents")["similarity"]
    assert [intent.name for intent in intents.intents] == [label.name for label in task.labels]
    assert len({label.text for label in task.labels}) == len(task.labels) == 10


def test_splits_share_no_template_and_no_filler(intents: Intents) -> None:
    for phrases in [*intents.slots.values(), *(intent.templates for intent in intents.intents)]:
        assert not set(phrases.train) & set(phrases.test)
        assert len(set(phrases.train)) == len(phrases.train)
        assert len(set(phrases.test)) == len(phrases.test)


def test_every_label_has_as_many_sentences_and_no_sentence_comes_twice(
    train: list[Example], test: list[Example]
) -> None:
    assert Counter(example.label for example in train) == dict.fromkeys(range(10), 180)
    assert Counter(example.label for example in test) == dict.fromkeys(range(10), 40)
    assert len({example.text for example in train + test}) == len(train) + len(test)
    assert not any("{" in example.text for example in train + test)


def test_sentences_are_spread_over_the_templates(intents: Intents) -> None:
    """As many sentences as there are templates: one of each."""
    for label, intent in enumerate(intents.intents):
        count = len(intent.templates.train)
        texts = [example.text for example in generate(intents, "train", count, seed=3) if example.label == label]
        openings = {template.split("{")[0] for template in intent.templates.train} - {""}
        assert all(any(text.startswith(opening) for text in texts) for opening in openings)


def test_generation_depends_on_the_seed_alone(intents: Intents, train: list[Example], test: list[Example]) -> None:
    assert generate(intents, "train", 180, seed=0) == train
    assert generate(intents, "train", 180, seed=1) != train
    assert (_hash(train), _hash(test)) == ("5559e192d702c7b5", "33f946bc29aae154")


def test_too_few_sentences_are_an_error(intents: Intents) -> None:
    with pytest.raises(ValueError, match=r"distinct test sentences, not 100000"):
        generate(intents, "test", 100_000, seed=0)


@pytest.mark.parametrize("devices", [1, 8, 32, 112])
@pytest.mark.parametrize("alpha", [0.01, 0.3, 100.0])
def test_partition_loses_nothing_and_leaves_no_device_short(train: list[Example], devices: int, alpha: float) -> None:
    shares = partition(train, devices, alpha, seed=0)
    assert len(shares) == devices
    assert min(map(len, shares)) >= MIN_PER_DEVICE
    assert Counter(example for share in shares for example in share) == Counter(train)
    assert shares == partition(train, devices, alpha, seed=0)


def test_a_small_alpha_gives_devices_few_labels(train: list[Example]) -> None:
    def mean_top_share(alpha: float) -> float:
        """The share of a device's most common label, averaged over the devices."""
        shares = partition(train, 20, alpha, seed=0)
        return sum(max(Counter(e.label for e in share).values()) / len(share) for share in shares) / len(shares)

    assert mean_top_share(1000.0) < 0.2
    assert mean_top_share(0.1) > 0.5


def test_too_many_devices_are_an_error(train: list[Example]) -> None:
    with pytest.raises(ValueError, match="too few for 113 devices"):
        partition(train, 113, 0.3, seed=0)
