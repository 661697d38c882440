"""How far a mean may be from what it estimates, by the spread of what it is the mean of."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def standard_error(values: Sequence[float] | np.ndarray, shares: Sequence[float] | None = None) -> float | None:
    """Of a mean m = Σ s·x of independent values: √(n/(n - 1) · Σ s²·(x - m)²), which is σ/√n where all shares are 1/n.

    Args:
        values: x, of shape [n].
        shares: s, which sum to 1; all alike where they are not given.

    Returns:
        None where fewer than two finite values show no spread.
    """
    found = np.asarray(values, np.float64)
    count = len(found)
    if count < 2 or not np.isfinite(found).all():
        return None
    weights = np.full(count, 1 / count) if shares is None else np.asarray(shares, np.float64)
    deviations = weights * (found - weights @ found)
    return math.sqrt(count / (count - 1) * float(deviations @ deviations))
