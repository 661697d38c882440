"""What is taken of the scores of all tokens, slice by slice: neither the table nor all scores need be there at once."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np


def answer_losses(parts: Iterable[np.ndarray], own: np.ndarray, mask: np.ndarray, out: np.ndarray) -> np.ndarray:
    """The mean over an answer's tokens of -log p(token), in ``out`` [B].

    Args:
        parts: for each slice of the tokens log Σ exp of their scores, [B, A]; each may be overwritten once the next is
            asked for.
        own: scores [B, A] of the answers' tokens.
        mask: [B, A], 1 for the answers' tokens and 0 for what lies behind them.
    """
    total = np.full(own.shape, -np.inf)
    for part in parts:
        np.logaddexp(total, part, out=total)
    out[...] = ((total - own) * mask).sum(axis=1) / mask.sum(axis=1)
    return out


def stack(parts: Iterable[np.ndarray], out: np.ndarray) -> np.ndarray:
    """The scores [rows, B] of slices of the tokens, one below the other in ``out`` [tokens, B]."""
    start = 0
    for part in parts:
        out[start : start + len(part)] = part
        start += len(part)
    return out
