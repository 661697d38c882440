"""Examples: what a line must hold, how long texts are cut, and that tokens are made once."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from fedspzo.device_runtime.data.store import DataStore, Encoder, load_data
from fedspzo.device_runtime.errors import DataError
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.model.task import Label, Task


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines))
    return path


GOOD = json.dumps({"text": "wake me at six", "label": "alarm", "note": "ignored"})


def test_lines_become_examples(bundle: Bundle, tmp_path: Path) -> None:
    store = load_data(write(tmp_path / "d.jsonl", GOOD, "", '{"text": "play", "label": "music"}'), bundle)
    tokenizer = Tokenizer.from_file(str(bundle.folder / "tokenizer.json"))
    expected = tokenizer.encode("please wake me at six").ids
    assert store.ids[0, : len(expected)].tolist() == expected
    assert store.lengths.tolist() == [len(expected), 4]
    assert not store.ids[0, len(expected) :].any()
    assert store.labels.tolist() == [0, 1]
    assert store.truncated == 0


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2 is not JSON"),
        ("[1]", "line 2: it is not an object with named fields"),
        ('{"label": "alarm"}', "line 2: the text field 'text' is missing, which task 'requests' needs"),
        ('{"text": 3, "label": "alarm"}', "line 2: the field 'text' is no text, which task 'requests' needs there"),
        ('{"text": "x"}', "line 2: the field 'label' has no label, which task 'requests' needs"),
        ('{"text": "x", "label": "tea"}', "line 2: label 'tea' is not one of task 'requests': alarm, music, call"),
        ('{"text": "\\ud800", "label": "alarm"}', "line 2: the field 'text' is not valid Unicode text"),
        ("[" * 100_000, "line 2 is not JSON"),
    ],
)
def test_a_bad_line_is_named(bundle: Bundle, tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_data(write(tmp_path / "d.jsonl", GOOD, line), bundle)


def test_no_file_and_no_examples(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read: No such file"):
        load_data(tmp_path / "none.jsonl", bundle)
    with pytest.raises(DataError, match="has no examples"):
        load_data(write(tmp_path / "d.jsonl", "", "  "), bundle)


def test_a_long_text_is_cut_and_the_template_is_not(bundle: Bundle, tmp_path: Path) -> None:
    long = json.dumps({"text": " ".join(["wake me at six"] * 10), "label": "alarm"})
    store = load_data(write(tmp_path / "d.jsonl", long, GOOD), bundle)
    assert store.truncated == 1
    assert store.lengths[0] == bundle.manifest.length
    tokens = Tokenizer.from_file(str(bundle.folder / "tokenizer.json")).decode(store.ids[0].tolist()).split()
    assert tokens[:3] == ["[CLS]", "please", "wake"]
    assert store.ids[0, -1] == 3, "the closing [SEP] is there"


def test_only_the_longest_field_is_cut(bundle: Bundle) -> None:
    encoder = Encoder(bundle)
    encoder._task = Task("pair", "similarity", "{a} now {b} please", (Label("x", ""), Label("y", "")))
    encoded = encoder.encode({"a": "wake me", "b": "play some music " * 10})
    ids, cut = encoded.ids, encoded.cut
    tokens = encoder._tokenizer.decode(ids).split()
    assert cut
    assert len(ids) == bundle.manifest.length
    assert tokens[:4] == ["[CLS]", "wake", "me", "now"]
    assert tokens[-2:] == ["please", "[SEP]"]


def test_a_template_longer_than_the_limit(bundle: Bundle) -> None:
    encoder = Encoder(bundle)
    encoder._task = Task("long", "similarity", "wake " * 20 + "{text}", (Label("x", ""), Label("y", "")))
    with pytest.raises(DataError, match="needs more than 12 tokens by itself; export with a larger --max-length"):
        encoder.encode({"text": "me"})


def test_tokens_are_made_once(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, cache = write(tmp_path / "d.jsonl", GOOD), tmp_path / "tokens.npz"
    first = load_data(path, bundle, cache)
    with monkeypatch.context() as patch:
        patch.setattr(Encoder, "encode", lambda *_: pytest.fail("tokenised again"))
        second = load_data(path, bundle, cache)
    np.testing.assert_array_equal(first.ids, second.ids)
    write(path, GOOD, GOOD)
    assert len(load_data(path, bundle, cache)) == 2, "a changed file is read anew"
    cache.write_bytes(b"PK\x03\x04 torn")
    assert len(load_data(path, bundle, cache)) == 2, "a damaged cache is made anew"


def test_sampling_is_repeatable_and_without_replacement() -> None:
    store = DataStore(np.zeros((50, 4), np.int32), *(np.zeros(50, np.int32) for _ in range(3)))
    drawn = store.sample(3, 8)
    assert len(set(drawn.tolist())) == 8
    np.testing.assert_array_equal(drawn, store.sample(3, 8))
    assert drawn.tolist() != store.sample(4, 8).tolist()
    assert sorted(store.sample(3, 100).tolist()) == list(range(50))
    counts = np.bincount(np.concatenate([store.sample(seed, 8) for seed in range(500)]), minlength=50)
    assert counts.min() > 40
    assert counts.max() < 130


@pytest.mark.parametrize(
    ("template", "labels", "message"),
    [
        ("no field", ("a", "b"), "the template has no field"),
        ("{0}", ("a", "b"), "fields are plain names"),
        ("{text", ("a", "b"), "the template is not valid"),
        ("{text:d}", ("a", "b"), "fields are plain names"),
        ("{text!x}", ("a", "b"), "fields are plain names"),
        ("{text:loud}", ("a", "b"), "or have one of the filters trim, lower, upper"),
        ("{text}", ("a",), "at least two labels"),
        ("{text}", ("a", "a"), "at least two labels with different names"),
    ],
)
def test_a_task_that_contradicts_itself(template: str, labels: tuple[str, ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Task("t", "similarity", template, tuple(Label(name, name) for name in labels))
