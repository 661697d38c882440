"""Export refuses what would not run well, and the way back gives a checkpoint that transformers loads."""

from __future__ import annotations

import json
import shutil
import stat
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from models import make_checkpoint
from refusals import raises
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from fedspzo.device_runtime.data.store import DataStore
from fedspzo.device_runtime.engines.protocol import create_engine
from fedspzo.device_runtime.engines.torch import TorchGraph
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.model.task import Task
from fedspzo.device_runtime.replica.weights import Replica
from fedspzo.device_runtime.step.runner import Forward
from fedspzo.device_runtime.step.scores import predict
from fedspzo.export import pipeline
from fedspzo.export.checkpoint import Checkpoint
from fedspzo.export.lowering.lower import lower, trace
from fedspzo.export.materialize import write_checkpoint
from fedspzo.export.modules import operators
from fedspzo.export.modules.operators import linear
from fedspzo.export.network.target import Target
from fedspzo.export.output import appearing
from fedspzo.export.pipeline import export_bundle
from fedspzo.export.tasks import load_task


class _Linear(torch.nn.Module):
    """The form that engines do not delegate: a weight that is an input, through a fully connected layer."""

    def forward(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> tuple[torch.Tensor]:
        return (torch.nn.functional.linear(x, weight, bias),)


class _Batched(torch.nn.Module):
    def forward(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> tuple[torch.Tensor]:
        return (linear(x, weight, bias),)


@pytest.mark.parametrize("engine", ["litert", "executorch"])
def test_the_delegated_share_is_measured(engine: str) -> None:
    plain = (torch.randn(8, 16), torch.randn(24, 16), torch.randn(24))
    batched = (plain[0][None], plain[1].T[None].contiguous(), plain[2])
    assert lower(trace(_Linear(), plain, [], engine), [], engine)[1] == 0.0
    assert lower(trace(_Batched(), batched, [], engine), [], engine)[1] == 1.0


def test_a_graph_that_is_not_delegated_is_refused(
    checkpoint: Path, task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(x, weight[0].T, bias)

    monkeypatch.setattr(operators, "linear", slow)
    with raises("export.not-delegated", "executorch", "'layer'"):
        export_bundle(str(checkpoint), {task.form: task}, Target(["executorch"], [2], [8]), tmp_path / "b")
    assert list(tmp_path.iterdir()) == [], "nothing half-made is left"


def test_a_graph_that_deviates_is_refused(
    checkpoint: Path, task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "TOLERANCE", 1e-12)
    with raises("export.deviates", "litert"):
        export_bundle(str(checkpoint), {task.form: task}, Target(["litert"], [2], [8]), tmp_path / "b")
    assert list(tmp_path.iterdir()) == []


def test_what_the_bundle_says_of_its_stages(checkpoint: Path, task: Task, tmp_path: Path) -> None:
    steps: list[str] = []
    target = Target(["torch"], [2], [8])
    manifest = export_bundle(str(checkpoint), {task.form: task}, target, tmp_path / "b", steps.append).manifest
    assert [stage.name for stage in manifest.stages] == ["embedding", "layer 0", "layer 1", "layer 2", "head"]

    def parameters(stage: int, trainable: bool) -> int:
        tensors = [manifest.tensors[i] for i in manifest.stages[stage].tensors]
        return sum(int(np.prod(t.shape)) for t in tensors if t.trainable or not trainable)

    assert parameters(1, False) == parameters(1, True) == 4 * (32 * 32 + 32) + 2 * 32 * 64 + 64 + 32 + 4 * 32
    # Tables of positions and kinds are looked up and stay frozen; the norm beside them is trained.
    assert parameters(0, True) == 2 * 32
    assert parameters(4, True) == parameters(4, False) == 32 * len(task.labels)
    # 2·m·n·k of six projections and of the two products of attention, over 2 × 8 tokens.
    flops = 2 * 16 * (4 * 32 * 32 + 2 * 32 * 64) + 2 * (2 * 2 * 8 * 8 * 32)
    assert manifest.shapes[0].graphs["layer"].flops == flops
    assert all(check.delegated["torch"] == 1 and check.deviation["torch"] <= 1e-4 for check in manifest.checks)
    assert any("lowering layer 2x8 to torch" in step for step in steps)


def test_what_is_trained_can_be_chosen(checkpoint: Path, task: Task, tmp_path: Path) -> None:
    def trained(name: str, train: str, freeze: str = "") -> set[str]:
        target = Target(["torch"], [2], [8], train=[train], freeze=[freeze])
        bundle = export_bundle(str(checkpoint), {task.form: task}, target, tmp_path / name)
        return {tensor.name for tensor in bundle.manifest.tensors if tensor.trainable}

    assert trained("norms", "*LayerNorm.weight", "embeddings.*") == {
        f"encoder.layer.{n}.{part}output.LayerNorm.weight" for n in range(3) for part in ("", "attention.")
    }
    with raises("export.nothing-to-train", "--train"):
        trained("none", "embeddings.word_embeddings.weight")


def damaged(checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoint, tmp_path / "copy"))


def test_models_that_cannot_be_exported(checkpoint: Path, task: Task, tmp_path: Path) -> None:
    def refused(
        kind: str, *named: object, model: object = checkpoint, engines: tuple[str, ...] = ("torch",), length: int = 8
    ) -> None:
        with raises(kind, *named):
            export_bundle(str(model), {task.form: task}, Target(engines, [2], [length]), tmp_path / "b")

    refused("model.no-folder", "'./nowhere'", model="./nowhere")
    refused("export.unknown-engine", "'onnx'", engines=("onnx",))
    refused("export.too-long", "32 tokens", "--max-length", length=33)
    copy = damaged(checkpoint, tmp_path)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "hidden_act": "mish"}))
    refused("model.unsupported-activation", "'mish'", "gelu", model=copy)
    (copy / "config.json").write_text(json.dumps({**config, "position_embedding_type": "relative_key"}))
    refused("model.unsupported-variant", "position_embedding_type = 'relative_key'", model=copy)
    (copy / "config.json").write_text(json.dumps({**config, "model_type": "squeezebert"}))
    known = ("bert, ", "gpt2, ", "llama, ", "opt, ", "qwen2, qwen3, roberta", "docs/families.md")
    refused("model.unsupported-type", "'squeezebert'", *known, model=copy)
    (copy / "config.json").write_text(json.dumps({**config, "model_type": "none-such"}))
    refused("model.config-damaged", copy / "config.json", model=copy)
    (copy / "config.json").write_text(json.dumps({**config, "model_type": "t5"}))
    refused("model.config-damaged", copy / "config.json", model=copy)
    (copy / "config.json").write_text(json.dumps(config))
    tensors = load_file(copy / "model.safetensors")
    extra = {**tensors, "encoder.layer.0.adapter.down.weight": torch.zeros(2, 2)}
    save_file(extra, copy / "model.safetensors", metadata={"format": "pt"})
    refused("model.extra-tensors", "'bert'", "'encoder.layer.0.adapter", "merge adapters", model=copy)
    tensors.pop("encoder.layer.1.output.dense.weight")
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    refused("model.tensor-missing", "'encoder.layer.1.output.dense.weight'", "'bert'", model=copy)
    (copy / "model.safetensors").write_bytes(b"torn")
    refused("model.no-weights", "save_pretrained", model=copy)
    (tmp_path / "b").symlink_to("nowhere")
    refused("export.output-exists", "--out")
    (tmp_path / "b").unlink()
    (tmp_path / "b").mkdir()
    refused("export.output-exists", "--out")


