"""An external meter's log laid over what the device did, by the time of day or by the edges of the work."""

from __future__ import annotations

import bisect
from collections.abc import Sequence

import numpy as np

from fedspzo.device_runtime.energy.meter_log import Log
from fedspzo.device_runtime.energy.source import POWER, Facts, Gap
from fedspzo.device_runtime.errors import EnergyError

NAME = "csv"
#: Relative uncertainty of a meter's scale: assumed, as for inexpensive USB meters.
GAIN = 0.01


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
        if self._times[after] - self._times[after - 1] > 10 * self._period:
            raise Gap("the meter's log has a hole")
        return float(self._watts[min(before or after, after - 1) : after].mean())


def align_edges(log: Log, times: Sequence[float], busy: Sequence[float], most: float = 600.0) -> tuple[float, float]:
    """The offset at which a meter's power follows the work best, and their correlation there.

    Args:
        times: moments of the device's clock, rising.
        busy: share of the time around each that was work and not waiting.
        most: seconds by which the first moments of both may differ, either way, when the log's times are the clock's;
            else anything that keeps the log over the work is tried.

    Raises:
        EnergyError: no offset fits well, or another fits as well.
    """
    grid = max(log.period, float(np.median(np.diff(times))) if len(times) > 1 else 0.0)
    clock = np.arange(times[0], times[-1], grid)
    work = np.interp(clock, times, busy)
    span = log.times[-1] - log.times[0]
    length = clock[-1] - clock[0] if len(clock) else 0.0
    if not length or span < length or work.std() == 0:
        raise EnergyError(
            "energy.log-too-short",
            f"{log.name} is shorter than the measurement, or the work has no edges; give the --offset",
        )
    low, high = clock[0] - log.times[0] - (span - length), clock[0] - log.times[0]
    if log.absolute:
        low, high = max(low, -most), min(high, most)
    offsets = np.arange(low, high + grid / 8, grid / 4)
    scores = np.array([_correlation(work, np.interp(clock - offset, log.times, log.watts)) for offset in offsets])
    if not len(scores) or scores.max() < 0.7:
        raise EnergyError(
            "energy.log-does-not-fit",
            f"the power in {log.name} does not follow the work at any offset; give the --offset",
        )
    best = int(scores.argmax())
    far = np.abs(offsets - offsets[best]) > length / 10
    if far.any() and scores[far].max() > scores[best] - 0.05:
        raise EnergyError(
            "energy.log-ambiguous", f"the power in {log.name} follows the work at several offsets; give the --offset"
        )
    return float(offsets[best]), float(scores[best])


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.corrcoef(one, other)[0, 1]) if other.std() > 0 else 0.0
