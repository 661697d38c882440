"""What the device did at which time of day, kept for a meter's log that is read afterwards."""

from __future__ import annotations

import itertools
import json
import math
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path

from fedspzo.device_runtime.energy.external import FAR_S, Edges, Replay, align_edges
from fedspzo.device_runtime.energy.meter import Account, Meter
from fedspzo.device_runtime.energy.meter_log import Log
from fedspzo.device_runtime.errors import EnergyError
from fedspzo.device_runtime.platform.profiling import IDLE, PhaseTimer, Seconds

#: Seconds between entries.
TICK_S = 0.1


@dataclass(frozen=True)
class Tick:
    """A moment in seconds since the epoch, and the seconds of phases since the one before."""

    at: float
    phases: Seconds


@dataclass
class Timeline:
    """Moments in order.

    Attributes:
        steps: that each repetition took.
        ticks: the moments.
        repetitions: when each began and ended, with the idle times around it.
    """

    steps: tuple[int, ...] = ()
    ticks: list[Tick] = field(default_factory=list)
    repetitions: tuple[tuple[float, float], ...] = ()

    def write(self, file: Path) -> None:
        """Keep it in a file. Raises EnergyError when it cannot be written."""
        ticks = [[tick.at, [[*key, seconds] for key, seconds in tick.phases.items()]] for tick in self.ticks]
        record = {"steps": self.steps, "repetitions": self.repetitions, "ticks": ticks}
        try:
            file.write_text(json.dumps(record), encoding="utf-8")
        except OSError as error:
            raise EnergyError(
                "energy.timeline-unwritable",
                f"{file} cannot be written ({error.strerror}); make room, or choose another folder",
            ) from None

    @classmethod
    def read(cls, file: Path) -> Timeline:
        """As it was written. Raises EnergyError when the file is not a timeline."""
        try:
            record = json.loads(file.read_text(encoding="utf-8"))
            ticks = [
                Tick(float(at), {(int(round), str(phase)): float(s) for round, phase, s in phases})
                for at, phases in record["ticks"]
            ]
            repetitions = tuple((float(begin), float(end)) for begin, end in record.get("repetitions", ()))
            steps = tuple(int(taken) for taken in record["steps"])
            moments = [tick.at for tick in ticks]
            if len(ticks) < 2 or not all(
                before < at < math.inf for before, at in itertools.pairwise([-math.inf, *moments])
            ):
                raise ValueError("it needs two or more times that rise")
            if not all(0 <= seconds < math.inf for tick in ticks for seconds in tick.phases.values()):
                raise ValueError("it has seconds that are not finite")
            if repetitions and len(repetitions) != len(steps):
                raise ValueError("its steps are not those of its repetitions")
            return cls(steps, ticks, repetitions)
        except (OSError, ValueError, OverflowError, KeyError, TypeError, AttributeError) as error:
            raise EnergyError(
                "energy.not-a-timeline",
                f"{file} is not a timeline ({error}); write one with: fedspzo energy measure --timeline",
            ) from None


class Recording:
    """Fills a timeline as a timer goes; call :meth:`sample` now and then."""

    def __init__(self, timer: PhaseTimer) -> None:
        """Start here."""
        self.timeline = Timeline()
        self._timer = timer
        self._shift = time.time() - timer.clock()

    def sample(self) -> None:
        """Take an entry."""
        now, phases = self._timer.take()
        self.timeline.ticks.append(Tick(now + self._shift, phases))

    def finish(self, steps: Sequence[int], repetitions: Sequence[tuple[float, float]]) -> None:
        """Say how many steps each repetition took, and when repetitions began and ended by the timer's clock."""
        self.timeline.steps = tuple(steps)
        self.timeline.repetitions = tuple((begin + self._shift, end + self._shift) for begin, end in repetitions)


def settle(timeline: Timeline, log: Log, offset: float | None) -> Account:
    """The account of a timeline by a meter's log.

    Args:
        offset: seconds to add to the log's times; None to find them by the edges of the work.

    Raises:
        EnergyError: the log does not fit.
    """
    if offset is None:
        edges = align_edges(log, *_busy(timeline.ticks))
        return _lay(timeline, log, edges.offset, _describe(edges, log))
    if not log.absolute and not offset:
        raise EnergyError(
            "energy.log-start-unknown",
            f"{log.name} does not say at what time it starts; give the --offset, or --offset edges",
        )
    return _lay_as_stated(timeline, log, offset)


