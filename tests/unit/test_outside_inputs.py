"""Files from outside with anything wrong in them: an error in a sentence, or as good as before; never a traceback."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mutations import Inspection, mutated_tensors, mutated_text, read_tensors
from refusals import raises

from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.model.manifest import MANIFEST, WEIGHTS
from fedspzo.device_runtime.model.tensor_file import TensorFile

quick = settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def folder(bundle_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle to damage."""
    return Path(shutil.copytree(bundle_folder, tmp_path_factory.mktemp("outside") / "bundle"))


@quick
@given(st.integers(0, 2**32))
def test_a_mutated_manifest_is_read_or_refused(folder: Path, bundle_folder: Path, seed: int) -> None:
    Inspection(folder)(mutated_text((bundle_folder / MANIFEST).read_bytes(), Random(seed)))


@quick
@given(st.integers(0, 2**32))
def test_a_mutated_tensor_file_is_read_or_refused(bundle_folder: Path, tmp_path: Path, seed: int) -> None:
    read_tensors(tmp_path / WEIGHTS, mutated_tensors((bundle_folder / WEIGHTS).read_bytes(), Random(seed)))


HEADERS: list[tuple[object, str]] = [
    ([], "readable"),
    ({"a": {"dtype": "F32", "shape": [2**32, 2**32], "data_offsets": [0, 0]}}, "size does not match"),
    ({"a": {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]}}, "another type"),
    ({"a": {"dtype": "F32", "shape": [-1, -1], "data_offsets": [0, 4]}}, "another type"),
    ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0]}}, "readable"),
    ({n: {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} for n in "ab"}, "overlap"),
    ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, "holes"),
    ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, "no tensor"),
    ({"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}}, "cut off"),
    ({"__metadata__": {"round": 3}}, "metadata"),
]


@pytest.mark.parametrize(("header", "named"), HEADERS)
def test_a_header_that_contradicts_itself_is_refused(tmp_path: Path, header: object, named: str) -> None:
    text = json.dumps(header).encode()
    (tmp_path / WEIGHTS).write_bytes(len(text).to_bytes(8, "little") + text + bytes(8))
    with raises("bundle.tensors-unreadable", WEIGHTS, named, "get or export it again"):
        TensorFile(tmp_path / WEIGHTS)


def test_a_header_as_long_as_a_disk_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / WEIGHTS).open("wb") as file:
        file.write((1 << 40).to_bytes(8, "little"))
        file.truncate(1 << 41)  # nothing of it is on disk
    with raises("bundle.tensors-unreadable", "header"):
        TensorFile(tmp_path / WEIGHTS)


@pytest.mark.parametrize("name", ["../x", "/dev/zero", "a/b", ".hidden", ""])
def test_a_manifest_makes_no_other_file_be_read(folder: Path, bundle_folder: Path, name: str) -> None:
    record = json.loads((bundle_folder / MANIFEST).read_text())
    record["files"][name] = "0" * 64
    (folder / MANIFEST).write_text(json.dumps(record))
    with raises("bundle.foreign-file", repr(name), "get or export it again"):
        Bundle(folder)


def test_a_graph_that_is_not_listed_is_not_run(folder: Path, bundle_folder: Path) -> None:
    """What no hash covers could be anything."""
    record = json.loads((bundle_folder / MANIFEST).read_text())
    del record["files"]["layer-4x12.tflite"]
    (folder / MANIFEST).write_text(json.dumps(record))
    with raises("bundle.manifest-damaged", "'layer'", "not listed"):
        Bundle(folder)


def test_a_manifest_that_fills_the_memory_is_not_read(folder: Path) -> None:
    (folder / MANIFEST).write_bytes(b"[" * (1 << 23))
    with raises("bundle.manifest-damaged", "more than"):
        Bundle(folder)
