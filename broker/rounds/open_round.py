"""The round that waits for results, and when it stops waiting."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from fedspzo.broker.rounds.job import Job
from fedspzo.device_runtime.protocol.messages import Decline, Result
from fedspzo.device_runtime.protocol.plan import Plan


@dataclass
class OpenRound:
    """A round in progress; times are of the monotonic clock.

    Attributes:
        cohort: devices asked so far.
        results: device → its accepted result.
        started: when it was opened, or reopened after a restart.
        deadline: when a quorum suffices, or others are asked.
        declined: device → its refusal to answer.
        arrived: device → when its result came; those of before a restart of the server are not known.
    """

    plan: Plan
    cohort: tuple[str, ...]
    results: dict[str, Result]
    started: float
    deadline: float = field(init=False)
    declined: dict[str, Decline] = field(default_factory=dict)
    arrived: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.deadline = self.started + self.plan.deadline

    @property
    def answered(self) -> Collection[str]:
        """Devices that have done what the round waits for."""
        return self.results.keys()

    @property
    def missing(self) -> list[str]:
        """Devices that may yet answer."""
        return [device for device in self.cohort if device not in self.answered and device not in self.declined]

    def awaits(self, device: str, session: int) -> bool:
        """Whether the round waits for a device, in its process with a session."""
        return device in self.cohort and device not in self.results

    def overdue(self, now: float) -> bool:
        """Whether the deadline has passed."""
        return now >= self.deadline

    def fewest(self, job: Job) -> int:
        """Answers that suffice at the deadline: the job's, and those whose noise an earlier job's plan counts on."""
        return max(job.fewest, *(noise.shares for noise in self.plan.noise), 0)

    def full(self, job: Job) -> bool:
        """Whether the whole cohort's worth of answers is there."""
        return len(self.answered) >= max(job.cohort, self.fewest(job))

    def complete(self, job: Job, left: Callable[[str], bool], now: float) -> bool:
        """Whether it can be closed: the whole cohort's worth of results, or a quorum and nothing more to wait for.

        Args:
            left: whether a device is gone.
        """
        if self.full(job):
            return True
        return len(self.answered) >= self.fewest(job) and (self.hopeless(left) or self.overdue(now))

    def hopeless(self, left: Callable[[str], bool]) -> bool:
        """Whether nobody is there any more who may yet answer."""
        return all(map(left, self.missing))

    def refused_by(self, known: Collection[str]) -> str:
        """A device that will never answer, where most of those that are known say so, and two at least; else "".

        Args:
            known: the devices of the job.
        """
        lasting = [device for device, said in self.declined.items() if not said.passing]
        enough = len(lasting) >= 2 and 2 * len(lasting) > len({*known, *lasting})
        return lasting[0] if enough and not self.answered else ""

    def extend(self, fresh: tuple[str, ...], now: float) -> list[str]:
        """Also ask other devices, with a new deadline for all; returns the devices to send the plan to."""
        asked = [*self.missing, *fresh]
        self.cohort, self.deadline = (*self.cohort, *fresh), now + self.plan.deadline
        return asked
