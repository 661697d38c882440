"""ModernBERT (arXiv 2412.13663): rotary positions, windows in most layers, GeGLU, norms first and mostly no biases."""

from __future__ import annotations

from torch import Tensor

from fedspzo.export.checkpoint import Checkpoint
from fedspzo.export.families import ENCODER_FORMS, Architecture, Stage
from fedspzo.export.families.bert import Transform
from fedspzo.export.families.llama import Kind, kinds_by_type
from fedspzo.export.modules.decoder import Attention, FeedForward, Final, Norm
from fedspzo.export.modules.operators import attend, padding_bias, rotate, window_bias
from fedspzo.export.modules.rotary import rotations
from fedspzo.export.modules.stage_module import StageModule, Weights

MODEL_TYPES = ("modernbert",)

_WORDS = "embeddings.tok_embeddings.weight"


class Layer(StageModule):
    """One layer; the model's first has no norm before its attention."""

    feeds = ("hidden", "mask")
    cosines: Tensor
    sines: Tensor
    far: Tensor | None

    def __init__(self, checkpoint: Checkpoint, norm: Norm, kind: Kind, first: bool, length: int) -> None:
        config = checkpoint.config
        heads, size = config.num_attention_heads, config.hidden_size // config.num_attention_heads
        bias = config.attention_bias
        self.attention = Attention(heads, heads, size, ("attn.Wqkv",), "attn.Wo", bias=bias, output_bias=bias)
        self.feed_forward = FeedForward(config.hidden_activation, ("mlp.Wi",), "mlp.Wo", bias=config.mlp_bias)
        self.norm, self.before = norm, "" if first else "attn_norm"
        super().__init__([*norm.tensors(self.before, "mlp_norm"), *self.attention.tensors, *self.feed_forward.tensors])
        cosines, sines = rotations(config, checkpoint.name, length, kind.layer_type)
        self.register_buffer("cosines", cosines, persistent=False)
        self.register_buffer("sines", sines, persistent=False)
        far = window_bias(length, kind.window) if kind.window else None
        self.register_buffer("far", far, persistent=False)

    def compute(self, weights: Weights, *feeds: Tensor) -> Tensor:
        hidden, mask = feeds
        query, key, value = self.attention.project(weights, self.norm.apply(weights, self.before, hidden))
        query, key = (rotate(x, self.cosines, self.sines) for x in (query, key))
        bias = padding_bias(mask) if self.far is None else padding_bias(mask) + self.far
        hidden = hidden + weights.linear(self.attention.output, attend(query, key, value, bias))
        return hidden + self.feed_forward.compute(weights, self.norm.apply(weights, "mlp_norm", hidden))


def describe(checkpoint: Checkpoint, length: int) -> Architecture:
    """See :class:`fedspzo.export.families.Family`."""
    config, prefix = checkpoint.config, checkpoint.prefix(_WORDS)
    norm = Norm(config.norm_eps, centred=True, bias=config.norm_bias)
    kinds = [(kind, number == 0) for number, kind in enumerate(kinds_by_type(checkpoint, config))]
    layers = {key: Layer(checkpoint, norm, *key, length) for key in dict.fromkeys(kinds)}
    has_head = "head.dense.weight" in checkpoint.files
    biases = (config.classifier_bias, config.norm_bias)
    transform = Transform("head.dense", "head.norm", config.classifier_activation, config.norm_eps, biases)
    return Architecture(
        forms=ENCODER_FORMS if has_head else ENCODER_FORMS[1:],
        limit=config.max_position_embeddings,
        embedding=prefix + _WORDS,
        stages=(
            Stage("embedding", "embedding", Final(norm, "embeddings.norm"), prefix),
            *(
                Stage(f"layer {number}", "first" if key[1] else key[0].graph, layers[key], f"{prefix}layers.{number}.")
                for number, key in enumerate(kinds)
            ),
            Stage("norm", "norm", Final(norm, "final_norm"), prefix),
        ),
        final=Stage("head", "head", transform, "") if has_head else None,
        output=checkpoint.scoring_table(prefix + _WORDS, "decoder.weight"),
        output_bias="decoder.bias" if config.decoder_bias else "",
        ignored=("decoder.weight",),
    )
