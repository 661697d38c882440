"""What a point of loss takes: how far a loss fell, and joules divided by that."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence

from fedspzo.device_runtime.energy.figures import student

#: Why there is no price.
DEAR = "a point of loss has no price, as the loss fell too little to tell one"


def find_fall(losses: Sequence[float], ends: int, looks: int = 1) -> tuple[float, float | None]:
    """How far losses fell from the mean of the first ``ends`` to that of the last, and half of its 95 % interval, which
    one loss does not tell.

    They scatter as near ones differ, whatever the trend.

    Args:
        looks: how many times it was asked whether the last ones were low enough. The more, the more of what they are
            low by may be chance.
    """
    if len(losses) < 2:
        return 0.0, None
    scatter = [_scatter(some) / math.sqrt(ends) for some in (losses[: 2 * ends], losses[-2 * ends :])]
    chance = statistics.NormalDist().inv_cdf(1 - 0.025 / looks) / statistics.NormalDist().inv_cdf(0.975)
    freedom = max(2 * (min(2 * ends, len(losses)) - 1) // 3, 1)  # differences of neighbours tell two thirds of that
    width = student(freedom) * math.hypot(scatter[0], chance * scatter[1])
    return statistics.fmean(losses[:ends]) - statistics.fmean(losses[-ends:]), width


def find_price(
    joules: float, half_width: float | None, fall: tuple[float, float | None]
) -> tuple[float | None, float | None]:
    """Joules for a fall by 1, and half of the interval; no joules where they would be more uncertain than large, and no
    half-width where that of the ``joules`` is not known."""
    fell, scatter = fall
    if not joules or scatter is None or fell < 2 * scatter or fell <= 0:
        return None, None
    point = joules / fell
    if half_width is None:
        return point, None
    width = math.hypot(half_width / fell, point * scatter / (fell - scatter))  # to the end that is farther away
    return (point, width) if width <= abs(point) else (None, None)


def _scatter(losses: Sequence[float]) -> float:
    """Standard deviation by differences of neighbours."""
    moves = [(after - before) ** 2 for before, after in itertools.pairwise(losses)]
    return math.sqrt(statistics.fmean(moves) / 2)