def test_a_folder_appears_whole_and_takes_nobody_elses_place(tmp_path: Path) -> None:
    """Also where another process makes the same one meanwhile, or something has the name that it had before."""
    out, other = tmp_path / "new" / "bundle", tmp_path / "new" / "bundle.partial"
    other.mkdir(parents=True)
    (other / "mine").touch()
    with raises("export.output-exists", "--out"), appearing(out) as late:
        (late / "file").write_text("two")
        with appearing(out) as first:
            (first / "file").write_text("one")
            assert not out.exists()
    assert (out / "file").read_text() == "one"
    assert stat.S_IMODE(out.stat().st_mode) == stat.S_IMODE(other.stat().st_mode)
    assert sorted(path.name for path in out.parent.iterdir()) == ["bundle", "bundle.partial"]
    with raises("export.output-exists", "--out"), appearing(tmp_path / "b"):
        (tmp_path / "b").mkdir()
    (tmp_path / "b").rmdir()
    with raises("export.output-exists", "--out"), appearing(tmp_path / "new2" / ".."):
        pass
    with appearing(tmp_path / ("\N{GRINNING FACE}" * 63)):  # no file system takes a longer name
        pass
    for out in (tmp_path / "b", tmp_path / "above" / "it" / "b"):
        with suppress(KeyboardInterrupt), appearing(out):
            raise KeyboardInterrupt
    assert not any(tmp_path.glob("*b*"))


