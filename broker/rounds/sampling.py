"""Which devices a round asks: a pure function of what is known about them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from fedspzo.broker.rounds.seeds import derive

if TYPE_CHECKING:
    from fedspzo.broker.rounds.job import Job


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


class Sample(Protocol):
    """A way to sample: a pure function that chooses a round's devices."""

    def __call__(self, job: Job, number: int, candidates: Mapping[str, Candidate], count: int, /) -> tuple[str, ...]:
        """At most ``count`` names of candidates, for the round of that number."""


def choose_cohort(job: Job, number: int, candidates: Mapping[str, Candidate], count: int) -> tuple[str, ...]:
    """``count`` devices to ask in a round, or all there are. It depends on nothing but the arguments."""

    def order(device: str) -> tuple[tuple[float, ...], int]:
        return SAMPLINGS[job.sampling](candidates[device]), derive(job.seed, number, device)

    return tuple(sorted(candidates, key=order)[: max(count, 0)])
