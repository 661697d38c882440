"""DeBERTa-v2 and v3 (arXiv 2006.03654): scores also compare contents with relative positions, rows that stay frozen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DebertaV2Config

from fedspzo.export.checkpoint import Checkpoint
from fedspzo.export.families import ENCODER_FORMS, Architecture, Stage, require
from fedspzo.export.families.bert import KINDS, NORM, POSITIONS, WORDS, Layer, LayerNames, Transform
from fedspzo.export.modules.operators import by_distance, padding_bias, products_by_group, split_heads
from fedspzo.export.modules.stage_module import StageModule, Weights, affine
from fedspzo.export.settings import Settings, damaged

MODEL_TYPES = ("deberta-v2",)

_PROJECT, _ROWS, _SHARED_NORM = "embeddings.embed_proj", "rel_embeddings.weight", "LayerNorm"
_NAMES = LayerNames(*(f"attention.self.{name}_proj" for name in ("query", "key", "value")))
_IGNORED = (
    *affine("pooler.dense", "mask_predictions.dense", "mask_predictions.LayerNorm", "mask_predictions.classifier"),
    *("lm_predictions.lm_head.bias", "cls.predictions.bias", "cls.predictions.decoder.weight", "position_ids"),
    *("cls.predictions.decoder.bias", "position_embeddings.weight"),
    *affine("lm_predictions.lm_head.dense", "lm_predictions.lm_head.LayerNorm"),
)


class Embedding(StageModule):
    """Gathered rows [B, S, W] + what the config adds to them, projected where W is not H, and normalised."""

    def __init__(self, tables: Sequence[str], project: bool, epsilon: float) -> None:
        super().__init__([*tables, *affine(NORM), *(affine(_PROJECT, bias=False) if project else [])])
        self.tables, self.project, self.epsilon = tables, project, epsilon

    def compute(self, weights: Weights, *feeds: Tensor) -> Tensor:
        (x,) = feeds
        for name in self.tables:
            x = x + (weights[name][:, : x.shape[1]] if name == POSITIONS else weights[name][:, :1])
        return weights.layer_norm(NORM, weights.linear(_PROJECT, x) if self.project else x, self.epsilon)


class DisentangledLayer(Layer):
    """A layer whose scores compare contents with contents, with positions (c2p), and positions with contents (p2c)."""

    rows: Tensor
    rows_back: Tensor

    def __init__(self, config: DebertaV2Config, settings: Settings, length: int) -> None:
        types = [kind for kind in ("c2p", "p2c") if kind in (config.pos_att_type or [])]
        positions = dict(zip(("c2p", "p2c"), ("key", "query"), strict=True))
        kept = types if config.relative_attention else []
        name = "attention.self.{}_proj" if getattr(config, "share_att_key", False) else "attention.self.pos_{}_proj"
        self.maps = {kind: name.format(positions[kind]) for kind in kept}
        others = [name for name in self.maps.values() if name not in _NAMES]
        norms = settings.get("norm_rel_ebd", str, "none").lower().split("|")
        self.normed = "layer_norm" in map(str.strip, norms)
        shared = [_ROWS, *(affine(_SHARED_NORM) if self.normed else [])] if kept else []
        super().__init__(
            config.num_attention_heads, config.hidden_act, config.layer_norm_eps, _NAMES, [*affine(*others), *shared]
        )
        self.shared = shared
        self.factor = (config.hidden_size // self.heads * (1 + len(types))) ** -0.5
        rows = _distances(settings, length) if kept else torch.zeros(0, 0)
        self.register_buffer("rows", rows, persistent=False)
        self.register_buffer("rows_back", rows.flip(0), persistent=False)

    def bias(self, weights: Weights, mask: Tensor, query: Tensor, key: Tensor) -> Tensor:
        scores = padding_bias(mask)
        for kind, name in self.maps.items():
            places = self.rows if kind == "c2p" else self.rows_back  # a key looks back from where its query looks on
            at = split_heads(weights.linear(name, self._positions(weights, places)), self.heads)
            found = by_distance(products_by_group(query if kind == "c2p" else key, at))
            scores = scores + (found if kind == "c2p" else found.transpose(2, 3)) * float(self.factor or 1.0)
        return scores

    def _positions(self, weights: Weights, places: Tensor) -> Tensor:
        """The rows [groups, distances, width] of the positions, normalised where the model does it."""
        rows = torch.bmm(places[None], weights[_ROWS])
        if self.normed:
            norm, bias = (weights[name][0] for name in affine(_SHARED_NORM))
            rows = F.layer_norm(rows, norm.shape, norm, bias, self.epsilon)
        return rows.expand(weights.groups, -1, -1)


def _span(settings: Settings) -> tuple[int, int, int]:
    """Buckets of distances, -1 for one a distance; the largest distance; and how many kinds there are on each side."""
    most = settings.get("max_relative_positions", int, -1)
    most = most if most >= 1 else settings.get("max_position_embeddings", int, 512)
    buckets = settings.get("position_buckets", int, -1)
    return buckets, most, buckets if buckets > 0 else most


def _distances(settings: Settings, length: int) -> Tensor:
    """One-hot [2 · length − 1, rows]: which row of positions is for which distance."""
    from transformers.models.deberta_v2.modeling_deberta_v2 import build_relative_position  # slow to load

    buckets, most, span = _span(settings)
    text = torch.zeros(length, 1)
    found = (build_relative_position(text, text, buckets, most)[0] + span).clamp(0, 2 * span - 1)
    return F.one_hot(torch.cat([found[1:, 0].flip(0), found[0]]), 2 * span).float()


def describe(checkpoint: Checkpoint, length: int) -> Architecture:
    """See :class:`fedspzo.export.families.Family`."""
    config, prefix = cast("DebertaV2Config", checkpoint.config), checkpoint.prefix(WORDS)
    require(checkpoint, conv_kernel_size=0, attention_head_size=config.hidden_size // config.num_attention_heads)
    head = "cls.predictions." if config.legacy else "lm_predictions.lm_head."
    dense, norm = ("transform.dense", "transform.LayerNorm") if config.legacy else ("dense", "LayerNorm")
    bias = next((name for name in (f"{head}decoder.bias", f"{head}bias") if name in checkpoint.files), "")
    transform = Transform(dense, norm, config.hidden_act, config.layer_norm_eps)
    there = {POSITIONS: config.position_biased_input, KINDS: config.type_vocab_size > 0}
    tables = [name for name in there if there[name]]
    project = getattr(config, "embedding_size", config.hidden_size) != config.hidden_size
    settings = checkpoint.settings()
    if config.relative_attention and config.pos_att_type:
        (buckets, _, span), (rows, *_) = _span(settings), checkpoint.shape(f"{prefix}encoder.{_ROWS}")
        if buckets == 1 or 2 * span != rows:
            raise damaged(settings.path, f"it has {span} distances on each side, and the weights {rows} rows for them")
    layer = DisentangledLayer(config, settings, length)
    shared = {name: f"{prefix}encoder.{name}" for name in layer.shared}
    return Architecture(
        forms=ENCODER_FORMS if bias else ENCODER_FORMS[1:],
        limit=config.max_position_embeddings,
        embedding=prefix + WORDS,
        stages=(
            Stage("embedding", "embedding", Embedding(tables, project, config.layer_norm_eps), prefix),
            *(
                Stage(f"layer {number}", "layer", layer, f"{prefix}encoder.layer.{number}.", shared)
                for number in range(config.num_hidden_layers)
            ),
        ),
        final=Stage("head", "head", transform, head) if bias else None,
        output=prefix + WORDS if config.tie_word_embeddings or not config.legacy else f"{head}decoder.weight",
        output_bias=bias,
        tables=[*(prefix + name for name in tables), *shared.values()],
        ignored=_IGNORED if layer.shared else (*_IGNORED, _ROWS, *(f"encoder.{n}" for n in affine(_SHARED_NORM))),
    )
