"""The open round of results that are masked: first it waits for devices that are ready, then for their groups' sums.

A server whose folder was restored may have lost attempts of the round. Devices that masked results in these tell so,
for they measure for later attempts alone.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from fedspzo.broker.rounds.groups import divide
from fedspzo.broker.rounds.job import Job
from fedspzo.broker.rounds.open_round import OpenRound
from fedspzo.device_runtime.protocol.masked import Masked
from fedspzo.device_runtime.protocol.plan import MOST_ATTEMPTS, Plan

#: Seconds that groups are waited for at most: their devices have measured already.
SUMS_S = 30.0


@dataclass
class MaskedRound(OpenRound):
    """A round in progress, which has no results of single devices.

    Attributes:
        ready: device → the session in which it said that it has measured.
        groups: once enough are ready, the devices that are summed.
        masked: device → its masked result.
        told: device → the attempt that it masked a result in last, of which this server knows nothing.
    """

    ready: dict[str, int] = field(default_factory=dict)
    groups: tuple[tuple[str, ...], ...] = ()
    masked: dict[str, Masked] = field(default_factory=dict)
    told: dict[str, int] = field(default_factory=dict)

    @property
    def attempt(self) -> int:
        """The attempt of the round that is open."""
        return self.plan.masking[0].attempt

    @property
    def reached(self) -> int:
        """The attempt that the round has come to: the open one, or a later one that enough devices for a sum tell of.

        Fewer are not believed: what they masked is in no sum, or they lie.
        """
        told = sorted(self.told.values(), reverse=True)
        return max(self.attempt, *told[self.plan.masking[0].least - 1 :][:1], 0)

    @property
    def answered(self) -> Collection[str]:
        """Devices that are ready; once there are groups, those whose masked results have come."""
        return self.masked.keys() if self.groups else self.ready.keys()

    @property
    def missing(self) -> list[str]:
        """Devices that may yet answer."""
        if not self.groups:
            return [device for device in super().missing if device not in self.told]
        return [device for group in self.groups for device in group if device not in self.masked]

    @property
    def summed(self) -> list[tuple[str, ...]]:
        """Groups that lack no member."""
        return [group for group in self.groups if all(device in self.masked for device in group)]

    def group_of(self, device: str) -> tuple[str, ...]:
        """The group that a device is in; empty where it is in none."""
        return next((group for group in self.groups if device in group), ())

    def awaits(self, device: str, session: int) -> bool:
        """Whether the round waits for a device, in its process with a session: a new process has measured nothing."""
        if self.groups:
            return device not in self.masked and bool(self.group_of(device))
        return device in self.cohort and self.ready.get(device) != session

    def complete(self, job: Job, left: Callable[[str], bool], now: float) -> bool:
        """Whether groups can be formed; once there are some, whether no more of them can be waited for.

        Also whether enough devices for a sum tell of an attempt that was lost, and the others have answered.
        """
        lost = len(self.told) >= self.plan.masking[0].least
        if self.groups or lost:
            return self.hopeless(left) or self.overdue(now)
        return super().complete(job, left, now)

    def note_lost(self, device: str, masked: Masked) -> bool:
        """Note a result that is of a lost attempt of this round; tells whether it is."""
        first = self.attempt + bool(self.groups)
        if masked.round != self.plan.round or not first <= masked.attempt < MOST_ATTEMPTS:
            return False
        self.told[device] = masked.attempt
        return True

    def form_groups(self, now: float) -> None:
        """Divide the devices that are ready, and wait for their results."""
        self.groups = divide(self.plan, self.ready)
        self.deadline = now + min(self.plan.deadline, SUMS_S)


def begin_round(plan: Plan, cohort: tuple[str, ...], now: float) -> OpenRound:
    """A round that has just been opened, or is opened again."""
    return MaskedRound(plan, cohort, {}, now) if plan.masking else OpenRound(plan, cohort, {}, now)
