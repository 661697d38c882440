"""By how much two computations of one loss may differ in float32: bounds that follow from the arithmetic alone.

An operation on float32 is off by at most ``UNIT`` of its result. Engines and processors add in different orders: two
results of n operations, one after the other, differ by at most 2·λ·√n·UNIT, but for a probability of 2·exp(−λ²/2), as
roundings are as good as independent (Higham and Mary, SIAM J. Sci. Comput. 41, 2019).
"""

from __future__ import annotations

import math

UNIT = 2.0**-24
#: Operations one after the other on the way to a loss, at most: three layers of the tests' models have 330 each (sums
#: over 32 or 64 terms in six linear maps and two norms, over a head's 8, over tokens in the softmax and the values).
OPERATIONS = 1000
LAMBDA = 6.0
#: The tiny model's scores are 20 times a cosine.
SCORES = 20.0


def loss_error(magnitude: float) -> float:
    """Bound between two computations of a loss, of this magnitude or made of scores of this magnitude."""
    return 2 * LAMBDA * math.sqrt(OPERATIONS) * UNIT * magnitude


def scalar_error(magnitude: float, epsilon: float, sides: int = 2) -> float:
    """Bound between two measurements of (l₊ − l₋)/2ε, or one-sided of (l₊ − l)/ε."""
    return 2 * loss_error(magnitude) / (sides * epsilon)
