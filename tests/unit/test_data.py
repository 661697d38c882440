"""Examples: what a line must hold, how long texts are cut, and that tokens are made once."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mutations import mutated_bytes
from refusals import raises
from tokenizers import Tokenizer

from fedspzo.device_runtime.data.store import DataStore, Encoder, load_data
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
    ("line", "kind", "named"),
    [
        ("{", "data.not-json", "line 2"),
        ("[1]", "data.not-an-object", "line 2"),
        ('{"label": "alarm"}', "data.missing-field", "line 2: the text field 'text'"),
        ('{"text": 3, "label": "alarm"}', "data.not-text", "line 2: the field 'text'"),
        ('{"text": "x"}', "data.missing-label", "line 2: the field 'label'"),
        ('{"text": "x", "label": "tea"}', "data.unknown-label", "use one of: alarm, music, call"),
        ('{"text": "\\ud800", "label": "alarm"}', "data.invalid-unicode", "line 2: the field 'text'"),
        ("[" * 100_000, "data.not-json", "line 2"),
    ],
)
def test_a_bad_line_is_named(bundle: Bundle, tmp_path: Path, line: str, kind: str, named: str) -> None:
    with raises(kind, named):
        load_data(write(tmp_path / "d.jsonl", GOOD, line), bundle)


@pytest.mark.parametrize(
    ("text", "kind", "named"),
    [
        ("text,label\nplay,music\nwake me, at six,alarm\n", "data.extra-columns", "line 3"),
        ("text,label\n" + "wake me " * 20_000 + ",alarm\n", "data.not-csv", "JSON lines"),
        ("text,text\na,b\n", "data.duplicate-column", "two columns"),
    ],
)
def test_a_table_that_is_not_one_is_refused(bundle: Bundle, tmp_path: Path, text: str, kind: str, named: str) -> None:
    with raises(kind, named):
        load_data(write(tmp_path / "d.csv", text), bundle)


def test_a_row_of_too_many_cells_can_be_left_out(bundle: Bundle, tmp_path: Path) -> None:
    path, refused = write(tmp_path / "d.csv", "text,label", "wake me, at six,alarm", "play,music"), []
    assert len(load_data(path, bundle, skip=refused.append)) == 1
    assert [error.kind for error in refused] == ["data.extra-columns"]


def test_no_file_and_no_examples(bundle: Bundle, tmp_path: Path) -> None:
    with raises("data.unreadable", "none.jsonl", "check the path"):
        load_data(tmp_path / "none.jsonl", bundle)
    with raises("data.no-examples", "d.jsonl"):
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
    with raises("task.template-too-long", "'long'", "12 tokens", "--max-length"):
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


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2**32))
def test_a_damaged_cache_is_made_anew(bundle: Bundle, tmp_path: Path, seed: int) -> None:
    path, cache = write(tmp_path / "d.jsonl", GOOD), tmp_path / "tokens.npz"
    cache.unlink(missing_ok=True)
    expected = load_data(path, bundle, cache)
    cache.write_bytes(mutated_bytes(cache.read_bytes(), Random(seed)))
    np.testing.assert_array_equal(load_data(path, bundle, cache).ids, expected.ids)


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
    ("template", "labels", "kind", "named"),
    [
        ("no field", ("a", "b"), "task.no-field", "{text}"),
        ("{0}", ("a", "b"), "task.field-syntax", "'0'"),
        ("{text", ("a", "b"), "task.template-syntax", "{text}"),
        ("{text:d}", ("a", "b"), "task.field-syntax", "'text'"),
        ("{text!x}", ("a", "b"), "task.field-syntax", "'text'"),
        ("{text:loud}", ("a", "b"), "task.field-syntax", "filters trim, lower, upper"),
        ("{text}", ("a",), "task.labels", "'t'"),
        ("{text}", ("a", "a"), "task.labels", "rename labels"),
    ],
)
def test_a_task_that_contradicts_itself(template: str, labels: tuple[str, ...], kind: str, named: str) -> None:
    with raises(kind, named):
        Task("t", "similarity", template, tuple(Label(name, name) for name in labels))
