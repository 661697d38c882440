"""What a job tells the program that runs it: closed rounds, evaluations, its end; live and simulated alike."""

from __future__ import annotations

from collections.abc import Callable

from fedspzo.broker.rounds.aggregate import ClosedRound
from fedspzo.broker.server.evaluation import Evaluated, Snapshot
from fedspzo.broker.server.progress import JobResult

#: What an observer is told of: a closed round, an evaluation, a snapshot, the end of the job.
Event = ClosedRound | Evaluated | Snapshot | JobResult
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
