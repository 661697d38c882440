"""BERT-like encoders without a language-model head: classification by similarity to the labels' descriptions.

The logits are the cosine similarities, times a temperature, between the mean-pooled sentence and each label's
description as the original weights embed it; those embeddings are frozen, so no new head is learnt.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from device_runtime.bundle import StageSpec
from device_runtime.errors import ExportError
from device_runtime.task import Task
from export.checkpoint import Checkpoint
from export.families import Graph, Network, derived, frozen, trainable
from export.operators import attention, cross_entropy, linear, mean_pool
from export.quiet import quiet

MODEL_TYPES = ("bert",)
TEMPERATURE = 20.0

_WORDS = "embeddings.word_embeddings.weight"
_EMBEDDING_NORM = ("embeddings.LayerNorm.weight", "embeddings.LayerNorm.bias")
_LAYER_NORMS = ("attention.output.LayerNorm", "output.LayerNorm")
_LINEARS = (
    "attention.self.query",
    "attention.self.key",
    "attention.self.value",
    "attention.output.dense",
    "intermediate.dense",
    "output.dense",
)
_LAYER_TENSORS = tuple(f"{name}.{part}" for name in (*_LINEARS, *_LAYER_NORMS) for part in ("weight", "bias"))


class Embedding(torch.nn.Module):
    """Gathered word rows [B, S, H] + positions [1, S, H] + the first token type, normalised."""

    def __init__(self, epsilon: float) -> None:
        super().__init__()
        self.epsilon = epsilon

    def forward(self, rows: Tensor, positions: Tensor, kind: Tensor, scale: Tensor, shift: Tensor) -> tuple[Tensor]:
        return (F.layer_norm(rows + positions + kind, scale.shape, scale, shift, self.epsilon),)


class Layer(torch.nn.Module):
    """One post-norm transformer layer: hidden [B, S, H], mask [B, S], tensors in ``_LAYER_TENSORS``' order."""

    def __init__(self, heads: int, epsilon: float) -> None:
        super().__init__()
        self.heads, self.epsilon = heads, epsilon

    def forward(self, hidden: Tensor, mask: Tensor, *weights: Tensor) -> tuple[Tensor]:
        query, key, value, merge, widen, narrow, norm1, norm2 = zip(weights[::2], weights[1::2], strict=True)
        mixed = attention(linear(hidden, *query), linear(hidden, *key), linear(hidden, *value), mask, self.heads)
        hidden = F.layer_norm(hidden + linear(mixed, *merge), norm1[0].shape, *norm1, self.epsilon)
        inner = F.gelu(linear(hidden, *widen))
        return (F.layer_norm(hidden + linear(inner, *narrow), norm2[0].shape, *norm2, self.epsilon),)


class Head(torch.nn.Module):
    """Losses [B] and logits [B, L] from hidden [B, S, H], mask, one-hot targets [B, L] and label vectors [1, H, L]."""

    def forward(self, hidden: Tensor, mask: Tensor, targets: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        logits = TEMPERATURE * torch.bmm(mean_pool(hidden, mask).unsqueeze(0), labels)[0]
        return cross_entropy(logits, targets), logits


def build(checkpoint: Checkpoint, task: Task, batch: int, length: int) -> Network:
    """See :class:`export.families.Family`."""
    config = checkpoint.config
    if config.hidden_act != "gelu":
        raise ExportError(f"{checkpoint.name} has the activation '{config.hidden_act}'; supported is gelu")
    if length > config.max_position_embeddings:
        raise ExportError(
            f"{checkpoint.name} takes at most {config.max_position_embeddings} tokens; choose a smaller --max-length"
        )
    width, labels = config.hidden_size, len(task.labels)
    prefix = checkpoint.prefix(_WORDS)
    positions = prefix + "embeddings.position_embeddings.weight"
    kinds = prefix + "embeddings.token_type_embeddings.weight"
    layers = [
        [f"encoder.layer.{number}.{name}" for name in _LAYER_TENSORS] for number in range(config.num_hidden_layers)
    ]
    tensors = {
        _WORDS: frozen(checkpoint, _WORDS, prefix + _WORDS),
        "positions": derived("positions", (1, length, width), lambda: checkpoint.tensor(positions)[None, :length]),
        "token_type": derived("token_type", (1, 1, width), lambda: checkpoint.tensor(kinds)[None, :1]),
        **{name: frozen(checkpoint, name, prefix + name) for name in _EMBEDDING_NORM},
        **{name: trainable(checkpoint, name, prefix + name) for names in layers for name in names},
        "labels": derived("labels", (1, width, labels), lambda: embed_descriptions(checkpoint, task).T[None]),
    }
    indices = {name: index for index, name in enumerate(tensors)}
    return Network(
        feeds={"rows": (batch, length, width), "mask": (batch, length), "targets": (batch, labels)},
        embedding=_WORDS,
        tensors=tensors,
        graphs={
            "embedding": Graph(Embedding(config.layer_norm_eps), ("rows",)),
            "layer": Graph(Layer(config.num_attention_heads, config.layer_norm_eps), ("hidden", "mask")),
            "head": Graph(Head(), ("hidden", "mask", "targets")),
        },
        stages=(
            StageSpec(
                "embedding", "embedding", tuple(indices[n] for n in ("positions", "token_type", *_EMBEDDING_NORM))
            ),
            *(
                StageSpec(f"layer {number}", "layer", tuple(indices[name] for name in names))
                for number, names in enumerate(layers)
            ),
            StageSpec("head", "head", (indices["labels"],)),
        ),
    )


def embed_descriptions(checkpoint: Checkpoint, task: Task) -> np.ndarray:
    """Unit vectors float32 [L, H]: the labels' descriptions as the original model embeds them."""
    with quiet():
        tokenizer = AutoTokenizer.from_pretrained(checkpoint.folder)
        model = AutoModel.from_pretrained(checkpoint.folder, dtype=torch.float32).eval()
    tokens = tokenizer([label.description for label in task.labels], return_tensors="pt", padding=True)
    with torch.inference_mode():
        hidden = model(**tokens).last_hidden_state
        return np.asarray(mean_pool(hidden, tokens["attention_mask"].to(torch.float32)).numpy())
