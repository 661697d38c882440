"""Export refuses what would not run well, and the way back gives a checkpoint that transformers loads."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoTokenizer

from device_runtime.bundle import Bundle
from device_runtime.data import DataStore
from device_runtime.engines import create_engine
from device_runtime.errors import DataError, ExportError
from device_runtime.evaluation import predict
from device_runtime.forward import Forward
from device_runtime.replica import Replica
from device_runtime.task import Task
from export import operators, pipeline
from export.lowering import export_program, lower
from export.materialize import write_checkpoint
from export.operators import linear
from export.pipeline import Target, export_bundle
from export.tasks import load_task


class _Linear(torch.nn.Module):
    """The form that engines do not delegate: a weight that is an input, through a fully connected layer."""

    def forward(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> tuple[torch.Tensor]:
        return (torch.nn.functional.linear(x, weight, bias),)


class _Batched(torch.nn.Module):
    def forward(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> tuple[torch.Tensor]:
        return (linear(x, weight, bias),)


@pytest.mark.parametrize("engine", ["litert", "executorch"])
def test_the_delegated_share_is_measured(engine: str, tmp_path: Path) -> None:
    plain = (torch.randn(8, 16), torch.randn(24, 16), torch.randn(24))
    batched = (plain[0][None], plain[1].T[None].contiguous(), plain[2])
    assert lower(export_program(_Linear(), plain), engine, tmp_path, "plain")[1] == 0.0
    assert lower(export_program(_Batched(), batched), engine, tmp_path, "batched")[1] == 1.0


def test_a_graph_that_is_not_delegated_is_refused(
    checkpoint: Path, task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(x, weight[0].T, bias)

    monkeypatch.setattr(operators, "linear", slow)
    with pytest.raises(ExportError, match=r"executorch delegates only \d+\.\d% of the matrix work of 'layer'"):
        export_bundle(str(checkpoint), {task.form: task}, Target(["executorch"], [2], [8]), tmp_path / "b")
    assert list(tmp_path.iterdir()) == [], "nothing half-made is left"


def test_a_graph_that_deviates_is_refused(
    checkpoint: Path, task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "TOLERANCE", 1e-12)
    with pytest.raises(ExportError, match="litert deviates from PyTorch by"):
        export_bundle(str(checkpoint), {task.form: task}, Target(["litert"], [2], [8]), tmp_path / "b")
    assert list(tmp_path.iterdir()) == []


def test_the_report(checkpoint: Path, task: Task, tmp_path: Path) -> None:
    steps: list[str] = []
    reports = export_bundle(str(checkpoint), task, ["torch"], 2, 8, tmp_path / "b", steps.append)
    assert [report.name for report in reports] == ["embedding", "layer 0", "layer 1", "layer 2", "head"]
    layer = reports[1]
    assert layer.parameters == layer.trainable == 4 * (32 * 32 + 32) + 2 * 32 * 64 + 64 + 32 + 4 * 32
    # 2·m·n·k of six projections and of the two products of attention, over 2 × 8 tokens.
    assert layer.flops == 2 * 16 * (4 * 32 * 32 + 2 * 32 * 64) + 2 * (2 * 2 * 8 * 8 * 32)
    assert reports[0].trainable == reports[-1].trainable == 0
    assert all(report.delegated["torch"] == 1 and report.deviation["torch"] <= 1e-4 for report in reports)
    assert any("lowering layer to torch" in step for step in steps)


def damaged(checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoint, tmp_path / "copy"))


def test_models_that_cannot_be_exported(checkpoint: Path, task: Task, tmp_path: Path) -> None:
    def refused(
        message: str, model: object = checkpoint, engines: tuple[str, ...] = ("torch",), length: int = 8
    ) -> None:
        with pytest.raises(ExportError, match=message):
            export_bundle(str(model), {task.form: task}, Target(engines, [2], [length]), tmp_path / "b")

    refused("there is no model folder './nowhere'", model="./nowhere")
    refused("there is no engine 'onnx'", engines=("onnx",))
    refused("takes at most 32 tokens; choose a smaller --max-length", length=33)
    copy = damaged(checkpoint, tmp_path)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "hidden_act": "relu"}))
    refused("has the activation 'relu'; supported is gelu", model=copy)
    (copy / "config.json").write_text(json.dumps({**config, "model_type": "gpt2"}))
    refused("is of model type 'gpt2'; supported are bert", model=copy)
    (copy / "config.json").write_text(json.dumps({**config, "model_type": "none-such"}))
    refused("is not a model's config", model=copy)
    (copy / "config.json").write_text(json.dumps(config))
    tensors = load_file(copy / "model.safetensors")
    tensors.pop("encoder.layer.1.output.dense.weight")
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    refused("has no tensor 'encoder.layer.1.output.dense.weight'", model=copy)
    (copy / "model.safetensors").write_bytes(b"torn")
    refused("has no readable safetensors weights", model=copy)
    (copy / "tokenizer.json").unlink()
    refused("has no tokenizer.json", model=copy)
    (tmp_path / "b").mkdir()
    refused("exists already")


def test_tasks(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no task 'none'; choose one of intents, or give the path of a .toml"):
        load_task("none")
    path = tmp_path / "mine.toml"
    path.write_text('template = "{a} {b}"\n[labels]\nyes = "it is so"\nno = "it is not"\n')
    task = load_task(str(path))
    assert (task.name, task.fields, task.labels[1].text) == ("mine", ("a", "b"), "it is not")
    for text in ("template = 3", 'template = "{a}"', "[labels", 'template = "{a}"\nlabels = 3'):
        path.write_text(text)
        with pytest.raises(DataError, match="is not a task"):
            load_task(str(path))


def test_the_checkpoint_is_the_trained_model(
    bundle: Bundle, checkpoint: Path, task: Task, store: DataStore, tmp_path: Path
) -> None:
    """Weights changed in the replica come back through transformers' AutoModel with the replica's own answers."""
    replica = Replica(bundle)
    random = np.random.default_rng(0)
    for weights in replica.trainable.values():
        weights += 0.05 * random.standard_normal(weights.shape, np.float32)
    write_checkpoint(replica, tmp_path / "out")
    model, tokenizer = (
        AutoModel.from_pretrained(tmp_path / "out").eval(),
        AutoTokenizer.from_pretrained(tmp_path / "out"),
    )
    assert tokenizer("wake me")["input_ids"] == AutoTokenizer.from_pretrained(checkpoint)("wake me")["input_ids"]
    mask = torch.from_numpy((np.arange(store.ids.shape[1]) < store.lengths[:, None]).astype(np.int64))
    with torch.inference_mode():
        hidden = model(input_ids=torch.from_numpy(store.ids).long(), attention_mask=mask).last_hidden_state
    pooled = torch.nn.functional.normalize((hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True))
    logits = 20 * pooled @ torch.tensor(bundle.weights.view("labels"))[0]
    _, found = predict(Forward(create_engine("litert"), replica), store)
    np.testing.assert_allclose(found, logits.numpy(), atol=1e-3)


def test_the_way_back_needs_the_original(
    bundle: Bundle, bundle_folder: Path, checkpoint: Path, task: Task, tmp_path: Path
) -> None:
    replica = Replica(bundle)
    copy = damaged(checkpoint, tmp_path)
    tensors = load_file(copy / "model.safetensors")
    tensors["pooler.dense.bias"] += 1
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ExportError, match="is not the model that the bundle came from"):
        write_checkpoint(replica, tmp_path / "out", str(copy))
    with pytest.raises(ExportError, match="the original model is needed .*; say where it is with --source"):
        write_checkpoint(replica, tmp_path / "out", "./nowhere")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ExportError, match="exists already"):
        write_checkpoint(replica, tmp_path)
