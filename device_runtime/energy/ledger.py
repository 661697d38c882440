"""Joules of intervals, divided among the phases and rounds in them, with the idle baseline subtracted.

An interval lies between two readings. Its energy goes to the phases that were on in it, in proportion to their
time. Intervals in which nothing was done but to wait give the idle power P₀; where an interval has both work and
waiting, what is above P₀ belongs to the work. So a phase's energy is Σ wᵢ·Eᵢ over intervals i with weights wᵢ that sum
to 1 over the phases, and above idle Σ wᵢ·(Eᵢ - P₀·tᵢ): whatever the weights, phases sum to the total.

Uncertainty (standard, k = 1) has five parts, added as squares:

* ends: a counter's reading is late or rounded by up to s, so that each is off by s/√12; in Σ wᵢ·Eᵢ the
  reading between intervals i and i+1 counts with wᵢ - wᵢ₊₁, and cancels while one phase lasts;
* sampling: between two readings of power that differ by Δ the true mean is known to Δ·t/√2, and each is rounded;
* sharing: what is divided by time may be all of a phase or nothing;
* the baseline's own uncertainty, which enters with all of the time that it is taken off of;
* the scale of the source, with the energy itself.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from fedspzo.device_runtime.platform.profiling import IDLE, OTHER, Seconds

#: The share of an interval below which work in it is taken for part of the waiting.
_NEGLIGIBLE = 0.01


@dataclass(frozen=True)
class Amount:
    """Energy of a phase, a round or the whole.

    Attributes:
        joules: above idle.
        uncertainty: of ``joules``, one standard deviation.
        gross: joules with the idle power's share.
        seconds: spent, summed over threads.
        covered: the share of these seconds for which there are readings.
        alone: the share of ``gross`` from intervals in which nothing else was on: the rest is shared by time.
    """

    joules: float
    uncertainty: float
    gross: float
    seconds: float
    covered: float
    alone: float


@dataclass(frozen=True)
class Lag:
    """By how much a counter's reading may be behind: ``joules`` by rounding, or what was used in ``seconds``."""

    joules: float
    seconds: float


@dataclass(frozen=True)
class Idle:
    """The idle power and its uncertainty, in W, and for how many seconds it was seen; no seconds: it is taken as 0."""

    watts: float = 0.0
    uncertainty: float = 0.0
    seconds: float = 0.0


@dataclass
class _Tally:
    """Sums over the intervals of one phase, round or both.

    ``seconds`` and ``covered`` are spent seconds, in all and with readings; ``joules`` Σ wE, ``weighted`` Σ wt,
    ``alone`` Σ wE where w = 1; ``interior`` Σ w²·variance; ``ends`` Σ (wᵢ - wᵢ₊₁)² up to the interval ``at``.
    """

    seconds: float = 0.0
    covered: float = 0.0
    joules: float = 0.0
    weighted: float = 0.0
    alone: float = 0.0
    interior: float = 0.0
    ends: float = 0.0
    at: int = -1
    weight: float = 0.0

    def add(self, number: int, weight: float, joules: float, seconds: float, variance: float) -> None:
        before = self.weight if self.at == number - 1 else 0.0
        self.ends += (weight - before) ** 2 + (0.0 if self.at == number - 1 else self.weight**2)
        self.at, self.weight = number, weight
        self.joules += weight * joules
        self.weighted += weight * seconds
        self.alone += joules if weight > 0.999 else 0.0
        self.interior += weight**2 * variance

    def variance(self, lag: Lag) -> float:
        """Of the joules."""
        watts = self.joules / self.weighted if self.weighted else 0.0
        return self.interior + (self.ends + self.weight**2) * max(lag.joules, watts * lag.seconds) ** 2 / 12


