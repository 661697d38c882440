"""How virtual devices behave: which are available in a round, which answer and when, drawn from distributions.

Every draw depends on nothing but the seed, the device and the round: a simulation that resumes after a kill behaves as
one that was never interrupted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

from fedspzo.broker.rounds.sampling import Candidate
from fedspzo.device_runtime.directions.format import derive_seed
from fedspzo.device_runtime.errors import PlanError

#: Draws of a distribution: a number in (0, 1) → a value.
Quantile = Callable[[float], float]
#: Largest number of a distribution, and largest sigma: what is drawn is finite.
MOST, WIDEST = 1e9, 50


@dataclass(frozen=True)
class Behaviour:
    """How the devices of a fleet differ and fail.

    Attributes:
        step_seconds: time of a device's local step; drawn once for each device.
        battery: its charge; drawn in each round.
        available: chance that it is there in a round.
        dropout: chance that it does not answer when it is asked.
    """

    step_seconds: Quantile
    battery: Quantile
    available: float
    dropout: float

    def __post_init__(self) -> None:
        """Raises PlanError when a probability is not between 0 and 1."""
        if not (0 < self.available <= 1 and 0 <= self.dropout < 1):
            raise PlanError(
                "simulation.availability",
                f"--available is above 0 and at most 1, and --dropout at least 0 and below 1, not {self.available:g}"
                f" and {self.dropout:g}; correct these",
            )


#: Devices that are alike, always there, and answer.
CALM = Behaviour(lambda chance: 1.0, lambda chance: 1.0, available=1.0, dropout=0.0)


def parse_quantile(text: str, option: str) -> Quantile:
    """A distribution: a number, ``uniform:LOW,HIGH`` or ``lognormal:MEDIAN,SIGMA``.

    Raises:
        PlanError: it is not one of these.
    """
    kind, _, numbers = text.rpartition(":")
    try:
        values = [float(number) for number in numbers.split(",")]
    except ValueError:
        values = []
    inside = all(0 <= value <= MOST for value in values)
    if not kind and len(values) == 1 and inside:
        return lambda chance: values[0]
    if len(values) == 2 and inside:
        first, second = values
        if kind == "uniform" and second >= first:
            return lambda chance: first + (second - first) * chance
        if kind == "lognormal" and second <= WIDEST:
            return lambda chance: first * math.exp(second * NormalDist().inv_cdf(chance))
    raise PlanError(
        "simulation.distribution",
        f"{option} is '{text}'; write a number, uniform:LOW,HIGH or lognormal:MEDIAN,SIGMA, with numbers from 0 to"
        f" {MOST:g} and SIGMA to {WIDEST}",
    )


@dataclass(frozen=True)
class Fleet:
    """Virtual devices and their behaviour.

    Attributes:
        devices: their names.
        behaviour: how they differ and fail.
        seed: of all draws.
    """

    devices: Sequence[str]
    behaviour: Behaviour
    seed: int

    def present(self, round: int) -> dict[str, Candidate]:
        """Devices that are there in a round, and what sampling knows of them; ``served`` is not told."""
        return {
            device: Candidate(battery=min(1.0, self.behaviour.battery(self._chance("battery", round, device))))
            for device in self.devices
            if self.behaviour.available == 1 or self._chance("available", round, device) < self.behaviour.available
        }

    def seconds(self, round: int, device: str, steps: int) -> float:
        """Virtual time until a device answers, from when it is asked; infinite where it does not."""
        if self._chance("dropout", round, device) < self.behaviour.dropout:
            return math.inf
        return steps * self.behaviour.step_seconds(self._chance("speed", 0, device))

    def _chance(self, purpose: str, round: int, device: str) -> float:
        """A number in (0, 1)."""
        return ((derive_seed(self.seed, f"{purpose} of {device}", round, 0, ()) >> 12) + 0.5) / (1 << 52)
