"""Joules and watts with their 95 % intervals, or with the reason why they are not known."""

from __future__ import annotations

from dataclasses import dataclass

#: Half the width of a 95 % interval, in standard deviations: of a known one, and by degrees of freedom from 1 on.
NORMAL = 2.0
_STUDENT = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
    2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


def student(freedom: float) -> float:
    """Half the width of a 95 % interval in estimated standard deviations (Student's t). ``freedom`` is 1 or more."""
    at = int(freedom) - 1
    return _STUDENT[at] if at < len(_STUDENT) else 1.96 + 2.45 / freedom


@dataclass(frozen=True)
class Figure:
    """Energy above idle.

    Attributes:
        joules: or None where they are not known.
        half_width: of the 95 % interval around ``joules``; None where it is not known.
        reason: why there are no joules or no interval, as a clause; else "".
        seconds: that it lasted, summed over threads.
        covered: the share of these with readings.
        alone: the share of its time that was seen by itself.
    """

    joules: float | None
    half_width: float | None
    reason: str
    seconds: float
    covered: float
    alone: float

    @property
    def uncertainty(self) -> float:
        """One standard deviation; as large as the figure where nobody knows it."""
        return abs(self.joules or 0.0) if self.half_width is None else self.half_width / NORMAL


@dataclass(frozen=True)
class Idle:
    """The power of waiting.

    Attributes:
        watts: or None where it was not seen by itself.
        half_width: of its 95 % interval, with what it drifted by.
        seconds: for which it was seen.
        drift: W from the first half of the idle times to the last; None where there was but one.
        reason: why there are no watts.
    """

    watts: float | None
    half_width: float | None
    seconds: float
    drift: float | None
    reason: str
