"""Heads: from the last activations to a loss for each example, for each form of task.

None has new weights: what a label is compared with is taken from the model, and trained as the model's own tensors are.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedspzo.device_runtime.model.manifest import AT, TensorSpec
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
#: See :class:`LabelWords`: what is steep for the labels' vectors, and the products of the model's own with it.
LABEL_AXIS, LABEL_ALONG = "label_axis", "label_along"


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

    Texts have most of their last hidden states h in common, and the loss is steep along that: steps that it allows
    are short for all the rest. So rows W that were W₀ count as W₀ + (W − W₀)(1 − aaᵀ), with an axis a [W] and the
    products W₀a [L]; what is learned along a is learned more slowly. Where a is zero the rows are themselves.
    """

    feeds = ("hidden", "select", "targets")

    def __init__(self, final: StageModule, scoring: Scoring = PLAIN, loss: Loss = cross_entropy) -> None:
        super().__init__([*final.tensors, LABELS, LABEL_BIAS, LABEL_AXIS, LABEL_ALONG])
        self.final, self.scoring, self.loss = final, scoring, loss

    def compute(self, weights: Weights, *feeds: Tensor) -> tuple[Tensor, ...]:
        hidden, select, targets = feeds
        at = self.final.compute(weights, torch.bmm(select, hidden))
        assert isinstance(at, Tensor)
        axis = weights[LABEL_AXIS]
        along = (at * axis).sum(dim=-1, keepdim=True)
        products = _products(at - along * axis, weights[LABELS]) + along[:, 0] * weights[LABEL_ALONG]
        logits = self.scoring.apply(products + weights[LABEL_BIAS])
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


class TokenScores(StageModule):
    """A head that scores all tokens by the output table [1, V, W]; :class:`Before` and :class:`Slice` are its parts.

    Attributes:
        places: name of the feed that says which positions are scored, one-hot [B, A, S] or zero.
        before: feeds of what comes before the scores.
    """

    places: ClassVar[str]
    before: ClassVar[tuple[str, ...]]

    def __init__(self, final: StageModule, scoring: Scoring = PLAIN) -> None:
        super().__init__([*final.tensors, TABLE])
        self.final, self.scoring = final, scoring

    def at(self, weights: Weights, hidden: Tensor, places: Tensor) -> Tensor:
        """What the table's rows are multiplied with [B, A, W]."""
        at = self.final.compute(weights, torch.bmm(places, hidden))
        assert isinstance(at, Tensor)
        return at

    @abstractmethod
    def prepare(self, weights: Weights, *feeds: Tensor) -> tuple[Tensor, ...]:
        """What comes before the scores: :meth:`at`, and what else the whole takes."""

    @abstractmethod
    def score(self, table: Tensor, at: Tensor, places: Tensor) -> Tensor:
        """What the whole takes of the scores of a table's rows."""


class Before(StageModule):
    """A head that scores all tokens, up to its scores."""

    def __init__(self, head: TokenScores) -> None:
        super().__init__([name for name in head.tensors if name != TABLE])
        self.head, self.feeds, self.scale = head, head.before, head.scale

    def compute(self, weights: Weights, *feeds: Tensor) -> tuple[Tensor, ...]:
        return self.head.prepare(weights, *feeds)


class Slice(StageModule):
    """What a head takes of the scores of some of the table's rows."""

    def __init__(self, head: TokenScores) -> None:
        super().__init__([TABLE])
        self.head, self.feeds = head, (AT, head.places)

    def compute(self, weights: Weights, *feeds: Tensor) -> Tensor:
        return self.head.score(weights[TABLE], *feeds)


class AnswerLoss(TokenScores):
    """Losses [B]: the mean over an answer's tokens of -log p(token | what is before it).

    Takes one-hot ``select`` [B, A, S], the tokens' own rows ``answer_rows`` [B, A, W], ``answer_mask`` [B, A] and the
    output table [1, V, W].
    """

    places, before = "select", ("hidden", "select", "answer_rows")
    feeds = (*before, "answer_mask")

    def prepare(self, weights: Weights, *feeds: Tensor) -> tuple[Tensor, ...]:
        hidden, select, rows = feeds
        at = self.at(weights, hidden, select)
        return at, self.scoring.apply((at * rows).sum(dim=-1))

    def score(self, table: Tensor, at: Tensor, places: Tensor) -> Tensor:
        return log_sum_exp(self.scoring.apply(score_tokens(table, at, places)), dim=1).reshape(at.shape[:2])

    def compute(self, weights: Weights, *feeds: Tensor) -> tuple[Tensor, ...]:
        *before, mask = feeds
        at, own = self.prepare(weights, *before)
        missing = self.score(weights[TABLE], at, feeds[1]) - own
        return ((missing * mask).sum(dim=1) / mask.sum(dim=1),)


class NextToken(TokenScores):
    """Scores [V, B] of the token after the last, which one-hot ``last`` [B, 1, S] points at."""

    places, before = "last", ("hidden", "last")
    feeds = before

    def prepare(self, weights: Weights, *feeds: Tensor) -> tuple[Tensor, ...]:
        return (self.at(weights, *feeds),)

    def score(self, table: Tensor, at: Tensor, places: Tensor) -> Tensor:
        return self.scoring.apply(score_tokens(table, at, places)[0])

    def compute(self, weights: Weights, *feeds: Tensor) -> tuple[Tensor, ...]:
        (at,) = self.prepare(weights, *feeds)
        return (self.score(weights[TABLE], at, feeds[1]),)
