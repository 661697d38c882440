"""Your own model family: DistilBERT, which the project does not come with. docs/families.md explains the parts.

Run: python examples/own_family.py distilbert-base-uncased intents bundle
"""

import sys

from torch import Tensor

import fedspzo
from fedspzo.export.checkpoint import Checkpoint
from fedspzo.export.modules.operators import activation, attend, padding_bias, split_heads
from fedspzo.export.modules.stage_module import StageModule, Weights, affine

WORDS, PLACES = "embeddings.word_embeddings.weight", "embeddings.position_embeddings.weight"
HEAD = tuple(f"vocab_{part}.{kind}" for part in ("transform", "layer_norm", "projector") for kind in ("weight", "bias"))


class Embedding(StageModule):
    def compute(self, weights: Weights, *feeds: Tensor) -> Tensor:
        rows = feeds[0] + weights[PLACES][:, : feeds[0].shape[1]]
        return weights.layer_norm("embeddings.LayerNorm", rows, 1e-12)


class Layer(StageModule):
    """Attention and two linear maps, each with a norm after it."""

    feeds = ("hidden", "mask")

    def __init__(self, checkpoint: Checkpoint) -> None:
        names = [*(f"attention.{name}_lin" for name in ("q", "k", "v", "out")), "ffn.lin1", "ffn.lin2"]
        super().__init__(affine(*names, "sa_layer_norm", "output_layer_norm"))
        self.heads, self.act = checkpoint.config.n_heads, activation(checkpoint.config.activation)

    def compute(self, weights: Weights, *feeds: Tensor) -> Tensor:
        hidden, mask = feeds
        query, key, value = (split_heads(weights.linear(f"attention.{x}_lin", hidden), self.heads) for x in "qkv")
        mixed = weights.linear("attention.out_lin", attend(query, key, value, padding_bias(mask)))
        hidden = weights.layer_norm("sa_layer_norm", hidden + mixed, 1e-12)
        inner = weights.linear("ffn.lin2", self.act(weights.linear("ffn.lin1", hidden)))
        return weights.layer_norm("output_layer_norm", hidden + inner, 1e-12)


class DistilBert:  # a fedspzo.Family
    MODEL_TYPES = ("distilbert",)

    def describe(self, checkpoint: Checkpoint, length: int) -> fedspzo.Architecture:
        config, prefix = checkpoint.config, checkpoint.prefix(WORDS)
        embedding, layer = Embedding([PLACES, *affine("embeddings.LayerNorm")]), Layer(checkpoint)
        places = (f"{prefix}transformer.layer.{number}." for number in range(config.n_layers))
        layers = (fedspzo.Stage(f"layer {number}", "layer", layer, place) for number, place in enumerate(places))
        return fedspzo.Architecture(
            stages=(fedspzo.Stage("embedding", "embedding", embedding, prefix), *layers), final=None, ignored=HEAD,
            forms=("similarity",), limit=config.max_position_embeddings, tables=[prefix + PLACES],
            embedding=prefix + WORDS, output=prefix + WORDS,
        )  # fmt: skip


if __name__ == "__main__":
    print(fedspzo.export_model(sys.argv[1], sys.argv[2], sys.argv[3], families=[DistilBert()]).folder)
