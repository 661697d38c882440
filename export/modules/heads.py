"""Heads: from the last activations to a loss for each example, for each form of task.

None has new weights: what a label is compared with is taken from the model, and trained as the model's own tensors are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fedspzo.device_runtime.model.manifest import TensorSpec
from fedspzo.export.modules.operators import cross_entropy, log_sum_exp, score_tokens, soft_cap
from fedspzo.export.modules.pooling import pool
from fedspzo.export.modules.stage_module import ADDED, StageModule, Weights
from fedspzo.export.sentence import Pooling

#: (logits, targets), both [B, L] → losses [B].
Loss = Callable[[Tensor, Tensor], Tensor]

#: Factor on the cosine similarities.
TEMPERATURE = 20.0

#: Tensors that the heads take in addition to those of the model's final module.
LABELS, LABEL_BIAS, TABLE = "labels", "label_bias", "table"


def is_stacked(spec: TensorSpec) -> bool:
    """Whether each branch that shares a run of a graph has its own: what is trained of adapters and labels."""
    return spec.trainable and (spec.name.endswith(ADDED) or spec.name == LABELS)


@dataclass(frozen=True)
class Scoring:
    """What a model does to the scores of tokens.

    Attributes:
        divisor: they are divided by this (Granite).
        cap: then bent to lie within ± this (Gemma 2); None to leave them.
    """

    divisor: float = 1.0
    cap: float | None = None

    def apply(self, scores: Tensor) -> Tensor:
        """Scores as the model gives them."""
        return soft_cap(scores if self.divisor == 1.0 else scores / self.divisor, self.cap)


#: Most models leave them.
PLAIN = Scoring()


class LabelWords(StageModule):
    """Losses [B] and logits [B, L] of the label words at one position: the vocabulary is never scored in full.

    Takes one-hot ``select`` [B, 1, S], the loss's ``targets`` [B, L], the words' rows of the output table [G, W, L],
    for each of G branches that go through together, and their biases [L].
    """

    feeds = ("hidden", "select", "targets")

    def __init__(self, final: StageModule, scoring: Scoring = PLAIN, loss: Loss = cross_entropy) -> None:
        super().__init__([*final.tensors, LABELS, LABEL_BIAS])
        self.final, self.scoring, self.loss = final, scoring, loss

    def compute(self, weights: Weights, *feeds: Tensor) -> tuple[Tensor, ...]:
        hidden, select, targets = feeds
        at = self.final.compute(weights, torch.bmm(select, hidden))
        assert isinstance(at, Tensor)
        logits = self.scoring.apply(_products(at, weights[LABELS]) + weights[LABEL_BIAS])
        return self.loss(logits, targets), logits


class Similarity(StageModule):
    """Losses [B] and logits [B, L] by the similarity of the pooled text to the labels' vectors [G, W, L].

    The vectors start as the labels' descriptions as the original model embeds them: products with them are cosines
    then. What makes a vector of the last hidden states stays frozen.
    """

    feeds = ("hidden", "mask", "targets")

    def __init__(self, pooling: Pooling, final: StageModule | None, loss: Loss = cross_entropy) -> None:
        """``final`` is the last norm of a decoder, whose hidden states have gone through it."""
        super().__init__([*(final.tensors if final else ()), *pooling.tensors, LABELS])
        self.pooling, self.final, self.loss = pooling, final, loss

    def compute(self, weights: Weights, *feeds: Tensor) -> tuple[Tensor, ...]:
        hidden, mask, targets = feeds
        if self.final is not None:
            at = self.final.compute(weights, hidden)
            assert isinstance(at, Tensor)
            hidden = at
        vectors = pool(self.pooling, weights, hidden, mask)
        logits = TEMPERATURE * _products(vectors, weights[LABELS])
        return self.loss(logits, targets), logits


def _products(vectors: Tensor, labels: Tensor) -> Tensor:
    """Products [B, L] of a vector of each example [B, …, W] with the labels' [G, W, L] of its branch."""
    groups, width, count = labels.shape
    return torch.bmm(vectors.reshape(groups, -1, width), labels).reshape(-1, count)


class AnswerLoss(StageModule):
    """Losses [B]: the mean over an answer's tokens of -log p(token | what is before it).

    Takes one-hot ``select`` [B, A, S], the tokens' own rows ``answer_rows`` [B, A, W], ``answer_mask`` [B, A] and the
    output table [1, V, W].
    """

    feeds = ("hidden", "select", "answer_rows", "answer_mask")

    def __init__(self, final: StageModule, scoring: Scoring = PLAIN) -> None:
        super().__init__([*final.tensors, TABLE])
        self.final, self.scoring = final, scoring

    def compute(self, weights: Weights, *feeds: Tensor) -> tuple[Tensor, ...]:
        hidden, select, rows, mask = feeds
        at = self.final.compute(weights, torch.bmm(select, hidden))
        assert isinstance(at, Tensor)
        scores = self.scoring.apply(score_tokens(weights[TABLE], at, select))
        missing = log_sum_exp(scores, dim=1).reshape(mask.shape) - self.scoring.apply((at * rows).sum(dim=-1))
        return ((missing * mask).sum(dim=1) / mask.sum(dim=1),)


class NextToken(StageModule):
    """Scores [V, B] of the token after the last, which one-hot ``last`` [B, 1, S] points at."""

    feeds = ("hidden", "last")

    def __init__(self, final: StageModule, scoring: Scoring = PLAIN) -> None:
        super().__init__([*final.tensors, TABLE])
        self.final, self.scoring = final, scoring

    def compute(self, weights: Weights, *feeds: Tensor) -> tuple[Tensor, ...]:
        hidden, last = feeds
        at = self.final.compute(weights, torch.bmm(last, hidden))
        assert isinstance(at, Tensor)
        return (self.scoring.apply(score_tokens(weights[TABLE], at, last)[0]),)
