"""Progress: of a job, a line for each event; of work that takes long, where it is."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from fedspzo.device_runtime import plain_json

if TYPE_CHECKING:
    from fedspzo.broker.rounds.aggregate import ClosedRound
    from fedspzo.broker.server.progress import JobResult
    from fedspzo.device_runtime.step.scores import Evaluation

#: Seconds between signs of life.
ON_TERMINAL_S, ELSEWHERE_S = 0.2, 8.0  # which leaves time to libraries that let no thread run


class Step(Protocol):
    """Is told what is being done."""

    def __call__(self, doing: str) -> None:
        """Say what is being done from now on."""


def show(as_json: bool, **fields: Any) -> None:
    """Print an event's fields."""
    if as_json:
        print(plain_json.dumps(fields), flush=True)
    else:
        words = (
            f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in fields.items()
        )
        print(", ".join(words), flush=True)


def describe_uncertainty(found: ClosedRound | Evaluation, prefix: str = "") -> dict[str, float]:
    """The field ``loss_uncertainty`` of a round or an evaluation, after a prefix; none where it is not known."""
    return {} if found.loss_uncertainty is None else {f"{prefix}loss_uncertainty": found.loss_uncertainty}


def describe_evaluation(record: Mapping[str, Any]) -> str:
    """A round and how its model does, for people.

    Args:
        record: as :meth:`fedspzo.broker.server.evaluation.Evaluated.record` gives it.
    """
    from fedspzo.device_runtime.model.metrics import format_score

    scores = "".join(f", {format_score(*score)}" for score in record["scores"].items())
    return f"round {record['round']} (loss {record['loss']:.4f}{scores})"


def show_end(result: JobResult, seconds: float) -> None:
    """Print how a job ended."""
    print(", ".join(f"{name} {count}" for name, count in sorted(result.counts.items()) if count) or "no round was left")
    if result.best:
        print(f"the best on the held-out examples was {describe_evaluation(result.best.record())}")
    print(f"finished {seconds:.0f} s after the start; the model's digest is {result.digest.hex()}", flush=True)


@contextmanager
def steps(doing: str) -> Iterator[Step]:
    """Show on standard error what is being done and for how long: in place on a terminal, else in lines 8 s apart."""
    started, over, now = time.monotonic(), threading.Event(), [doing]
    with os.fdopen(os.dup(2), "w") as stream:  # one of its own: libraries' output is redirected now and then
        terminal = stream.isatty()

        def work() -> None:
            while not over.wait(ON_TERMINAL_S if terminal else ELSEWHERE_S):
                line = f"{now[0]} … {time.monotonic() - started:.0f} s"
                print(f"\r{line}\x1b[K" if terminal else line, end="" if terminal else "\n", file=stream, flush=True)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        try:
            yield lambda doing: now.__setitem__(0, doing)
        finally:
            over.set()
            thread.join()
            if terminal:
                print("\r\x1b[K", end="", file=stream, flush=True)
