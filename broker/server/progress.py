"""The progress of a server in its job, which its decisions and its answers share, and the outcome at the end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from fedspzo.broker.server.evaluation import Snapshot
from fedspzo.broker.server.open_round import OpenRound
from fedspzo.device_runtime.protocol.messages import Report


@dataclass(frozen=True)
class JobResult:
    """What a job that is over leaves behind in addition to the journal.

    Attributes:
        digest: of the server's replica after the last round.
        reports: device → its report.
        counts: what happened how often (results accepted, late, refused; messages dropped).
    """

    digest: bytes
    reports: Mapping[str, Report]
    counts: Mapping[str, int]


@dataclass
class Progress:
    """Where the job is; only the server's thread reads and changes it.

    Attributes:
        round: the open round.
        finished: whether the last round is closed.
        offer: the newest snapshot and its URL, when there is one to be had.
        synced_at: when a device last synced, by the monotonic clock.
        digest, reports, counts: see :class:`JobResult`.
    """

    counts: Counter[str]
    round: OpenRound | None = None
    finished: bool = False
    offer: tuple[Snapshot, str] | None = None
    synced_at: float = 0.0
    digest: bytes = b""
    reports: dict[str, Report] = field(default_factory=dict)

    def result(self) -> JobResult:
        """What there is now."""
        return JobResult(self.digest, dict(self.reports), dict(self.counts))