def test_a_checkpoint_without_a_usable_tokenizer(checkpoint: Path, task: Task, tmp_path: Path) -> None:
    copy = damaged(checkpoint, tmp_path)
    (copy / "tokenizer.json").write_text("{}")
    with raises("model.tokenizer-damaged", "tokenizer.json"):
        export_bundle(str(copy), {task.form: task}, Target(["torch"], [2], [8]), tmp_path / "b")
    (copy / "tokenizer.json").unlink()
    with raises("model.tokenizer-unloadable", "save_pretrained"):
        export_bundle(str(copy), {task.form: task}, Target(["torch"], [2], [8]), tmp_path / "b")


def test_padding_that_a_tokenizer_brings_is_not_read(checkpoint: Path, task: Task, tmp_path: Path) -> None:
    """all-MiniLM-L6-v2's tokenizer pads every text to 128 tokens; the labels' descriptions must not be padded so."""
    padding = damaged(checkpoint, tmp_path)
    tokenizer = Tokenizer.from_file(str(padding / "tokenizer.json"))
    tokenizer.enable_padding(length=16)
    tokenizer.enable_truncation(3)
    tokenizer.save(str(padding / "tokenizer.json"))
    target = Target(["torch"], [2], [8])
    found = export_bundle(str(padding), {task.form: task}, target, tmp_path / "padding")
    expected = export_bundle(str(checkpoint), {task.form: task}, target, tmp_path / "plain")
    np.testing.assert_array_equal(found.weights.view("labels"), expected.weights.view("labels"))


def test_names_of_old_checkpoints(checkpoint: Path, task: Task, tmp_path: Path) -> None:
    """gamma and beta in norms, as google-bert/bert-base-uncased has them."""
    old = damaged(checkpoint, tmp_path)
    tensors = load_file(old / "model.safetensors")
    renamed = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in tensors.items()
    }
    save_file(renamed, old / "model.safetensors", metadata={"format": "pt"})
    target = Target(["torch"], [2], [8])
    bundle = export_bundle(str(old), {task.form: task}, target, tmp_path / "old")
    assert bundle.identity == export_bundle(str(checkpoint), {task.form: task}, target, tmp_path / "new").identity
    write_checkpoint(Replica(bundle), tmp_path / "out")
    assert load_file(tmp_path / "out" / "model.safetensors").keys() == renamed.keys()


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
    logits = 20 * pooled @ load_file(tmp_path / "out" / "labels.safetensors")["labels"].T
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
    with raises("export.other-source", "--source"):
        write_checkpoint(replica, tmp_path / "out", str(copy))
    with raises("export.no-source", "--source"):
        write_checkpoint(replica, tmp_path / "out", "./nowhere")
    with raises("export.no-source", "--source"):
        write_checkpoint(replica, tmp_path / "out", "m" * 5000)
    assert not (tmp_path / "out").exists()
    with raises("export.output-exists", "--out"):
        write_checkpoint(replica, tmp_path)


@pytest.mark.parametrize("missing", ["hash", "config"])
def test_a_bundle_that_does_not_say_what_it_came_from(
    bundle_folder: Path, checkpoint: Path, tmp_path: Path, missing: str
) -> None:
    copy = Path(shutil.copytree(bundle_folder, tmp_path / "bundle"))
    record = json.loads((copy / "manifest.json").read_text())
    del record["model"][missing]
    (copy / "manifest.json").write_text(json.dumps(record))
    with raises("export.unknown-source", copy, "export it again"):
        write_checkpoint(Replica(Bundle(copy)), tmp_path / "out", str(checkpoint))


