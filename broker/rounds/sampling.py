"""Which devices a round asks: a pure function of what is known about them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from statistics import median
from typing import TYPE_CHECKING, Protocol

from fedspzo.broker.rounds.seeds import derive

if TYPE_CHECKING:
    from fedspzo.broker.rounds.job import Job

#: A device is believed to need the median of joules over this at least.
THRIFTY = 4.0


@dataclass(frozen=True)
class Candidate:
    """What sampling knows of a device.

    Attributes:
        served: last round that its result counted in, 0 before the first.
        battery, charging: see :class:`fedspzo.device_runtime.protocol.messages.Sync`.
        joules: that a round took it on average; 0 while that is not known.
    """

    served: int = 0
    battery: float = 1.0
    charging: bool = False
    joules: float = 0.0


#: Name → what devices are ordered by before chance decides; the first are asked.
SAMPLINGS: dict[str, Callable[[Candidate], tuple[float, ...]]] = {
    "uniform": lambda device: (),
    "freshness": lambda device: (device.served,),  # whose examples have been waiting longest
    # Who has power first; among equals who needs fewest joules, in powers of two, and who has yet to say.
    "energy": lambda device: (
        not device.charging,
        -round(device.battery, 1),
        round(math.log2(max(device.joules, 1e-3))),
    ),
}


def believe(candidates: Mapping[str, Candidate]) -> dict[str, Candidate]:
    """Candidates whose claims are bounded, so that a lie gains little.

    A battery is full at most. Nobody needs far less than the median device, and who has served and says nothing of its
    joules needs as many.
    """
    known = [candidate.joules for candidate in candidates.values() if candidate.joules > 0]
    usual = median(known) if known else 0.0

    def bounded(candidate: Candidate) -> Candidate:
        silent = candidate.served > 0 and candidate.joules <= 0
        joules = usual if silent else max(candidate.joules, usual / THRIFTY) if candidate.joules > 0 else 0.0
        return replace(candidate, battery=min(1.0, max(0.0, candidate.battery)), joules=joules)

    return {device: bounded(candidate) for device, candidate in candidates.items()}


class Sample(Protocol):
    """A way to sample: a pure function that chooses a round's devices."""

    def __call__(self, job: Job, number: int, candidates: Mapping[str, Candidate], count: int, /) -> tuple[str, ...]:
        """At most ``count`` names of candidates, for the round of that number."""


def choose_cohort(job: Job, number: int, candidates: Mapping[str, Candidate], count: int) -> tuple[str, ...]:
    """``count`` devices to ask in a round, or all there are. It depends on nothing but the arguments."""

    believed = believe(candidates)

    def order(device: str) -> tuple[tuple[float, ...], int]:
        return SAMPLINGS[job.sampling](believed[device]), derive(job.seed, number, device)

    return tuple(sorted(candidates, key=order)[: max(count, 0)])
