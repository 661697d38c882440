"""Opening a bundle: whatever is wrong with it is one clear error."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from refusals import raises
from safetensors.numpy import load_file

from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.model.tensor_file import TensorFile, write_tensors


@pytest.fixture
def copy(bundle_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle_folder, tmp_path / "bundle"))


def test_open(bundle: Bundle) -> None:
    assert bundle.formats == ("litert", "executorch", "torch")
    assert [stage.name for stage in bundle.manifest.stages] == ["embedding", "layer 0", "layer 1", "layer 2", "head"]
    assert bundle.manifest.sizes == {name: (bundle.folder / name).stat().st_size for name in bundle.manifest.files}
    assert {graph.name for graph in bundle.manifest.shapes[0].graphs.values()} == {"embedding", "layer", "head"}


def edit(folder: Path, change: Callable[[dict[str, object]], object]) -> None:
    record = json.loads((folder / "manifest.json").read_text())
    change(record)
    (folder / "manifest.json").write_text(json.dumps(record))


DAMAGE: list[tuple[Callable[[Path], object], str, str]] = [
    (lambda f: (f / "manifest.json").unlink(), "bundle.not-a-bundle", "there is no manifest.json"),
    (lambda f: (f / "manifest.json").write_text("{"), "bundle.manifest-damaged", "manifest.json"),
    (lambda f: (f / "manifest.json").write_bytes(b"\xff\xfe\xfa"), "bundle.not-a-bundle", "fedspzo export"),
    (lambda f: edit(f, lambda m: m.pop("stages")), "bundle.manifest-damaged", "manifest.json"),
    (lambda f: edit(f, lambda m: m.pop("format")), "bundle.manifest-damaged", "'format' is missing"),
    (lambda f: edit(f, lambda m: m.update(format=4)), "bundle.version", "format version 4"),
    (lambda f: edit(f, lambda m: m.update(directions=2)), "bundle.version", "directions version 2"),
    (lambda f: edit(f, lambda m: m.update(tensors=[])), "bundle.manifest-damaged", "manifest.json"),
    (lambda f: edit(f, lambda m: m.update(shapes=[])), "bundle.manifest-damaged", "manifest.json"),
    (
        lambda f: edit(f, lambda m: m["shapes"].insert(0, {**m["shapes"][0], "groups": 2})),
        "bundle.manifest-damaged",
        "not the largest of one branch",
    ),
    (lambda f: edit(f, lambda m: m["files"].update({"x" * 300: ""})), "bundle.foreign-file", "xxx"),  # type: ignore[attr-defined]
    (lambda f: (f / "layer-4x12.tflite").unlink(), "bundle.file-unreadable", "layer-4x12.tflite"),
    (lambda f: (f / "layer-4x12.tflite").write_bytes(b"x"), "bundle.file-altered", "layer-4x12.tflite"),
    (lambda f: (f / "tokenizer.json").write_text("{}"), "bundle.file-altered", "tokenizer.json"),
    (lambda f: (f / "weights.safetensors").open("r+b").truncate(5000), "bundle.file-altered", "weights.safetensors"),
]


@pytest.mark.parametrize(("damage", "kind", "named"), DAMAGE)
def test_damage_is_named(copy: Path, damage: Callable[[Path], object], kind: str, named: str) -> None:
    damage(copy)
    with raises(kind, copy, named):
        Bundle(copy)


def test_a_path_may_be_too_long_though_the_name_is_not(copy: Path, tmp_path: Path) -> None:
    deep = tmp_path
    while len(str(deep)) < 3900:
        deep /= "d" * 50
    shutil.copytree(copy, deep, dirs_exist_ok=True)
    edit(deep, lambda m: m["files"].update({"x" * 200: ""}))  # type: ignore[attr-defined]
    with raises("bundle.file-unreadable", "File name too long"):
        Bundle(deep)


def test_where_the_original_was_need_not_be_utf8(copy: Path) -> None:
    (copy / "source.txt").write_bytes(b"/models/caf\xe9")
    assert Bundle(copy).source == "/models/caf\ufffd"


def test_one_flipped_bit_is_found(copy: Path) -> None:
    path = copy / "weights.safetensors"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with raises("bundle.file-altered", "get the bundle again"):
        Bundle(copy)


def test_another_bundle_in_the_folder_is_told_once(copy: Path) -> None:
    opened = Bundle(copy)
    assert not opened.replaced()
    (copy / "manifest.json").touch()
    assert not opened.replaced(), "the same bundle"
    edit(copy, lambda m: m.update(base=""))
    assert opened.replaced() == (Bundle(copy)._hash != opened._hash)
    assert not opened.replaced()
    (copy / "manifest.json").unlink()
    assert opened.replaced()
    assert not opened.replaced()


def test_identity_is_of_the_model_and_not_of_the_graphs(copy: Path, bundle: Bundle) -> None:
    edit(copy, lambda m: [g["files"].pop("torch") for g in m["shapes"][0]["graphs"].values()])  # type: ignore[index]
    assert Bundle(copy).identity == bundle.identity
    edit(copy, lambda m: m["shapes"][0].update(length=11))  # type: ignore[index]
    assert Bundle(copy).identity != bundle.identity


def test_tensor_file_is_safetensors(tmp_path: Path) -> None:
    arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones((5,), np.float32)}
    path = tmp_path / "t.safetensors"
    write_tensors(path, {name: array.shape for name, array in arrays.items()}, arrays.values(), {"round": "3"})
    loaded, ours = load_file(path), TensorFile(path)
    assert ours.metadata == {"round": "3"}
    for name, array in arrays.items():
        np.testing.assert_array_equal(loaded[name], array)
        np.testing.assert_array_equal(ours.view(name), array)
        out = np.empty_like(array)
        ours.read_into(name, out)
        np.testing.assert_array_equal(out, array)


@pytest.mark.parametrize("content", [b"", b"123", (1 << 40).to_bytes(8, "little"), (2).to_bytes(8, "little") + b"[]"])
def test_what_is_no_tensor_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "t.safetensors"
    path.write_bytes(content)
    with raises("bundle.tensors-unreadable", path):
        TensorFile(path)
