"""A canary audit: what somebody who inserts a device's result or leaves it out can prove of the noise.

What it finds is a lower bound on ε. One above the stated ε would refute the noise or its accounting.
"""

from __future__ import annotations

import math

import numpy as np

from fedspzo.device_runtime.privacy.noise import add_noise


def observe_canary(canary: np.ndarray, variance: int, shares: int, trials: int) -> tuple[np.ndarray, np.ndarray]:
    """Sums of devices' noise with and without a canary, as their projections on it.

    All other results are known to the attacker, so that they are as good as zero.

    Args:
        canary: int64 [width], the words that are inserted.
        variance: of each device's share.
        shares: devices that add noise.

    Returns:
        The projections with the canary and those without it, float64 [trials] each.
    """

    def total() -> np.ndarray:
        words = np.zeros_like(canary)
        for _ in range(shares):
            words = add_noise(words, variance)
        return words

    direction = canary / np.linalg.norm(canary)
    inside = np.array([(total() + canary) @ direction for _ in range(trials)])
    return inside, np.array([total() @ direction for _ in range(trials)])


def lower_bound(inside: np.ndarray, outside: np.ndarray, delta: float, confidence: float = 0.95) -> float:
    """The ε that trials prove with a confidence, by Clopper and Pearson's bounds on both kinds of error.

    The threshold is chosen on the first half of the trials, and judged on the second.

    Args:
        inside, outside: what the attacker sees with and without the canary; larger speaks for it.
    """
    half = len(inside) // 2
    choices = np.quantile(np.concatenate([inside[:half], outside[:half]]), np.linspace(0.02, 0.98, 49))
    found = [_bound(inside[:half], outside[:half], threshold, delta, confidence) for threshold in choices]
    threshold = choices[int(np.argmax(found))]
    return _bound(inside[half:], outside[half:], threshold, delta, confidence)


def _bound(inside: np.ndarray, outside: np.ndarray, threshold: float, delta: float, confidence: float) -> float:
    error = (1 - confidence) / 4  # four bounds, all of which hold with the confidence
    hits, alarms = int((inside > threshold).sum()), int((outside > threshold).sum())
    least_hits, most_hits = clopper_pearson(hits, len(inside), error)
    least_alarms, most_alarms = clopper_pearson(alarms, len(outside), error)
    ratios = [(least_hits - delta) / most_alarms, (1 - most_alarms - delta) / (1 - least_hits)]
    ratios += [(least_alarms - delta) / most_hits, (1 - most_hits - delta) / (1 - least_alarms)]
    return max(0.0, *(math.log(ratio) for ratio in ratios if ratio > 0))


def clopper_pearson(hits: int, tries: int, error: float) -> tuple[float, float]:
    """Bounds of a rate, each of which is wrong with at most a probability."""

    def tail(rate: float, counts: range) -> float:
        """The probability of these numbers of hits."""
        log = math.lgamma(tries + 1)
        return math.fsum(
            math.exp(
                log - math.lgamma(k + 1) - math.lgamma(tries - k + 1) + k * math.log(rate)
                + (tries - k) * math.log1p(-rate)
            )
            for k in counts
        )  # fmt: skip

    def solve(counts: range, rising: bool) -> float:
        low, high = 0.0, 1.0
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (middle, high) if (tail(middle, counts) < error) == rising else (low, middle)
        return (low + high) / 2

    least = 0.0 if hits == 0 else solve(range(hits, tries + 1), rising=True)
    most = 1.0 if hits == tries else solve(range(hits + 1), rising=False)
    return least, most
