"""Keeps account of the energy of each phase of the work, from the readings of a source."""

from __future__ import annotations

import math
import threading
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from fedspzo.device_runtime.energy.estimate import Estimate
from fedspzo.device_runtime.energy.figures import Figure, Idle
from fedspzo.device_runtime.energy.ledger import Amount, Lag, Ledger
from fedspzo.device_runtime.energy.readings import History, Pace, Readings, learn_pace, learn_step
from fedspzo.device_runtime.energy.source import COUNTER, Facts, Gap, Source
from fedspzo.device_runtime.errors import EnergyError
from fedspzo.device_runtime.platform.profiling import IDLE, Seconds

#: Seconds after which a counter that has not moved is believed not to.
STILL_S = 600.0
#: The share of work that needs readings for the rest to be filled in.
LEAST = 0.9


@dataclass(frozen=True)
class Account:
    """What was used, above idle, and how well that is known.

    Attributes:
        source: its name.
        facts: what it can tell, with what the readings showed of its resolution and its updates.
        pace: how it followed.
        idle: the idle power.
        work: all work.
        phases: by phase, waiting not among them.
        joules, seconds: of all that there are readings of, idle power and all.
        missed: seconds without readings, and ``reasons``: why.
        readings: what all of it was made of.
    """

    source: str
    facts: Facts
    pace: Pace
    idle: Idle
    work: Figure
    phases: Mapping[str, Figure]
    joules: float
    seconds: float
    missed: float
    reasons: tuple[str, ...]
    readings: Readings


class Clock(Protocol):
    """Tells the time, and what was done in it; a :class:`fedspzo.device_runtime.platform.profiling.PhaseTimer` is one.

    Attributes:
        round: what is being done belongs to it.
    """

    round: int

    def take(self) -> tuple[float, Seconds]:
        """The time, and the seconds of phases since the last time they were taken."""

    def peek(self) -> Seconds:
        """The seconds of phases since the last time they were taken, which stay."""


