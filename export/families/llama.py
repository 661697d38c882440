"""LLaMA-like decoders (LLaMA 3.2, SmolLM, Mistral, Qwen 2 and 3): rotary positions, grouped-query attention, SwiGLU.

Families whose tensors have the same names are described with what is here: their files say how they differ.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from transformers import PretrainedConfig

from fedspzo.device_runtime.errors import ExportError
from fedspzo.export.checkpoint import Checkpoint
from fedspzo.export.families import DECODER_FORMS, Architecture, Stage, require_causal
from fedspzo.export.modules.decoder import Attention, DecoderLayer, FeedForward, Final, Norm, Scaled
from fedspzo.export.modules.heads import PLAIN, Scoring
from fedspzo.export.modules.rotary import longest_text, rotations

MODEL_TYPES = ("llama", "mistral", "ministral", "qwen2", "qwen3")

_HEAD = "lm_head.weight"
#: Words of ``layer_types`` for attention to all tokens before, and to those within a window.
FULL, SLIDING = "full_attention", "sliding_attention"


class Kind(NamedTuple):
    """What layers of one model may differ in; those of a kind share their module.

    Attributes:
        window: how many tokens each token sees, itself included; None for all before it.
        layer_type: the config's word for it, "" where it has none.
        turned: whether the layer has rotary positions.
    """

    window: int | None = None
    layer_type: str = ""
    turned: bool = True

    @property
    def graph(self) -> str:
        """Name of the graph of such layers."""
        return ("sliding" if self.window else "layer") + ("" if self.turned else "-unturned")


def describe(checkpoint: Checkpoint, length: int) -> Architecture:
    """See :class:`fedspzo.export.families.Family`."""
    config = checkpoint.config
    name, norm = config.model_type, Norm(config.rms_norm_eps)
    bias = name in ("llama", "qwen3") and config.attention_bias
    attention = Attention(
        config.num_attention_heads, config.num_key_value_heads, head_size(config),
        bias=bias or name == "qwen2", output_bias=bias, norm=norm if name == "qwen3" else None,
    )  # fmt: skip
    feed_forward = FeedForward(config.hidden_act, bias=name == "llama" and config.mlp_bias)
    kinds = {"llama": [Kind()], "mistral": [Kind(window(checkpoint, config))]}.get(name)
    rotation = rotations(config, checkpoint.name, length)
    return assemble(
        checkpoint,
        kinds * config.num_hidden_layers if kinds else kinds_by_type(checkpoint, config),
        lambda kind: DecoderLayer(attention, feed_forward, norm, length, rotation=rotation, window=kind.window),
        Final(norm),
    )


def head_size(config: PretrainedConfig) -> int:
    """Width of a head."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def window(checkpoint: Checkpoint, config: PretrainedConfig, wanted: bool = False) -> int | None:
    """The config's ``sliding_window``. Raises ExportError when it is no window, or none is there and one is wanted."""
    found = getattr(config, "sliding_window", None)
    if (found is None and wanted) or (found is not None and found < 1):
        raise ExportError(
            "model.no-window",
            f"{checkpoint.name} has layers with a window of tokens, and its sliding_window is {found}; correct"
            " config.json",
        )
    return found


def kinds_by_type(checkpoint: Checkpoint, config: PretrainedConfig) -> list[Kind]:
    """The kinds of layers by the config's ``layer_types``. Raises ExportError when there is an unknown one."""
    types = list(config.layer_types)[: config.num_hidden_layers]
    other = next((kind for kind in types if kind not in (FULL, SLIDING)), None)
    if other is not None or len(types) < config.num_hidden_layers:
        raise ExportError(
            "model.unsupported-variant",
            f"{checkpoint.name} has the unsupported layer_types '{other or types}'; choose a model whose layers are"
            f" each '{FULL}' or '{SLIDING}'",
        )
    return [Kind(window(checkpoint, config, True) if kind == SLIDING else None, kind) for kind in types]


def assemble(
    checkpoint: Checkpoint,
    kinds: Sequence[Kind],
    layer: Callable[[Kind], DecoderLayer],
    final: Final,
    *,
    embedding: Scaled | None = None,
    scoring: Scoring = PLAIN,
    config: PretrainedConfig | None = None,
    unused: Sequence[str] = (),
) -> Architecture:
    """An architecture with LLaMA's names of tensors.

    Args:
        checkpoint: the model.
        kinds: of its layers.
        layer: makes the module of a kind.
        final: what comes after the layers.
        embedding: what comes before them.
        scoring: what the model does to the scores of tokens.
        config: the part of the config that is about text, where it is only a part.
        unused: names of the model's other parts.
    """
    config = config or checkpoint.config
    require_causal(checkpoint, config)
    prefix = checkpoint.prefix("embed_tokens.weight")
    head = next((name for name in checkpoint.files if f".{name}".endswith(f".{_HEAD}")), _HEAD)
    layers = {kind: layer(kind) for kind in dict.fromkeys(kinds)}
    return Architecture(
        forms=DECODER_FORMS,
        limit=longest_text(config) or config.max_position_embeddings,
        embedding=prefix + "embed_tokens.weight",
        stages=(
            *([Stage("embedding", "embedding", embedding, prefix)] if embedding else []),
            *(
                Stage(f"layer {number}", kind.graph, layers[kind], f"{prefix}layers.{number}.")
                for number, kind in enumerate(kinds)
            ),
        ),
        final=Stage("head", "head", final, prefix),
        output=checkpoint.scoring_table(f"{prefix}embed_tokens.weight", head),
        ignored=("rotary_emb.inv_freq", _HEAD),
        unused=tuple(unused),
        scoring=scoring,
    )
