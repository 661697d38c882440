"""A small BERT with random weights, made from its config; its bundle for all engines; data for it.

PyTorch and the exporter are imported where they are needed: a device that runs its suite has neither.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from fedspzo.device_runtime.model.task import Label, Task

WORDS = (
    *("wake", "me", "at", "six", "play", "some", "music", "stop", "the", "alarm", "call", "mum", "now", "loud", "song"),
    *("new", "list", "please"),
)
BATCH, LENGTH = 4, 12
TASK = Task(
    "requests",
    "similarity",
    "please {text}",
    (Label("alarm", "wake me"), Label("music", "play some music"), Label("call", "call mum")),
)


def make_checkpoint(folder: Path) -> Path:
    """A saved checkpoint: 3 layers 32 wide, a WordPiece tokenizer of a few words."""
    import torch
    from transformers import BertConfig, BertModel

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


def make_bundle(checkpoint: Path, folder: Path) -> Path:
    """The model's bundle, lowered to every engine."""
    from fedspzo.export.network.target import Target
    from fedspzo.export.pipeline import export_bundle

    target = Target(["litert", "executorch", "torch"], [BATCH], [LENGTH])
    export_bundle(str(checkpoint), {TASK.form: TASK}, target, folder)
    return folder


def write_requests(path: Path, count: int) -> Path:
    """Write a JSON-lines file of valid examples."""
    texts: Sequence[tuple[str, str]] = [("wake me at six", "alarm"), ("play a song", "music"), ("call mum", "call")]
    records = [
        {"text": f"{text} {WORDS[i % len(WORDS)]}", "label": label}
        for i in range(count)
        for text, label in [texts[i % 3]]
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path
