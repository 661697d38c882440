"""What was seen of single times of a phase, where readings tell of nothing else."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

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
