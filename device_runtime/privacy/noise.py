"""Noise that a device adds to its words: the discrete Gaussian, drawn exactly, from the operating system's randomness.

No floating point takes part: rounded draws of a continuous Gaussian give away more than the mathematics says
(Mironov 2012). The sampler is that of Canonne, Kamath and Steinke, arXiv 2004.00010: rejection from a discrete Laplace
distribution, which is made of coins whose odds are powers of e, each flipped by whole numbers alone.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable

import numpy as np

#: Gives a whole number below its argument, all equally likely.
Below = Callable[[int], int]


def add_noise(words: np.ndarray, variance: int, below: Below = secrets.randbelow) -> np.ndarray:
    """Words, int64 of shape (words,), with a discrete Gaussian of this variance on each: int64 of the same shape."""
    return words + np.array([draw(variance, below) for _ in words], np.int64)


def draw(variance: int, below: Below = secrets.randbelow) -> int:
    """A whole number z with a probability proportional to exp(−z²/2·variance)."""
    width = math.isqrt(variance) + 1
    while True:
        candidate = _draw_laplace(width, below)
        # exp(−(|z| − variance/width)²/2·variance), as a fraction
        if _flip((abs(candidate) * width - variance) ** 2, 2 * variance * width**2, below):
            return candidate


def _draw_laplace(width: int, below: Below) -> int:
    """z with a probability proportional to exp(−|z|/width)."""
    while True:
        part = below(width)
        if not _flip(part, width, below):
            continue
        whole = 0
        while _flip(1, 1, below):
            whole += 1
        size = part + width * whole
        negative = below(2)
        if size or not negative:  # or else zero would be twice as likely
            return -size if negative else size


def _flip(numerator: int, denominator: int, below: Below) -> bool:
    """True with probability exp(−numerator/denominator)."""
    while numerator > denominator:
        if not _flip(1, 1, below):
            return False
        numerator -= denominator
    tosses = 1
    while below(denominator * tosses) < numerator:
        tosses += 1
    return tosses % 2 == 1
