"""Your own model family: ERNIE, which the project does not come with. docs/families.md explains the parts.

Run: python examples/own_family.py nghuyong/ernie-2.0-base-en intents bundle
"""

import sys

from torch import Tensor

import fedspzo
from fedspzo.export.checkpoint import Checkpoint
from fedspzo.export.families.bert import Layer
from fedspzo.export.modules.stage_module import StageModule, Weights, affine

WORDS, PLACES = "embeddings.word_embeddings.weight", "embeddings.position_embeddings.weight"
KINDS = ("embeddings.token_type_embeddings.weight", "embeddings.task_type_embeddings.weight")
TRANSFORM = (f"cls.predictions.transform.{name}" for name in affine("dense", "LayerNorm"))
HEADS = (*affine("pooler.dense", "decoder"), "cls.predictions.bias", *TRANSFORM)


class Embedding(StageModule):
    """Words, positions, the first token type and, unlike in BERT, the first type of task."""

    def __init__(self, tables: list[str], epsilon: float) -> None:
        super().__init__([*tables, *affine("embeddings.LayerNorm")])
        self.tables, self.epsilon = tables, epsilon

    def compute(self, weights: Weights, *feeds: Tensor) -> Tensor:
        places, *kinds = (weights[name] for name in self.tables)
        rows = feeds[0] + places[:, : feeds[0].shape[1]]
        for kind in kinds:
            rows = rows + kind[:, :1]
        return weights.layer_norm("embeddings.LayerNorm", rows, self.epsilon)


class Ernie:  # a fedspzo.Family
    MODEL_TYPES = ("ernie",)

    def describe(self, checkpoint: Checkpoint, length: int) -> fedspzo.Architecture:
        config, prefix = checkpoint.config, checkpoint.prefix(WORDS)
        tables = [PLACES, *KINDS[: 2 if config.use_task_id else 1]]
        layer = Layer(config.num_attention_heads, config.hidden_act, config.layer_norm_eps)  # the same as BERT's
        places = (f"{prefix}encoder.layer.{number}." for number in range(config.num_hidden_layers))
        layers = (fedspzo.Stage(f"layer {number}", "layer", layer, place) for number, place in enumerate(places))
        embedding = fedspzo.Stage("embedding", "embedding", Embedding(tables, config.layer_norm_eps), prefix)
        return fedspzo.Architecture(
            stages=(embedding, *layers), final=None, ignored=HEADS, forms=("similarity",),
            limit=config.max_position_embeddings, tables=[prefix + table for table in tables],
            embedding=prefix + WORDS, output=prefix + WORDS,
        )  # fmt: skip


if __name__ == "__main__":
    print(fedspzo.export_model(sys.argv[1], sys.argv[2], sys.argv[3], families=[Ernie()]).folder)
