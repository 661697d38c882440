"""Examples out of every kind of source, and what is said of those that are none."""

from __future__ import annotations

import csv
import io
import json
from contextlib import suppress
from pathlib import Path
from random import Random

import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mutations import mutated_bytes
from pyarrow import parquet
from refusals import raises

from fedspzo.device_runtime.data.sources import Example, parse_example, parse_examples, read_source
from fedspzo.device_runtime.data.store import load_data
from fedspzo.device_runtime.errors import DataError
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.model.task import Label, Task
from fedspzo.export.tasks import load_task

PAIR = Task("pair", "causal", "{a} {b} is", (Label("no", " bad"), Label("yes", " good")))
ROWS = [{"a": "one, two", "b": 'with "quotes"\nand a line', "label": "yes"}, {"a": "三", "b": "x", "label": "no"}]
EXPECTED = [Example({"a": row["a"], "b": row["b"]}, int(row["label"] == "yes")) for row in ROWS]
SQUAD = load_task("squad")["generation"]


def read(source: Path | str, task: Task = PAIR) -> list[Example]:
    return list(parse_examples(str(source), read_source(str(source)), task))


def test_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text("\n\n".join(json.dumps(row) for row in ROWS))
    assert read(path) == EXPECTED


@pytest.mark.parametrize(("suffix", "delimiter"), [(".csv", ","), (".tsv", "\t"), (".CSV", ",")])
def test_csv(tmp_path: Path, suffix: str, delimiter: str) -> None:
    path = tmp_path / f"d{suffix}"
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, ["a", "b", "label"], delimiter=delimiter)
        writer.writeheader()
        writer.writerows(ROWS)
    assert read(path) == EXPECTED


def test_parquet(tmp_path: Path) -> None:
    path = tmp_path / "d.parquet"
    parquet.write_table(pyarrow.Table.from_pylist([{**row, "label": row["label"] == "yes"} for row in ROWS]), path)
    assert read(path) == EXPECTED
    squad = {"title": "T", "context": "C", "question": "Q", "answers": {"text": ["a", "b "], "answer_start": [0, 1]}}
    parquet.write_table(pyarrow.Table.from_pylist([squad]), path)
    assert read(path, SQUAD) == [Example({"title": "T", "context": "C", "question": "Q"}, 0, ("a", "b"))]


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32))
def test_a_damaged_parquet_file_is_read_or_refused(seed: int) -> None:
    file = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(20 * ROWS), file)
    with suppress(DataError):
        list(parse_examples("d.parquet", mutated_bytes(file.getvalue(), Random(seed)), PAIR))


def test_a_data_set_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library reads a folder as it does a repository of the hub; without a network a name is one sentence."""
    folder = tmp_path / "repository"
    folder.mkdir()
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    assert read(f"hub:{folder}:train") == EXPECTED
    with raises("data.hub-failed", ":test'", "check its name and the network"):
        read(f"hub:{folder}:test")
    for name in ("hub:a:b:c:d", "hub:stanfordnlp/sst2", "hub:", "hub::train"):
        with raises("data.hub-name", "hub:NAME:SPLIT"):
            read(name)


@pytest.mark.parametrize(
    ("value", "index"), [("yes", 1), ("no", 0), (1, 1), (0, 0), ("1", 1), ("0", 0), (True, 1), (False, 0)]
)
def test_labels_by_name_and_by_index(value: object, index: int) -> None:
    assert parse_example({"a": "x", "b": "y", "label": value}, PAIR).label == index


@pytest.mark.parametrize("value", [None, 2, -1, "2", "maybe", 1.5, [1], {"a": 1}])
def test_what_is_no_label(value: object) -> None:
    with pytest.raises(DataError, match="label"):
        parse_example({"a": "x", "b": "y", "label": value}, PAIR)


@pytest.mark.parametrize(("value", "answers"), [("a", ("a",)), (["a", "b"], ("a", "b")), ({"text": ["a"]}, ("a",))])
def test_answers(value: object, answers: tuple[str, ...]) -> None:
    assert parse_example({"title": "", "context": "", "question": "", "answers": value}, SQUAD).answers == answers


@pytest.mark.parametrize("value", [None, [], "", "  ", [""], ["a", 3], {"text": []}, 3])
def test_what_is_no_answer(value: object) -> None:
    with raises("data.missing-answer", "'answers'", "'squad'"):
        parse_example({"title": "", "context": "", "question": "", "answers": value}, SQUAD)


def test_where_it_went_wrong(tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    path.write_text("a,b,label\nx,y,yes\nx,y,tea\n")
    with raises("data.unknown-label", "d.csv, line 3: label 'tea'", "'pair'", "use one of: no, yes"):
        read(path)
    path.write_text("a,label\nx,yes\n")
    with raises("data.missing-field", "d.csv, line 2: the text field 'b'", "'pair'"):
        read(path)
    path.write_text("a,b,a,label\nx,y,z,yes\n")
    with raises("data.duplicate-column", "d.csv", "rename or remove one"):
        read(path)
    path.write_bytes(b"a,b,label\n\xff,y,yes\n")
    with raises("data.not-csv", "d.csv"):
        read(path)
    path = tmp_path / "d.parquet"
    path.write_bytes(b"PAR1 torn")
    with raises("data.not-parquet", "d.parquet"):
        read(path)
    with raises("data.unreadable", "none.csv"):
        read(tmp_path / "none.csv")


@given(st.binary(max_size=200), st.sampled_from([".jsonl", ".csv", ".tsv", ".parquet"]))
def test_any_bytes_are_examples_or_one_sentence(content: bytes, suffix: str) -> None:
    message = ""
    try:
        list(parse_examples(f"d{suffix}", content, PAIR))
    except DataError as error:
        message = str(error)
    assert "\n" not in message


def test_a_whole_number_is_a_label_however_it_is_written(tmp_path: Path) -> None:
    """pandas writes 1.0 where a column has gaps: as text in CSV, as a number in Parquet."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    (tmp_path / "d.csv").write_text("a,b,label\nx,y,1.0\nx,y,0.0\n")
    parquet.write_table(pyarrow.table({"a": ["x"] * 2, "b": ["y"] * 2, "label": [1.0, 0.0]}), tmp_path / "d.parquet")
    assert [e.label for e in read(tmp_path / "d.csv")] == [e.label for e in read(tmp_path / "d.parquet")] == [1, 0]
    (tmp_path / "d.csv").write_text("a,b,label\nx,y,0.5\n")
    with raises("data.unknown-label", "'0.5'"):
        read(tmp_path / "d.csv")


def test_a_missing_column_names_those_that_there_are(tmp_path: Path) -> None:
    for header, record in (("a,text,label", "x,y,1"), ("a,b,labels", "x,y,1")):
        (tmp_path / "d.csv").write_text(f"{header}\n{record}\n")
        with pytest.raises(DataError, match="the record has " + ", ".join(map(repr, header.split(",")))):
            read(tmp_path / "d.csv")


def test_a_data_set_of_the_hub_is_loaded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bundle: Bundle) -> None:
    datasets = pytest.importorskip("datasets")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").write_text('{"text": "wake me", "label": "alarm"}\n' * 3)
    loaded = []
    load = datasets.load_dataset
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: loaded.append(a) or load(*a, **k))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    cache = tmp_path / "tokens.npz"
    assert len(load_data(f"hub:{tmp_path / 'data'}:train", bundle, cache)) == 3
    assert len(loaded) == 1
    assert len(load_data(f"hub:{tmp_path / 'data'}:train", bundle, cache)) == 3