def _describe(edges: Edges, log: Log) -> str:
    """How the offset was found."""
    how = f"the log's times plus {edges.offset:.2f} s follow the work best (correlation {edges.score:.2f})"
    if log.absolute and abs(edges.offset) > FAR_S:
        return f"{how}; ITS CLOCK AND THE DEVICE'S DISAGREE by {-edges.offset:.0f} s"
    if log.absolute and abs(edges.offset) > log.period:
        return f"{how}; its clock is {-edges.offset:.2f} s off the device's"
    return how


def _lay_as_stated(timeline: Timeline, log: Log, offset: float) -> Account:
    """The account at a stated offset, unless the edges of the work tell that it gives wrong joules."""
    how = f"the log's times plus {offset:.12g} s, as stated, are the device's"
    try:
        edges = align_edges(log, *_busy(timeline.ticks))
    except EnergyError:
        return _lay(timeline, log, offset, f"{how}; the edges of the work cannot tell")
    if abs(edges.offset - offset) <= edges.within:
        return _lay(timeline, log, offset, how)
    how += f"; THE EDGES OF THE WORK DISAGREE: they say {edges.offset:.2f} s (correlation {edges.score:.2f})"
    account = _lay(timeline, log, offset, how)
    if _differ(account, _lay(timeline, log, edges.offset, "")):
        raise EnergyError(
            "energy.offset-contradicted",
            f"{log.name} plus {offset:.12g} s, as stated, gives other joules than plus {edges.offset:.2f} s, which the"
            f" edges of the work say (correlation {edges.score:.2f}); take --offset edges, or correct yours",
        )
    return account


def _lay(timeline: Timeline, log: Log, offset: float, how: str) -> Account:
    """The account at an offset, which was found so."""
    _check_overlap(timeline, log, offset)
    source = Replay(log, offset, how)
    player = _Player(timeline.ticks, log.period)
    meter = Meter(source, player)
    while player.turn():
        source.now = player.now
        meter.sample()
    return meter.account()


def _differ(one: Account, other: Account) -> bool:
    """Whether a figure of the other lies outside the interval of the one, or is not known."""
    for (value, width), (its, _) in zip(_figures(one), _figures(other), strict=True):
        if value is not None and width is not None and (its is None or abs(value - its) > width):
            return True
    return False


def _figures(account: Account) -> list[tuple[float | None, float | None]]:
    """What is told of idleness, of all work and of phases, each with half of its interval."""
    idle, works = account.idle, [account.work, *account.phases.values()]
    told = [(f.joules / f.covered, (f.half_width or 0.0) / f.covered) if f.joules else (None, None) for f in works]
    return [(idle.watts, idle.half_width), *told]


def _check_overlap(timeline: Timeline, log: Log, offset: float) -> None:
    """Raises EnergyError where no row of the log lies in the measurement."""
    begin, end = timeline.ticks[0].at, timeline.ticks[-1].at
    first, last = log.times[0] + offset, log.times[-1] + offset
    if first > end or last < begin:
        raise EnergyError(
            "energy.log-elsewhere",
            f"{log.name} plus {offset:.12g} s is from {_say(first)} to {_say(last)}, and the measurement from"
            f" {_say(begin)} to {_say(end)}; give the --offset that lays one over the other, or --offset edges",
        )


def _say(moment: float) -> str:
    try:
        return f"{datetime.fromtimestamp(moment, timezone.utc):%Y-%m-%d %H:%M:%S} UTC"
    except (OverflowError, ValueError, OSError):
        return f"{moment:g} s"


class _Player:
    """A :class:`fedspzo.device_runtime.energy.meter.Clock` that goes through a timeline, by a log's period or more."""

    def __init__(self, ticks: Sequence[Tick], period: float) -> None:
        self.now, self.round = 0.0, 0
        self._ticks, self._period = list(ticks), period
        self._next = 0
        self._phases: Seconds = defaultdict(float)

    def turn(self) -> bool:
        """Go on; tell whether there was anything left."""
        start = self.now
        while self._next < len(self._ticks):
            tick = self._ticks[self._next]
            self._next += 1
            self.now = tick.at
            for key, seconds in tick.phases.items():
                self._phases[key] += seconds
            if tick.at >= start + self._period:
                break
        return self.now > start

    def take(self) -> tuple[float, Seconds]:
        taken, self._phases = self._phases, defaultdict(float)
        return self.now, taken

    def peek(self) -> Seconds:
        return self._phases


def _busy(ticks: Sequence[Tick]) -> tuple[list[float], list[float]]:
    """The middles of the spans between ticks, and the share of each that was work."""
    middles = [(before.at + tick.at) / 2 for before, tick in itertools.pairwise(ticks)]
    return middles, [_share(tick.phases) for tick in ticks[1:]]


def _share(phases: Seconds) -> float:
    total = sum(phases.values())
    return sum(s for (_, phase), s in phases.items() if phase != IDLE) / total if total else 0.0
