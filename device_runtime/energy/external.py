"""An external meter's log laid over what the device did, by the time of day or by the edges of the work."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedspzo.device_runtime.energy.meter_log import Log
from fedspzo.device_runtime.energy.source import POWER, Facts, Gap
from fedspzo.device_runtime.errors import EnergyError

NAME = "csv"
#: Relative uncertainty of a meter's scale: assumed, as for inexpensive USB meters.
GAIN = 0.01
#: Seconds by which clocks may be off that agree in all but their seconds.
FAR_S = 600.0
#: Periods between two rows that make a hole.
HOLE = 10
#: The share of the work that a log must have rows of, the least correlation, by how much it must be the best, and on
#: how many rows: for the edges of the work to tell the offset.
_LEAST_SEEN, _LEAST_SCORE, _MARGIN, _LEAST_POINTS = 0.8, 0.7, 0.05, 30
#: A variance that is taken for 0, of what varies by about 1.
_STILL = 1e-8


class Replay:
    """A meter's log as a source that is read after the fact, at moments of the device's own clock that rise.

    See :class:`fedspzo.device_runtime.energy.source.Source`. A row has the power of its moment, so that nobody knows
    what was used between two rows: the log is no counter of joules.
    """

    name = NAME

    def __init__(self, log: Log, offset: float, how: str) -> None:
        """Lay a log over a clock.

        Args:
            offset: what is added to the log's times to give the clock's.
            how: the offset was found, as a sentence.
        """
        self._times, self._watts, self._period = log.times + offset, log.watts, log.period
        self._read = 0  # rows
        self.now = 0.0
        self.facts = Facts(
            POWER, log.resolution, log.period, GAIN, "what the meter feeds",
            (how, *log.remarks, f"the meter's scale is taken to be right to {GAIN:.0%}"),
        )  # fmt: skip

    def read(self) -> float:
        """W, the mean of the rows up to ``now`` that were not read yet. Raises Gap where the log has no row near."""
        after = bisect.bisect_right(self._times, self.now)
        before, self._read = self._read, after
        if not 0 < after < len(self._times):
            raise Gap("the meter's log does not reach so far")
        if self._times[after] - self._times[after - 1] > HOLE * self._period:
            raise Gap("the meter's log has a hole")
        return float(self._watts[min(before or after, after - 1) : after].mean())


@dataclass(frozen=True)
class Edges:
    """What the edges of the work say of a log.

    Attributes:
        offset: what added to the log's times gives the clock's.
        score: the correlation of power and work there.
        within: s by which the offset may be off: the time between two rows, or two moments of the clock.
    """

    offset: float
    score: float
    within: float


def align_edges(log: Log, times: Sequence[float], busy: Sequence[float]) -> Edges:
    """Where a meter's power follows the work best.

    Every offset is tried at which the log has rows for :data:`_LEAST_SEEN` of the time or more.

    Args:
        times: moments of the device's clock, rising.
        busy: share of the time around each that was work and not waiting.

    Raises:
        EnergyError: no offset fits well, or another fits about as well.
    """
    grid = max(log.period, float(np.median(np.diff(times))) if len(times) > 1 else 0.0)
    length = times[-1] - times[0]
    if length < _LEAST_POINTS * grid:
        raise EnergyError(
            "energy.log-too-short",
            f"{log.name} has {length / grid if grid else 0:.0f} rows for the work, too few to find it in; give"
            " the --offset SECONDS, 0 where the clocks are the same",
        )
    clock = np.arange(times[0], times[-1], grid / 4)
    fits = _fit_everywhere(log, clock, np.interp(clock, times, busy))
    if not len(fits.offsets):
        raise EnergyError(
            "energy.log-too-short",
            f"{log.name} has no {_LEAST_SEEN:.0%} of the {length:.0f} s of the work in one piece; give the"
            " --offset SECONDS, 0 where the clocks are the same",
        )
    # what of the work is not seen, and a clock that is far off, count against an offset
    worth = fits.scores - (1 - fits.seen) / 2 - _MARGIN * 2 * (log.absolute & (np.abs(fits.offsets) > FAR_S))
    worth[fits.scores < _LEAST_SCORE] = -np.inf
    best = int(worth.argmax())
    if not np.isfinite(worth[best]):
        raise EnergyError(
            "energy.log-does-not-fit",
            f"the power in {log.name} does not follow the work at any offset"
            f"{f' ({log.outlier})' if log.outlier else ''}; give the --offset SECONDS, 0 where the clocks are the same",
        )
    rival = _find_rival(worth, best)
    if rival is not None:
        one, other = sorted((fits.offsets[best], fits.offsets[rival]), key=abs)
        raise EnergyError(
            "energy.log-ambiguous",
            f"the power in {log.name} follows the work at several offsets, such as {one:.1f} s and {other:.1f} s;"
            " give the --offset SECONDS, 0 where the clocks are the same",
        )
    return Edges(float(fits.offsets[best]), float(fits.scores[best]), grid)


@dataclass(frozen=True)
class _Fits:
    """float64 [n] each: offsets, the correlations there, and the shares of the work that the log has rows of."""

    offsets: np.ndarray
    scores: np.ndarray
    seen: np.ndarray


def _fit_everywhere(log: Log, clock: np.ndarray, work: np.ndarray) -> _Fits:
    """At all offsets, in steps of the ``clock``, at which enough of the work is seen."""
    holes = np.flatnonzero(np.diff(log.times) > clock[-1] - clock[0]) + 1
    pieces = [piece for piece in np.split(np.arange(len(log.times)), holes) if len(piece) > 1]
    fits = [_fit(log, piece, clock, work) for piece in pieces]
    return _Fits(*(np.concatenate([np.empty(0), *columns]) for columns in zip(*fits, strict=True)))


def _fit(log: Log, piece: np.ndarray, clock: np.ndarray, work: np.ndarray) -> tuple[np.ndarray, ...]:
    """Correlations of what the log and the clock share at each offset, by way of Fourier's sums."""
    times, step = log.times[piece], clock[1] - clock[0]
    at = np.arange(times[0], times[-1], step)
    after = np.clip(np.searchsorted(times, at, side="right"), 1, len(times) - 1)
    there = (times[after] - times[after - 1] <= HOLE * log.period).astype(float)
    spread = float(log.watts.std())
    watts = there * (np.interp(at, times, log.watts[piece]) - np.median(log.watts)) / (spread or 1.0)
    size = 1 << (len(at) + len(clock)).bit_length()
    ones, one, squares = (np.fft.rfft(part, size) for part in (np.ones_like(work), work, work**2))
    mask, other, others = (np.fft.rfft(part, size).conj() for part in (there, watts, watts**2))
    shifts = np.arange(1 - len(at), len(clock))

    def add_up(product: np.ndarray) -> np.ndarray:
        return np.fft.irfft(product, size)[shifts]

    count = add_up(ones * mask)
    enough = count >= _LEAST_SEEN * len(clock) - 0.5
    shifts, count = shifts[enough], count[enough]
    x, y = add_up(one * mask) / count, add_up(ones * other) / count
    product = add_up(one * other) / count - x * y
    variances = [add_up(squares * mask) / count - x**2, add_up(ones * others) / count - y**2]
    moves = (variances[0] > _STILL) & (variances[1] > _STILL)
    scores = np.where(moves, product / np.sqrt(np.where(moves, variances[0] * variances[1], 1.0)), 0.0)
    return clock[0] - at[:1] + shifts * step, scores, np.minimum(count / len(clock), 1.0)


def _find_rival(worth: np.ndarray, best: int) -> int | None:
    """Another offset that is about as good as the best, and not of the same peak."""
    below = np.flatnonzero(worth < worth[best] - 2 * _MARGIN)
    at = int(np.searchsorted(below, best))
    first = below[at - 1] if at else -1
    last = below[at] if at < len(below) else len(worth)
    rivals = worth > worth[best] - _MARGIN
    rivals[first + 1 : last] = False
    return int(np.where(rivals, worth, -np.inf).argmax()) if rivals.any() else None