@dataclass
class Ledger:
    """Adds intervals up, in the order of time.

    Attributes:
        gain: relative uncertainty of the source's scale.
        joules, seconds: of all intervals with readings.
        missed: seconds without readings.
    """

    gain: float = 0.0
    joules: float = 0.0
    seconds: float = 0.0
    missed: float = 0.0
    _number: int = 0
    _phases: dict[str, _Tally] = field(default_factory=dict)
    _rounds: dict[int, dict[str, _Tally]] = field(default_factory=dict)
    _work: dict[int, _Tally] = field(default_factory=dict)
    _whole: _Tally = field(default_factory=_Tally)
    _waits: tuple[int, float] = (0, 0.0)

    def add(self, joules: float, seconds: float, variance: float, phases: Seconds) -> None:
        """An interval with readings at both ends.

        Args:
            joules, seconds, variance: its energy, its length, and the energy's variance apart from its ends'.
            phases: what was on in it.
        """
        self._number += 1
        self.joules += joules
        self.seconds += seconds
        weights = _weights(phases, seconds)
        idle = math.fsum(weight for (_, phase), weight in weights.items() if phase == IDLE)
        if idle > 1 - _NEGLIGIBLE and seconds:
            count, squares = self._waits
            self._waits = count + 1, squares + joules**2 / seconds
        self._add(weights, joules, seconds, variance)
        self._spend(phases, covered=True)

    def skip(self, seconds: float, phases: Seconds) -> None:
        """An interval without readings."""
        self._number += 2  # what comes next does not share a reading with what came before
        self.missed += seconds
        self._spend(phases, covered=False)

    def idle(self, lag: Lag) -> Idle:
        """The idle power, given how far the source's readings may be behind."""
        tally = self._phases.get(IDLE, _Tally())
        if not tally.weighted:
            return Idle()
        watts = tally.joules / tally.weighted
        count, squares = self._waits
        spread = max(squares - tally.joules**2 / tally.weighted, 0.0) / max(count - 1, 1) / tally.weighted
        return Idle(watts, math.sqrt(tally.variance(lag) / tally.weighted**2 + spread), tally.weighted)

    def phases(self, lag: Lag) -> dict[str, Amount]:
        """Phase → energy over all rounds."""
        idle = self.idle(lag)
        return {phase: self._amount(tally, idle, lag) for phase, tally in self._phases.items()}

    def work(self, lag: Lag) -> Amount:
        """All but the waiting."""
        return self._amount(self._whole, self.idle(lag), lag)

    def round(self, number: int, lag: Lag) -> Amount:
        """A round's work."""
        return self._amount(self._work.get(number, _Tally()), self.idle(lag), lag)

    def rounds(self) -> list[int]:
        """The rounds with intervals, in order, that were not closed."""
        return sorted(self._rounds)

    def close(self, number: int, lag: Lag) -> tuple[Amount, dict[str, Amount]]:
        """A round's work, and by phase; it is forgotten."""
        idle = self.idle(lag)
        tallies = self._rounds.pop(number, {})
        amount = self.round(number, lag)
        self._work.pop(number, None)
        return amount, {phase: self._amount(tally, idle, lag) for phase, tally in tallies.items()}

    def _add(self, weights: Mapping[tuple[int, str], float], joules: float, seconds: float, variance: float) -> None:
        phases: dict[str, float] = defaultdict(float)
        rounds: dict[int, float] = defaultdict(float)
        for (round, phase), weight in weights.items():
            phases[phase] += weight
            rounds[round] += 0.0 if phase == IDLE else weight
            self._of_round(round, phase).add(self._number, weight, joules, seconds, variance)
        for phase, weight in phases.items():
            self._phases.setdefault(phase, _Tally()).add(self._number, weight, joules, seconds, variance)
        for round, weight in rounds.items():
            self._work.setdefault(round, _Tally()).add(self._number, weight, joules, seconds, variance)
        self._whole.add(self._number, math.fsum(rounds.values()), joules, seconds, variance)

    def _spend(self, phases: Seconds, covered: bool) -> None:
        for (round, phase), seconds in phases.items():
            tallies = [self._phases.setdefault(phase, _Tally()), self._of_round(round, phase)]
            if phase != IDLE:
                tallies += [self._work.setdefault(round, _Tally()), self._whole]
            for tally in tallies:
                tally.seconds += seconds
                tally.covered += seconds if covered else 0.0

    def _of_round(self, round: int, phase: str) -> _Tally:
        return self._rounds.setdefault(round, {}).setdefault(phase, _Tally())

    def _amount(self, tally: _Tally, idle: Idle, lag: Lag) -> Amount:
        joules = tally.joules - idle.watts * tally.weighted
        alone = tally.alone / tally.joules if tally.joules else 0.0
        shared = (1 - min(max(alone, 0.0), 1.0)) * joules / 2  # by time: it may be all of it, or none
        variance = (
            tally.variance(lag) + (tally.weighted * idle.uncertainty) ** 2 + (self.gain * joules) ** 2 + shared**2
        )
        return Amount(
            joules=joules,
            uncertainty=math.sqrt(variance),
            gross=tally.joules,
            seconds=tally.seconds,
            covered=tally.covered / tally.seconds if tally.seconds else 0.0,
            alone=alone,
        )


def _weights(phases: Seconds, seconds: float) -> dict[tuple[int, str], float]:
    """The shares of an interval's energy; they sum to 1."""
    work = {key: spent for key, spent in phases.items() if key[1] != IDLE and spent > 0}
    waits = {key: spent for key, spent in phases.items() if key[1] == IDLE and spent > 0}
    busy, waiting = math.fsum(work.values()), math.fsum(waits.values())
    if not work and not waits:
        return {(0, OTHER): 1.0}
    if waits and busy < _NEGLIGIBLE * seconds:
        rest = 1 - busy / seconds
        shares = {key: spent / seconds for key, spent in work.items()}
        return shares | {key: rest * spent / waiting for key, spent in waits.items()}
    return {key: spent / busy for key, spent in work.items()}
