"""The open round of results that are masked: first it waits for devices that are ready, then for their groups' sums."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from fedspzo.broker.rounds.groups import divide
from fedspzo.broker.rounds.job import Job
from fedspzo.broker.rounds.open_round import OpenRound
from fedspzo.device_runtime.protocol.masked import Masked
from fedspzo.device_runtime.protocol.plan import Plan

#: Seconds that groups are waited for at most: their devices have measured already.
SUMS_S = 30.0


@dataclass
class MaskedRound(OpenRound):
    """A round in progress, which has no results of single devices.

    Attributes:
        ready: device → the session in which it said that it has measured.
        groups: once enough are ready, the devices that are summed.
        masked: device → its masked result.
    """

    ready: dict[str, int] = field(default_factory=dict)
    groups: tuple[tuple[str, ...], ...] = ()
    masked: dict[str, Masked] = field(default_factory=dict)

    @property
    def answered(self) -> Collection[str]:
        """Devices that are ready; once there are groups, those whose masked results have come."""
        return self.masked.keys() if self.groups else self.ready.keys()

    @property
    def missing(self) -> list[str]:
        """Devices that may yet answer."""
        if not self.groups:
            return super().missing
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
        """Whether groups can be formed; once there are some, whether no more of them can be waited for."""
        if not self.groups:
            return super().complete(job, left, now)
        return self.hopeless(left) or self.overdue(now)

    def form_groups(self, now: float) -> None:
        """Divide the devices that are ready, and wait for their results."""
        self.groups = divide(self.plan, self.ready)
        self.deadline = now + min(self.plan.deadline, SUMS_S)


def begin_round(plan: Plan, cohort: tuple[str, ...], now: float) -> OpenRound:
    """A round that has just been opened, or is opened again."""
    return MaskedRound(plan, cohort, {}, now) if plan.masking else OpenRound(plan, cohort, {}, now)