class Meter:
    """Accounts for what a source reads while a clock follows the work; any thread may call it."""

    def __init__(self, source: Source, timer: Clock) -> None:
        """Prepare to read."""
        self.source = source
        self._timer = timer
        self._ledger = Ledger(source.facts.gain)
        self._lock = threading.Lock()
        self._last: tuple[float, float] | None = None  # when, and what was read
        self._since: float | None = None  # the start of what is not in the ledger yet
        self._pending: Seconds = defaultdict(float)  # what was done in that time
        self._history = History()
        self._reasons: dict[str, None] = {}
        self._moves, self._reads, self._least = 0, 0, math.inf
        self._broken: EnergyError | None = None

    def sample(self, final: bool = False) -> None:
        """Read once.

        Args:
            final: end the last interval here, though a counter may be about to move.

        Raises:
            EnergyError: the source contradicts itself.
        """
        with self._lock:
            try:
                value = self.source.read()
            except Gap as gap:
                self._reasons[str(gap)] = None
                self._skip(self._pass(math.nan))
            except EnergyError as error:
                self._broken = error
                raise
            else:
                self._take(value, final)

    def account(self) -> Account:
        """What was used so far. Raises EnergyError when the source has contradicted itself, or shown nothing yet."""
        with self._lock:
            if self._broken is not None:
                raise self._broken
            if self._blind:
                raise EnergyError(
                    "energy.counter-still", f"the counter of '{self.source.name}' has not moved yet; measure for longer"
                )
            if not self._ledger.seconds:
                why = f" ({'; '.join(self._reasons)})" if self._reasons else ""
                raise EnergyError(
                    "energy.no-reading",
                    f"'{self.source.name}' gave no reading during the measurement{why}; choose another source",
                )
            readings = self._history.readings()
            facts = replace(self.source.facts, resolution=learn_step(readings, self.source.facts))
            pace = learn_pace(readings, facts)
            estimate = Estimate(readings, facts, pace)
            return Account(
                source=self.source.name,
                facts=replace(facts, period=pace.period),
                pace=pace,
                idle=estimate.idle,
                work=estimate.work(),
                phases={name: estimate.phase(name) for name in readings.works},
                joules=self._ledger.joules,
                seconds=self._ledger.seconds,
                missed=self._ledger.missed,
                reasons=tuple(self._reasons),
                readings=readings,
            )

    def round(self, number: int) -> Amount | None:
        """A round's work so far; None when most of it has no readings, or the idle power is not known.

        What a slow source has yet to show counts at the mean power of the work before it, and as uncertain as it is.
        """
        with self._lock:
            if self._blind or self._baseless:
                return None
            pending = sum(s for (round, phase), s in self._waiting().items() if round == number and phase != IDLE)
            lag = self._lag
            known, work = self._ledger.round(number, lag), self._ledger.work(lag)
        covered = known.covered * known.seconds
        if pending and work.seconds * work.covered:
            guess = pending * work.joules / (work.seconds * work.covered)
            variance = known.uncertainty**2 + guess**2
            known = replace(
                known, joules=known.joules + guess, uncertainty=math.sqrt(variance), seconds=known.seconds + pending
            )
            covered += pending
        return complete(replace(known, covered=covered / known.seconds)) if known.seconds else None

    def closed_rounds(self) -> list[tuple[int, Amount, Mapping[str, Amount]]]:
        """Rounds before the present one whose readings are all in: number, work, phases. Each is given once."""
        with self._lock:
            if self._baseless:
                return []
            waiting = {round for (round, _), seconds in self._waiting().items() if seconds}
            ready = [round for round in self._ledger.rounds() if round < min(waiting | {self._timer.round})]
            return [(round, *self._ledger.close(round, self._lag)) for round in ready]

    def _take(self, value: float, final: bool) -> None:
        facts = self.source.facts
        now = self._pass(value)
        if self._last is None:
            self._skip(now)
            self._last = now, value
            return
        then, before = self._last
        self._reads += 1
        if facts.kind == COUNTER:
            if value != before:
                self._moves += 1
                self._least = min(self._least, abs(value - before))
            elif facts.period and not final and sum(self._pending.values()) < STILL_S:
                return  # the interval lasts until the counter moves
        seconds, self._last, self._since = now - then, (now, value), now
        phases, self._pending = self._pending, defaultdict(float)
        if facts.kind == COUNTER:
            self._ledger.add(value - before, seconds, 0.0, phases)
        else:
            variance = seconds**2 * ((value - before) ** 2 / 2 + facts.resolution**2 / 12)
            self._ledger.add((value + before) / 2 * seconds, seconds, variance, phases)

    def _pass(self, value: float) -> float:
        """Note a reading, or NaN, and what was done before it; returns when it was."""
        now, phases = self._timer.take()
        self._history.add(now, value, phases)
        for key, seconds in phases.items():
            self._pending[key] += seconds
        return now

    def _skip(self, now: float) -> None:
        """Go without readings up to now."""
        if self._since is not None:
            self._ledger.skip(now - self._since, self._pending)
        self._last, self._since, self._pending = None, now, defaultdict(float)

    def _waiting(self) -> Seconds:
        """What was done since what is in the ledger."""
        waiting = defaultdict(float, self._pending)
        for key, seconds in self._timer.peek().items():
            waiting[key] += seconds
        return waiting

    @property
    def _baseless(self) -> bool:
        """Whether the idle power is not known, so that nothing can be told above it."""
        return self.source.facts.measured and not self._ledger.idle(self._lag).seconds

    @property
    def _blind(self) -> bool:
        """Whether a counter has not moved yet: its steps may be of any size."""
        facts = self.source.facts
        return facts.kind == COUNTER and facts.period > 0 and self._reads > 0 and not self._moves

    @property
    def _facts(self) -> Facts:
        """The source's, with the resolution and the period that a counter was seen to have."""
        facts = self.source.facts
        if facts.kind != COUNTER or not facts.period or self._moves * 1.5 > self._reads or not self._moves:
            return facts  # it moves as fast as it is read, or faster
        return replace(
            facts,
            resolution=max(facts.resolution, self._least),
            period=max(facts.period, self._ledger.seconds / self._moves),
        )

    @property
    def _lag(self) -> Lag:
        facts = self._facts
        return Lag(facts.resolution, facts.period) if facts.kind == COUNTER else Lag(0.0, 0.0)


def complete(amount: Amount, least: float = LEAST) -> Amount | None:
    """Energy with what readings are missing for filled in at its own mean, and so much less certain; None where less
    than a share ``least`` of the time has readings."""
    if amount.covered < least:
        return None
    joules = amount.joules / amount.covered
    return replace(
        amount, joules=joules, uncertainty=math.hypot(amount.uncertainty / amount.covered, joules - amount.joules)
    )
