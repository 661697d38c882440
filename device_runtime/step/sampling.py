"""How a generated token is chosen by the scores of all tokens."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedspzo.device_runtime.errors import DataError


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen: the likeliest, or one that is drawn.

    Attributes:
        temperature: scores are divided by it before one is drawn by its probability; 0 takes the likeliest token.
        top_k: how many of the likeliest tokens are drawn from; 0 for all.
        top_p: of these, only the likeliest that together have this probability, at least one.
        seed: of the draws; the same seed gives the same answer.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises DataError when something is out of range."""
        if not 0.0 <= self.temperature < float("inf") or self.top_k < 0 or not 0.0 < self.top_p <= 1.0:
            raise DataError(
                "option.sampling",
                f"an answer cannot be drawn with temperature {self.temperature}, top-k {self.top_k} and top-p"
                f" {self.top_p}; give a temperature and a top-k of at least 0, and a top-p above 0 and at most 1",
            )
        if not 0 <= self.seed < 1 << 64:
            raise DataError("option.sampling-seed", f"the seed is {self.seed}; give a number from 0 to 2^64 − 1")

    def choose(self, scores: np.ndarray, text: int, position: int) -> int:
        """A token.

        Args:
            scores: float32 [tokens].
            text, position: number of the text and place of the token in it, which draws differ by.
        """
        if self.temperature == 0.0:
            return int(scores.argmax())
        order = np.argsort(-scores, kind="stable")[: self.top_k or None]
        if self.top_p < 1.0:
            shares = np.exp((scores[order].astype(np.float64) - float(scores[order[0]])) / self.temperature)
            order = order[: 1 + int(np.searchsorted(np.cumsum(shares / shares.sum())[:-1], self.top_p))]
        return int(order[np.argmax(scores[order] / self.temperature + self._noise(len(scores), text, position)[order])])

    def _noise(self, tokens: int, text: int, position: int) -> np.ndarray:
        """Gumbel noise, float64 [tokens]: the largest of scores with it is a draw by their softmax.

        Each token has its own, whatever the scores are, so that models that differ little draw the same.
        """
        random = np.random.Philox(key=np.array([self.seed, text], np.uint64), counter=[0, position, 0, 0])
        uniform = ((random.random_raw(tokens) >> np.uint64(11)) + 0.5) / (1 << 53)
        return np.asarray(-np.log(-np.log(uniform)))
