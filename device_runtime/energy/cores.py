"""What was seen of single times of a phase, where readings tell of nothing else."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True)
class Core:
    """What was seen of one time of a phase: mean W, its standard deviation, by how much single readings scatter,
    seconds of the core and of the whole, when; the readings that begin and end it."""

    watts: float
    error: float
    scatter: float
    seconds: float
    whole: float
    at: float
    first: int
    last: int


def mean(cores: Sequence[Core]) -> tuple[float, float]:
    """Mean power weighted by time, and its standard deviation."""
    seconds = sum(core.seconds for core in cores)
    watts = sum(core.watts * core.seconds for core in cores) / seconds
    return watts, math.sqrt(sum((core.error * core.seconds) ** 2 for core in cores)) / seconds


def spread(cores: Sequence[Core]) -> float:
    """Standard deviation between cores."""
    return float(np.std([core.watts for core in cores], ddof=1))


def to_their_ends(cores: Sequence[Core], mask: np.ndarray, spent: np.ndarray, covered: np.ndarray) -> list[Core]:
    """A phase's cores with its seconds in the intervals beside them, which have something else in them too; an interval
    between two cores counts for half in each.

    Args:
        mask: bool [n], nothing but the phase was on since the reading before.
        spent: float64 [n], seconds of the phase since the reading before.
        covered: bool [n], there are readings at both ends of that time.
    """
    sides = [[at for at in _beside(core, mask) if at < len(mask) and covered[at]] for core in cores]
    claims = Counter(at for pair in sides for at in pair)
    return [
        replace(core, whole=core.whole + sum(float(spent[at]) / claims[at] for at in pair))
        for core, pair in zip(cores, sides, strict=True)
    ]


def _beside(core: Core, mask: np.ndarray) -> tuple[int, int]:
    before, after = core.first, core.last + 1
    while mask[before]:
        before -= 1
    while after < len(mask) and mask[after]:
        after += 1
    return before, after
