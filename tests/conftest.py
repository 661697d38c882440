"""A small BERT with random weights, made from its config, and its bundle for all engines; data for it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel

from device_runtime.bundle import Bundle
from device_runtime.data import DataStore
from device_runtime.plan import Block, Plan
from device_runtime.task import Label, Task
from export.pipeline import export_bundle
from export.target import Target

WORDS = [
    "wake",
    "me",
    "at",
    "six",
    "play",
    "some",
    "music",
    "stop",
    "the",
    "alarm",
    "call",
    "mum",
    "now",
    "loud",
    "song",
    "new",
    "list",
    "please",
]
BATCH, LENGTH = 4, 12


@pytest.fixture(scope="session")
def task() -> Task:
    labels = (Label("alarm", "wake me"), Label("music", "play some music"), Label("call", "call mum"))
    return Task("requests", "similarity", "please {text}", labels)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved checkpoint: 3 layers 32 wide, a WordPiece tokenizer of a few words."""
    folder = tmp_path_factory.mktemp("model") / "tiny-bert"
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokens), hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=32, initializer_range=0.3,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    tokenizer = Tokenizer(models.WordPiece({token: i for i, token in enumerate(tokens)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]", "unk_token": "[UNK]"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="session")
def bundle_folder(checkpoint: Path, task: Task, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model's bundle, lowered to every engine."""
    folder = tmp_path_factory.mktemp("bundle") / "tiny"
    target = Target(["litert", "executorch", "torch"], [BATCH], [LENGTH])
    export_bundle(str(checkpoint), {task.form: task}, target, folder)
    return folder


@pytest.fixture(scope="session")
def bundle(bundle_folder: Path) -> Bundle:
    return Bundle(bundle_folder)


@pytest.fixture(scope="session")
def store() -> DataStore:
    """Twenty random examples of the tiny model's task."""
    random = np.random.default_rng(1)
    lengths = random.integers(4, LENGTH + 1, 20, np.int32)
    ids = random.integers(5, 5 + len(WORDS), (20, LENGTH), np.int32)
    ids[np.arange(LENGTH) >= lengths[:, None]] = 0
    return DataStore(ids, lengths, np.zeros(20, np.int32), random.integers(0, 3, 20, np.int32))


@pytest.fixture(scope="session")
def make_plan() -> Callable[..., Plan]:
    """A plan for the tiny model, with what a test cares about changed."""

    def make(**changes: object) -> Plan:
        settings: dict[str, object] = {
            "round": 1, "base_seed": 7, "shared": True, "distribution": "rademacher", "steps": 1, "examples": BATCH,
            "epsilon": 1e-3, "blocks": (Block(3, 1, 0.25, 1e-3), Block(5, 4, 1.0, 1e-2)), "deadline": 60.0,
            "digest": False,
        }  # fmt: skip
        return Plan(**{**settings, **changes})  # type: ignore[arg-type]

    return make


@pytest.fixture(scope="session")
def write_examples() -> Callable[[Path, int], Path]:
    """Write a JSON-lines file of valid examples."""

    def write(path: Path, count: int) -> Path:
        texts: Sequence[tuple[str, str]] = [("wake me at six", "alarm"), ("play a song", "music"), ("call mum", "call")]
        records = [
            {"text": f"{text} {WORDS[i % len(WORDS)]}", "label": label}
            for i in range(count)
            for text, label in [texts[i % 3]]
        ]
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        return path

    return write
