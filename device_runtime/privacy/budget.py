"""From noise to a promise: zero-concentrated differential privacy, which adds up over releases, and its ε for a δ.

A release with noise of variance σ² a coordinate, whose vector changes by at most Δ in L2, costs ρ = Δ²/2σ², for the
discrete Gaussian as for the continuous one (Canonne, Kamath and Steinke, arXiv 2004.00010).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

#: Rényi orders, less 1, that are tried.
_ORDERS = np.geomspace(1e-4, 1e7, 20_000)


def epsilon(rho: float, delta: float) -> float:
    """The least ε, for a δ, of releases that cost ρ in all (arXiv 2004.00010, proposition 12)."""
    if rho <= 0:
        return 0.0
    orders = 1 + _ORDERS
    found = rho * orders + np.log1p(-1 / orders) - (math.log(delta) + np.log(orders)) / _ORDERS
    return max(float(found.min()), 0.0)


def rho_within(most: float, delta: float) -> float:
    """The largest ρ whose ε for a δ is at most ``most``."""
    low, high = 0.0, most  # ε is above ρ for every δ that is of use
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if epsilon(middle, delta) <= most else (low, middle)
    return low


def guess_rate(rho: float, candidates: int) -> float:
    """The most often that anybody picks the right one of equally likely candidates, after releases that cost ρ.

    For every order α the rate p among n candidates has p ≤ (e^(ρα)/n)^((α−1)/α), whatever else is known.
    """
    orders = 1 + _ORDERS
    logarithms = ((orders - 1) / orders) * (rho * orders - math.log(candidates))
    return math.exp(min(0.0, float(logarithms.min())))


def discrete_rho(sensitivity: float, variance: float, shares: int, width: int) -> float:
    """ρ of a sum of ``shares`` discrete Gaussians of ``variance`` each (Kairouz, Liu, Steinke, arXiv 2102.06387).

    Such a sum is almost a discrete Gaussian; how far it is from one is part of the bound.

    Args:
        sensitivity: most that the vector changes in L2.
        width: coordinates of the vector.
    """
    distances: Sequence[float] = [math.exp(-2 * math.pi**2 * variance * k / (k + 1)) for k in range(1, shares)]
    tau = 10 * math.fsum(distances)
    total = shares * variance
    root = min(
        math.sqrt(sensitivity**2 / total + tau * width / 2),
        sensitivity / math.sqrt(total) + tau * math.sqrt(width),
    )
    return root**2 / 2