def test_the_way_back_names_no_file_that_is_not_there(checkpoint: Path, task: Task, tmp_path: Path) -> None:
    copy = damaged(checkpoint, tmp_path)
    config = json.loads((copy / "config.json").read_text())
    (copy / "model.safetensors").rename(copy / "model.fp16.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(Checkpoint(str(checkpoint)).files, "model.fp16.safetensors")}
    (copy / "other.safetensors.index.json").write_text(json.dumps(index))
    for named in ("model.fp16.safetensors", "other.safetensors.index.json"):
        (copy / "config.json").write_text(json.dumps({**config, "transformers_weights": named}))
        bundle = export_bundle(str(copy), {task.form: task}, Target(["torch"], [1], [8]), tmp_path / f"b-{named}")
        out = tmp_path / f"out-{named}"
        write_checkpoint(Replica(bundle), out)
        assert "transformers_weights" not in json.loads((out / "config.json").read_text())
        assert not list(out.glob("*.index.json"))
        assert AutoModel.from_pretrained(out).config.model_type == config["model_type"]


def test_a_checkpoint_in_shards_and_sixteen_bits(tmp_path: Path) -> None:
    """Read tensor by tensor from its shards, trained in float32, and written back as one file that says so."""
    whole = make_checkpoint(tmp_path / "whole", "llama-untied")
    model = AutoModelForCausalLM.from_pretrained(whole, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(whole / name, tmp_path / "shards")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    target = Target(["torch"], [2], [16])
    bundle = export_bundle(str(tmp_path / "shards"), load_task("sst2"), target, tmp_path / "b")
    replica = Replica(bundle)
    index = next(i for i, spec in enumerate(bundle.manifest.tensors) if "down_proj.weight" in spec.name)
    replica.trainable[index][0, 0, 0] += 1e-4  # far below bfloat16's spacing
    write_checkpoint(replica, tmp_path / "out")
    back = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert back.dtype == torch.float32
    states = back.state_dict()
    for name, tensor in model.state_dict().items():
        expected = tensor.float()
        if name == bundle.manifest.tensors[index].source:
            expected[0, 0] += 1e-4
        torch.testing.assert_close(states[name], expected, rtol=0, atol=0)


def test_nothing_hides_a_number_that_is_none(
    checkpoint: Path, task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(graph: TorchGraph, inputs: object, outputs: list[np.ndarray]) -> None:
        for out in outputs:
            out[...] = np.nan

    monkeypatch.setattr(TorchGraph, "run", broken)
    with raises("export.deviates", "inf", "'embedding'"):
        export_bundle(str(checkpoint), {task.form: task}, Target(["torch"], [2], [8]), tmp_path / "b")


def test_damaged_checkpoints_are_one_sentence(tmp_path: Path) -> None:
    whole = make_checkpoint(tmp_path / "whole", "llama-untied")
    model = AutoModelForCausalLM.from_pretrained(whole)
    shards = tmp_path / "shards"
    model.save_pretrained(shards, max_shard_size="20KB")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(whole / name, shards)
    index = json.loads((shards / "model.safetensors.index.json").read_text())

    def refused(kind: str, named: object = shards) -> None:
        with raises(kind, named):
            export_bundle(str(shards), load_task("sst2"), Target(["torch"], [1], [16]), tmp_path / "b")

    some = sorted(set(index["weight_map"].values()))
    gone = {**index["weight_map"], "model.norm.weight": "gone.safetensors"}
    (shards / "model.safetensors.index.json").write_text(json.dumps({**index, "weight_map": gone}))
    refused("model.no-weights", shards / "gone.safetensors")
    for text in ("[]", '{"weight_map": 3}', '{"weight_map": []}'):
        (shards / "model.safetensors.index.json").write_text(text)
        refused("model.no-weights")
    (shards / "model.safetensors.index.json").write_text(json.dumps(index))
    config = json.loads((shards / "config.json").read_text())
    (shards / "config.json").write_text(json.dumps({**config, "num_attention_heads": 3}))
    refused("model.config-damaged", "config.json")
    (shards / "config.json").write_text(json.dumps({**config, "head_dim": 6}))
    refused("export.transformers-fails", "config.json")
    (shards / "config.json").write_text(json.dumps(config))
    (shards / some[-1]).write_bytes((shards / some[-1]).read_bytes()[:-100])
    refused("model.tensor-unreadable", shards / some[-1])


def test_the_way_back_refuses_another_config(bundle: Bundle, checkpoint: Path, tmp_path: Path) -> None:
    copy = damaged(checkpoint, tmp_path)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "num_attention_heads": 2}))
    with raises("export.other-source", "--source"):
        write_checkpoint(Replica(bundle), tmp_path / "out", str(copy))
    (copy / "config.json").write_bytes((checkpoint / "config.json").read_bytes())
    (copy / "tokenizer.json").unlink()
    write_checkpoint(Replica(bundle), tmp_path / "out", str(copy))
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (bundle.folder / "tokenizer.json").read_bytes()
