"""An export is what transformers makes of the same folder, or it is refused: weights, settings, the whole bundle."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub.utils import filter_repo_objects
from models import ENCODERS, make_checkpoint, wide
from refusals import raises
from safetensors.torch import load_file, save_file
from sweep import load_reference, save_random, scores
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM

from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.model.manifest import MANIFEST
from fedspzo.device_runtime.replica.weights import Replica
from fedspzo.export.check import layered
from fedspzo.export.checkpoint import Checkpoint
from fedspzo.export.families import Architecture, find_family, llama
from fedspzo.export.materialize import write_checkpoint
from fedspzo.export.network.adapters import LowRank
from fedspzo.export.network.target import Target
from fedspzo.export.network.tokens import with_special_tokens
from fedspzo.export.pipeline import export_bundle
from fedspzo.export.tasks import load_task
from fedspzo.export.weights import UNWANTED, WANTED
from fedspzo.tables import format_comparison

TARGET = Target(["torch"], [2], [32])
_SIZES = {
    "vocab_size": 48,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "tie_word_embeddings": True,
}
_SIZES |= {
    "intermediate_size": 24,
    "max_position_embeddings": 32,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
}
#: Model type → what its config says beyond these sizes, the token table, and the head's own table.
KINDS: dict[str, tuple[dict[str, Any], str, str]] = {
    "llama": ({}, "model.embed_tokens.weight", "lm_head.weight"),
    "qwen3": ({"head_dim": 8, "num_key_value_heads": 2}, "model.embed_tokens.weight", "lm_head.weight"),
    "gemma2": ({"head_dim": 8, "num_key_value_heads": 2}, "model.embed_tokens.weight", "lm_head.weight"),
    "granite": ({}, "model.embed_tokens.weight", "lm_head.weight"),
    "gpt2": ({}, "transformer.wte.weight", "lm_head.weight"),
    "gpt_neox": ({}, "gpt_neox.embed_in.weight", "embed_out.weight"),
    "opt": ({"ffn_dim": 24, "word_embed_proj_dim": 16}, "model.decoder.embed_tokens.weight", "lm_head.weight"),
    "bert": ({}, "bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"),
    "roberta": ({}, "roberta.embeddings.word_embeddings.weight", "lm_head.decoder.weight"),
    "distilbert": ({"dim": 16}, "distilbert.embeddings.word_embeddings.weight", "vocab_projector.weight"),
    "electra": ({"embedding_size": 16}, "electra.embeddings.word_embeddings.weight", "generator_lm_head.weight"),
    "modernbert": ({}, "model.embeddings.tok_embeddings.weight", "decoder.weight"),
}


def save_kind(folder: Path, kind: str, **changes: Any) -> Path:
    save_random(folder, AutoConfig.for_model(kind, **{**_SIZES, **KINDS[kind][0], **changes}))
    return folder


def edit(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def configure(folder: Path, **settings: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))


def apart(folder: Path) -> float:
    """How far the network's scores are from those of transformers' model of the folder."""
    reference, _ = load_reference(folder)
    checkpoint = Checkpoint(str(folder))
    ids, mask = torch.arange(5, 14)[None], torch.ones(1, 9)
    found = scores(checkpoint, find_family(checkpoint).describe(checkpoint, 9), ids, mask)
    with torch.inference_mode():
        return float((found - reference(input_ids=ids, attention_mask=mask.long()).logits).abs().max())


@pytest.mark.parametrize("kind", KINDS)
def test_a_tied_table_is_found_and_another_head_is_kept(kind: str, tmp_path: Path) -> None:
    _, table, head = KINDS[kind]
    folder = save_kind(tmp_path / "m", kind)
    whole = load_file(folder / "model.safetensors")
    assert (table in whole, head in whole) == (True, False)
    alone = {**whole, head: whole[table]}
    del alone[table]
    save_file(alone, folder / "model.safetensors", {"format": "pt"})
    assert apart(folder) < 1e-4, "the table under its other name"
    other = {**whole, head: 0.3 * torch.randn(whole[table].shape, generator=torch.Generator().manual_seed(1))}
    for weights in (other, {**whole, head: whole[table].clone()}):
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
        assert apart(folder) < 1e-4, "both are stored"


def test_files_that_count_are_those_that_transformers_loads(tmp_path: Path) -> None:
    folder = save_kind(tmp_path / "m", "llama")
    model = AutoModelForCausalLM.from_pretrained(folder)
    shards = tmp_path / "shards"
    model.save_pretrained(shards, max_shard_size="4KB")
    index = json.loads((shards / "model.safetensors.index.json").read_text())
    weight_map: dict[str, str] = index["weight_map"]
    assert len(set(weight_map.values())) > 2

    def write(names: dict[str, str]) -> None:
        (shards / "model.safetensors.index.json").write_text(json.dumps({**index, "weight_map": names}))

    def same(at: Path) -> None:
        loaded, checkpoint = AutoModelForCausalLM.from_pretrained(at).state_dict(), Checkpoint(str(at))
        for name in checkpoint.files:
            np.testing.assert_array_equal(checkpoint.tensor(name), loaded[name].numpy(), name)
        assert set(loaded) - set(checkpoint.files) == {"lm_head.weight"}

    first, *others = sorted(set(weight_map.values()))
    same(shards)
    write({**dict.fromkeys(weight_map, first), **dict(zip(weight_map, [first, *others], strict=False))})
    same(shards)  # tensors are where they are, whatever the index says of them
    write({**weight_map, "model.layers.7.mlp.gate_proj.weight": first})
    same(shards)
    (tmp_path / "m" / "model.safetensors.index.json").write_text('{"weight_map": {"x": "gone.safetensors"}}')
    same(tmp_path / "m")  # a single file counts before an index
    write({**weight_map, "model.norm.weight": "model-00009-of-00003.safetensors"})
    with raises("model.no-weights", shards / "model-00009-of-00003.safetensors"):
        _ = Checkpoint(str(shards)).files
    shutil.move(folder / "model.safetensors", folder / "model.fp16.safetensors")
    (folder / "model.safetensors.index.json").unlink()
    with raises("model.no-weights", "model.fp16.safetensors"):
        _ = Checkpoint(str(folder)).files
    configure(folder, transformers_weights="model.fp16.safetensors")
    same(folder)


def test_what_is_taken_from_the_hub() -> None:
    wanted = [
        *("config.json", "generation_config.json", "model.safetensors", "model.safetensors.index.json"),
        *("model-00001-of-00002.safetensors", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
        *("added_tokens.json", "vocab.txt", "vocab.json", "merges.txt", "tokenizer.model", "spiece.model"),
        *("chat_template.jinja", "chat_template.json", "additional_chat_templates/tool_use.jinja", "modules.json"),
        *("sentence_bert_config.json", "config_sentence_transformers.json", "1_Pooling/config.json"),
        *("2_Dense/config.json", "2_Dense/model.safetensors", "2_Dense/pytorch_model.bin", "3_Normalize/config.json"),
        *("0_Transformer/config.json", "0_Transformer/model.safetensors", "0_Transformer/tokenizer.json"),
    ]
    unwanted = [
        *("README.md", "LICENSE", ".gitattributes", "pytorch_model.bin", "pytorch_model-00001-of-00002.bin"),
        *("consolidated.safetensors", "consolidated.00.pth", "original/params.json", "original/tokenizer.model"),
        *("original/model.safetensors", "onnx/model.onnx", "onnx/config.json", "openvino/openvino_model.xml"),
        *("model.fp16.safetensors", "model.fp16-00001-of-00002.safetensors", "model.bf16.safetensors.index.json"),
        *("tf_model.h5", "flax_model.msgpack", "rust_model.ot", "model-q4.gguf", "training_args.bin", "params.json"),
        *("checkpoint-500/model.safetensors", "runs/events", "0_Transformer/pytorch_model.bin", "modeling_own.py"),
        *("metal/model.bin", "adapter/adapter_config.json", "fp16/model.safetensors", "eval/results.json"),
    ]
    patterns = {"allow_patterns": [*WANTED], "ignore_patterns": [*UNWANTED]}
    assert list(filter_repo_objects([*wanted, *unwanted], **patterns)) == wanted


def test_leftovers_of_a_quantisation(tmp_path: Path) -> None:
    folder = save_kind(tmp_path / "m", "llama")
    for settings, named in (
        ({"quant_method": "gptq", "bits": 4}, "gptq"),
        ({"quant_method": "fp8"}, "fp8"),
        ({"load_in_4bit": True, "quant_method": "bitsandbytes"}, "bitsandbytes"),
        ({"bits": 4}, "quantization_config"),
    ):
        configure(folder, quantization_config=settings)
        with raises("model.quantised", str(folder), named, "before quantisation"):
            Checkpoint(str(folder))
    configure(folder, quantization_config={"quant_method": "none-such"})
    assert apart(folder) < 1e-4, "transformers knows no such method, and ignores it"


@pytest.mark.parametrize(
    ("ends", "stop"), [(None, "</s>"), (2, "</s>"), ([0, 2], "</s>"), ([3, 1], "<unk>"), ([], "</s>"), ([999], "</s>")]
)
def test_an_answer_ends_where_the_model_ends_it(ends: int | list[int] | None, stop: str, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "m", "llama-3.2")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "eos_token": "</s>", "unk_token": "<unk>"}))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    task = with_special_tokens(Checkpoint(str(folder)), load_task("squad")["generation"])
    assert task.stop == stop


@pytest.mark.parametrize("content", [b"", b"\xff", b"[" * 100_000, b"[]", b'{"eos_token_id": {"a": 1}}'])
def test_settings_of_generation_that_are_none_are_left_out(content: bytes, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "m", "llama-3.2")
    (folder / "generation_config.json").write_bytes(content)
    checkpoint = Checkpoint(str(folder))
    assert with_special_tokens(checkpoint, load_task("squad")["generation"]).stop == checkpoint.end_token


class Otherwise:
    """A family that computes LLaMA with another epsilon, and if asked lowers texts."""

    MODEL_TYPES = ("llama",)

    def __init__(self, lower: bool) -> None:
        self.lower = lower

    def describe(self, checkpoint: Checkpoint, length: int) -> Architecture:
        if self.lower:
            checkpoint.texts.lower()
        else:
            checkpoint.config.rms_norm_eps = 0.01
        return llama.describe(checkpoint, length)


def test_what_no_family_knows_of_is_refused_all_the_same(tmp_path: Path) -> None:
    folder = str(make_checkpoint(tmp_path / "m", "llama-3.2"))
    task = load_task("sst2")
    named = ("in transformers", "on torch", "--no-check")
    with raises("export.differs-from-transformers", folder, "'the film was good", *named):
        export_bundle(folder, task, TARGET, tmp_path / "b", families=[Otherwise(lower=False)])
    with raises("export.tokens-differ", folder, "in transformers", "--no-check"):
        export_bundle(folder, task, TARGET, tmp_path / "b", families=[Otherwise(lower=True)])
    assert not (tmp_path / "b").exists()
    bundle = export_bundle(folder, task, TARGET, tmp_path / "b", families=[Otherwise(lower=False)], check=False)
    assert "not compared with transformers: as asked" in format_comparison(bundle.manifest)


def test_the_comparison_in_the_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a quantised base on a model that is loaded a layer at a time; the way back gives its own head."""
    folder = make_checkpoint(tmp_path / "m", "llama-3.2", **wide("llama-3.2"))

    def other(weights: dict[str, torch.Tensor]) -> None:
        weights["lm_head.weight"] = 0.3 * torch.randn(weights["model.embed_tokens.weight"].shape)

    edit(folder, other)
    monkeypatch.setattr(layered, "_WHOLE", 0)
    target = replace(TARGET, adapters=LowRank(4, 8.0), weights="int8")
    bundle = export_bundle(str(folder), load_task("sst2"), target, tmp_path / "b")
    found = bundle.manifest.comparison
    assert found is not None
    assert found.reference.startswith("transformers 5")
    assert found.texts >= 3
    assert 0 < found.deviation["torch"] < 1e-4 < (found.rounding or 0) < 1
    assert "rounding the weights moves them by" in format_comparison(bundle.manifest)
    identity = bundle.identity
    record = json.loads((bundle.folder / MANIFEST).read_text())
    del record["comparison"]
    (bundle.folder / MANIFEST).write_text(json.dumps(record))
    old = Bundle(bundle.folder)
    assert old.manifest.comparison is None
    assert old.identity == identity
    assert format_comparison(old.manifest) == "not compared with transformers"
    write_checkpoint(Replica(old), tmp_path / "out")
    models = [AutoModelForCausalLM.from_pretrained(at).state_dict() for at in (folder, tmp_path / "out")]
    torch.testing.assert_close(models[0]["lm_head.weight"], models[1]["lm_head.weight"], rtol=0, atol=0)


@pytest.mark.parametrize("name", ["bert", "roberta", "llama-untied", "gpt2", "opt-350m"])
def test_a_layer_at_a_time_gives_what_the_whole_gives(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_checkpoint(tmp_path / "m", name)
    checkpoint, ids = Checkpoint(str(folder)), torch.arange(5, 20)[None]
    whole, _ = load_reference(folder)
    monkeypatch.setattr(layered, "_WHOLE", 0)
    factory = AutoModelForMaskedLM if name in ENCODERS else AutoModelForCausalLM
    model = layered.load_model(checkpoint, factory, {})
    with torch.inference_mode():
        for _ in range(2):
            torch.testing.assert_close(model(ids).logits, whole(ids).logits, rtol=0, atol=0)
    held = {parameter.untyped_storage().nbytes() for parameter in model.parameters() if parameter.ndim > 1}
    assert held == {4}, "nothing stays in memory"
