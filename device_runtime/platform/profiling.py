"""What a device does at a moment: phases of its work, which are timed only when something measures.

Code says what it does with ``with recorder.phase(PERTURB): …``. Phases nest: what is inside another is taken out of it.
Each thread has phases of its own, so that weights that are perturbed ahead of the engine are seen beside it.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from types import TracebackType
from typing import Protocol

TOKENISE, PERTURB, APPLY, NETWORK, OTHER, IDLE = "tokenise", "perturb", "apply", "network", "other", "idle"

#: Seconds spent in each phase of each round: (round, phase) → seconds, summed over threads.
Seconds = dict[tuple[int, str], float]


def forward_block(block: int) -> str:
    """The phase of a block's forward passes; blocks count from 0 here and from 1 in its name."""
    return f"forward block {block + 1}"


class Recorder(Protocol):
    """Is told what the device does."""

    def phase(self, name: str) -> AbstractContextManager[None]:
        """A context in which the calling thread is in a phase."""

    def turn_to(self, round: int) -> None:
        """What follows belongs to another round."""


class _Silent:
    def __init__(self) -> None:
        self._nothing = nullcontext()

    def phase(self, name: str) -> AbstractContextManager[None]:
        return self._nothing

    def turn_to(self, round: int) -> None:
        pass


#: Where nobody measures.
SILENT: Recorder = _Silent()


@dataclass
class _Thread:
    """A thread's open phases, the innermost last, and since when it is in that one."""

    phases: list[str] = field(default_factory=list)
    since: float = 0.0


class PhaseTimer:
    """Adds up the seconds of phases until somebody takes them. See :class:`Recorder`."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Start with no phase and round 0, by a clock in seconds."""
        self.clock = clock
        self.round = 0
        self._lock = threading.Lock()
        self._threads: dict[int, _Thread] = {}
        self._seconds: Seconds = defaultdict(float)

    def phase(self, name: str) -> AbstractContextManager[None]:
        """See :class:`Recorder`."""
        return _Phase(self, name)

    def turn_to(self, round: int) -> None:
        """See :class:`Recorder`."""
        with self._lock:
            self._bank_all(self.clock())
            self.round = round

    def take(self) -> tuple[float, Seconds]:
        """The time, and the seconds of phases since the last time they were taken."""
        with self._lock:
            now = self.clock()
            self._bank_all(now)
            taken, self._seconds = self._seconds, defaultdict(float)
            return now, taken

    def peek(self) -> Seconds:
        """The seconds of phases since the last time they were taken, which stay."""
        with self._lock:
            self._bank_all(self.clock())
            return dict(self._seconds)

    def enter(self, name: str) -> None:
        """The calling thread is in a phase, inside those that it was in."""
        with self._lock:
            now = self.clock()
            thread = self._threads.setdefault(threading.get_ident(), _Thread())
            self._bank(thread, now)
            thread.phases.append(name)

    def leave(self) -> None:
        """The calling thread has left its innermost phase."""
        with self._lock:
            now = self.clock()
            thread = self._threads[threading.get_ident()]
            self._bank(thread, now)
            thread.phases.pop()
            if not thread.phases:
                del self._threads[threading.get_ident()]

    def _bank_all(self, now: float) -> None:
        for thread in self._threads.values():
            self._bank(thread, now)

    def _bank(self, thread: _Thread, now: float) -> None:
        if thread.phases:
            self._seconds[self.round, thread.phases[-1]] += now - thread.since
        thread.since = now


class _Phase:
    def __init__(self, timer: PhaseTimer, name: str) -> None:
        self._timer, self._name = timer, name

    def __enter__(self) -> None:
        self._timer.enter(self._name)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.leave()
