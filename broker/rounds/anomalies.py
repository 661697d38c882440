"""What is unusual in a device's results, and when that is enough to accuse and to expel it: pure functions.

Two things are looked at in rounds that at least three devices answered.

* Size: a result is *large* when the root mean square of its scalars is far above the cohort's median and above the
  plan's bound. No data do that: one such result accuses a device, and a number of them can expel it. Not so where steps
  are divided by their deviation: there is no bound then, and a cohort's median alone can be that of easy examples.
* Direction, where directions are shared: the cosine between a device's scalars and the sum of the others'. With unlike
  data it scatters around zero, and with opposite labels it may be far below for an honest device. So it is only noted:
  a device is *contrary* when the cumulative sum (Page's CUSUM) of what its cosines are below :data:`CONTRARY`, in
  standard deviations of chance, reaches :data:`ENOUGH`. That accuses nobody and expels nobody.

Where results are only known in sums, groups are compared: a device is noted when, over the rounds, the groups that it
was in were larger than the others (a CUSUM of the logarithm of their size). Nobody is accused, since a group has
several devices, and none of them can add more than its clip.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from fedspzo.broker.rounds.aggregate import stack
from fedspzo.broker.rounds.objective import largest_scalar
from fedspzo.broker.rounds.robust import NORMALISED, sizes, usual_size
from fedspzo.device_runtime.log import several
from fedspzo.device_runtime.protocol.messages import Result
from fedspzo.device_runtime.protocol.plan import Plan

log = logging.getLogger(__name__)

#: Results that can be compared.
FEWEST = 3
#: A large result is this many times the cohort's median.
LARGE = 8.0
#: A cosine, and the cumulative sum from which on a device is contrary.
CONTRARY, ENOUGH = -0.45, 6.0
#: A group's size over the median one, in powers of two, above which it speaks against its devices.
LARGE_GROUP = 0.5


@dataclass(frozen=True)
class Finding:
    """What a result is like.

    Attributes:
        large: its scalars are too large to have been measured.
        against: how far its cosine is below :data:`CONTRARY`, in standard deviations of chance.
    """

    large: bool = False
    against: float = 0.0


@dataclass(frozen=True)
class Record:
    """What is remembered of a device.

    Attributes:
        large: results that were.
        contrary: results that came with a sum of :data:`ENOUGH`.
        noted: round of the first of these, 0 before it.
        against: the cumulative sum.
        accused: round of the first large result, 0 before it.
        grouped: groups that came with such a sum of their sizes; nothing else is then known of the device.
        expelled: round after which the device was sent away, 0 for never.
    """

    large: int = 0
    contrary: int = 0
    noted: int = 0
    against: float = 0.0
    accused: int = 0
    expelled: int = 0
    grouped: int = 0

    @property
    def reason(self) -> str:
        """What is unusual, in words; "" where nothing is."""
        found = (
            (self.large, "far larger than others'", self.accused),
            (self.contrary, "contrary to others'", self.noted),
            (self.grouped, "in groups larger than others", self.noted),
        )
        return ", ".join(f"{several(count, 'result')} {what} since round {at}" for count, what, at in found if count)


def examine(plan: Plan, results: Mapping[str, Result]) -> dict[str, Finding]:
    """Device → what its result is like; nothing where too few answered."""
    if len(results) < FEWEST:
        return {}
    vectors, _ = stack(results)
    found = sizes(vectors)
    # Half of a cohort could send next to nothing to make others look large: past rounds, or most devices, must agree.
    usual = max(LARGE * usual_size(found), plan.bound or LARGE * float(np.sort(found)[len(found) // 2]))
    if plan.aggregate.endswith(NORMALISED):  # past rounds never say
        usual = math.inf
    largest = largest_scalar(plan) * (1 + 1e-6)  # scalars are rounded
    if largest < math.inf and not plan.noise:  # one example that changes is large beside many that do not
        usual = largest
    contrary = _contrary(vectors, found) if plan.shared else [0.0] * len(found)
    rows = zip(sorted(results), found, contrary, strict=True)
    return {device: Finding(bool(size > usual), against) for device, size, against in rows}


def follow(record: Record, round: int, finding: Finding, limit: int = 0) -> Record:
    """What is remembered of a device after one more result.

    Args:
        limit: large results that expel it; 0 for no such number.
    """
    total = min(ENOUGH, max(0.0, record.against + finding.against))
    large = record.large + finding.large
    return Record(
        large=large,
        contrary=record.contrary + (total >= ENOUGH),
        noted=record.noted or (round if total >= ENOUGH else 0),
        against=total,
        accused=record.accused or (round if large else 0),
        expelled=record.expelled or (round if 0 < limit <= large else 0),
    )


def follow_group(record: Record, round: int, above: float) -> Record:
    """What is remembered of a device after its group was ``above`` the median size, in powers of two."""
    total = min(ENOUGH, max(0.0, record.against + above - LARGE_GROUP))
    noted = total >= ENOUGH
    return replace(
        record,
        grouped=record.grouped + noted,
        noted=record.noted or (round if noted else 0),
        against=total,
    )


class Watch:
    """The records of a job's devices."""

    def __init__(self, records: Mapping[str, Record], limit: int = 0) -> None:
        """Start with what is remembered; for ``limit`` see :func:`follow`."""
        self._records = dict(records)
        self._limit = limit

    @property
    def records(self) -> dict[str, Record]:
        """Device → its record, where something was unusual in its results; any thread may ask."""
        return {device: record for device, record in list(self._records.items()) if record.reason}

    def close_round(self, plan: Plan, results: Mapping[str, Result]) -> dict[str, Record]:
        """Take in the results of a closed round; gives the records that have changed, and logs accusations."""
        changed = {}
        for device, finding in examine(plan, results).items():
            before = self._records.get(device, Record())
            record = follow(before, plan.round, finding, self._limit)
            if record == before:
                continue
            changed[device] = self._records[device] = record
            if record.expelled and not before.expelled:
                log.error("device '%s' is expelled after round %d: %s", device, plan.round, record.reason)
            elif record.accused and not before.accused:
                log.warning("device '%s' is accused after round %d: %s", device, plan.round, record.reason)
            elif record.contrary and not before.contrary:
                log.info("device '%s' pulls against the others since round %d", device, plan.round)
        return changed

    def close_sums(
        self, plan: Plan, groups: Sequence[Sequence[str]], results: Mapping[str, Result]
    ) -> dict[str, Record]:
        """As :meth:`close_round`, of groups: their devices, and their means in the same order."""
        if len(groups) < FEWEST:
            return {}
        found = sizes(stack(results)[0])
        usual = max(usual_size(found), np.finfo(np.float32).tiny)
        changed = {}
        for group, size in zip(groups, found, strict=True):
            for device in group:
                before = self._records.get(device, Record())
                record = follow_group(before, plan.round, math.log2(max(size / usual, 0.5)))
                if record == before:
                    continue
                changed[device] = self._records[device] = record
                if record.grouped and not before.grouped:
                    log.info("device '%s' is in groups that are larger than others since round %d", device, plan.round)
        return changed

    def expelled(self, device: str) -> str | None:
        """Why a device was sent away; None where it was not."""
        record = self._records.get(device)
        return record.reason if record is not None and record.expelled else None


def _contrary(vectors: np.ndarray, found: np.ndarray) -> list[float]:
    """See :class:`Finding`; vectors count by direction alone, so that a large one does not hide others."""
    units = vectors / np.maximum(found, np.finfo(np.float64).tiny)[:, None]
    total = np.array([math.fsum(column) for column in units.T])
    contrary = []
    for own in units:
        others = total - own
        scale = math.sqrt(math.fsum(own**2) * math.fsum(others**2))
        cosine = math.fsum(own * others) / scale if scale else 0.0
        contrary.append((CONTRARY - cosine) * math.sqrt(len(own)))
    return contrary
