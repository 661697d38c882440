"""Whether samples are independent draws of the standard normal distribution, at a stated rate of false alarms."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np

#: How often draws that are right are said to be wrong, at most: all checks together.
FALSE_ALARMS = 1e-6
_CHECKS, _BINS = 4, 20
#: Standard errors that a check on both sides allows.
_REACH = -NormalDist().inv_cdf(FALSE_ALARMS / _CHECKS / 2)


def misfits(samples: np.ndarray, lag: int = 1) -> set[str]:
    """What of some samples (float64 [samples], thousands) is not so: their mean, variance, shape or independence.

    Args:
        lag: apart from each other are those that may be copies.
    """
    count = len(samples)
    edges = [NormalDist().inv_cdf(each / _BINS) for each in range(1, _BINS)]
    found = np.bincount(np.searchsorted(edges, samples), minlength=_BINS)
    shape = float(((found - count / _BINS) ** 2).sum() * _BINS / count)
    alike = float(samples[lag:] @ samples[:-lag]) / math.sqrt(count - lag)
    checks = {
        "mean": abs(samples.mean()) * math.sqrt(count) < _REACH,
        "variance": _chi_squared(count, -_REACH) < (samples**2).sum() < _chi_squared(count, _REACH),
        "shape": shape < _chi_squared(_BINS - 1, _REACH),
        "independence": abs(alike) < _REACH,
    }
    return {name for name, right in checks.items() if not right}


def _chi_squared(freedom: int, deviations: float) -> float:
    """The quantile that is as likely as so many standard deviations of a Gaussian (Wilson and Hilferty)."""
    width = 2 / (9 * freedom)
    return float(freedom * (1 - width + deviations * math.sqrt(width)) ** 3)
