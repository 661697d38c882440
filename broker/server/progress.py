"""The progress of a job: what the server's decisions and answers share, what observers are told, and the result."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from fedspzo.broker.rounds.aggregate import ClosedRound
from fedspzo.broker.rounds.open_round import OpenRound
from fedspzo.broker.server.evaluation import Evaluated, Snapshot
from fedspzo.device_runtime.protocol.messages import Report


@dataclass(frozen=True)
class JobResult:
    """What a job that is over leaves behind in addition to the journal.

    Attributes:
        digest: of the server's replica after the last round.
        reports: device → its report.
        counts: what happened how often (results accepted, late, refused; messages dropped).
        best: the best evaluation on the held-out examples, if there are any.
    """

    digest: bytes
    reports: Mapping[str, Report]
    counts: Mapping[str, int]
    best: Evaluated | None = None


@dataclass
class Progress:
    """Where the job is; only the server's thread reads and changes it.

    Attributes:
        round: the open round.
        finished: whether the last round is closed.
        offer: the newest snapshot and its URL, when there is one to be had.
        synced_at: when a device last synced, by the monotonic clock.
        evaluated: the newest evaluation.
        rounds: the job's.
        digest, reports, counts, best: see :class:`JobResult`.
    """

    counts: Counter[str]
    round: OpenRound | None = None
    finished: bool = False
    offer: tuple[Snapshot, str] | None = None
    synced_at: float = 0.0
    digest: bytes = b""
    reports: dict[str, Report] = field(default_factory=dict)
    best: Evaluated | None = None
    evaluated: Evaluated | None = None
    rounds: int = 0

    def result(self) -> JobResult:
        """What there is now."""
        return JobResult(self.digest, dict(self.reports), dict(self.counts), self.best)


@dataclass(frozen=True)
class Waiting:
    """A server stands by.

    Attributes:
        who: has the job, in words.
    """

    who: str


#: What an observer is told of: a closed round, an evaluation, a snapshot, the end of the job, a second of standing by.
Event = ClosedRound | Evaluated | Snapshot | JobResult | Waiting
#: Told of a job's progress, on the thread that runs the job. What it raises ends the job.
Observer = Callable[[Event], None]


class Callback:
    """An observer with a method for each kind of event; override those that matter."""

    def on_round(self, closed: ClosedRound) -> None:
        """A round was closed."""

    def on_evaluation(self, evaluated: Evaluated) -> None:
        """The model after a round was evaluated on the held-out examples."""

    def on_end(self, result: JobResult) -> None:
        """The job is over, and its devices have reported."""

    def __call__(self, event: Event) -> None:
        """Call the method of the event's kind."""
        if isinstance(event, ClosedRound):
            self.on_round(event)
        elif isinstance(event, Evaluated):
            self.on_evaluation(event)
        elif isinstance(event, JobResult):
            self.on_end(event)


def observe_all(*observers: Observer) -> Observer:
    """An observer that tells several."""

    def observe(event: Event) -> None:
        for each in observers:
            each(event)

    return observe


def ignore(event: Event) -> None:
    """An observer that does nothing."""
