"""Where a server is, for those who watch it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Standing:
    """Where a server is.

    Attributes:
        round: last closed round.
        results, asked: results that the open round has, and devices that it asked.
        ready, known: devices that can be asked, and that have ever synced.
        counts: what happened how often.
        bytes_sent, bytes_received: payload.
        loss, seconds: of the last round that this process closed.
        measured_joules, estimated_joules: that results took devices, by their sensors and by estimates.
    """

    round: int
    results: int
    asked: int
    ready: int
    known: int
    counts: dict[str, int]
    bytes_sent: int
    bytes_received: int
    loss: float
    seconds: float
    measured_joules: float
    estimated_joules: float
