"""A thread that does something small every second, in a bounded share of the time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType

from fedspzo.device_runtime.errors import EnergyError

#: Seconds between readings.
INTERVAL_S = 1.0
#: The share of time that reading may take: a slow source is read less often.
MOST_OF_TIME = 0.0025


class Sampler:
    """Calls ``tick`` every ``interval`` seconds or less often, between entering and leaving it as a context manager.

    Attributes:
        cpu_seconds: what the thread has used.
    """

    def __init__(self, tick: Callable[[], None], interval: float = INTERVAL_S) -> None:
        """Prepare; a ``tick`` that raises EnergyError is the last."""
        self.cpu_seconds = 0.0
        self._tick, self._interval = tick, interval
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="energy", daemon=True)

    def __enter__(self) -> Sampler:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        wait = 0.0
        while not self._stop.wait(wait):
            started = time.perf_counter()
            try:
                self._tick()
            except EnergyError:
                return
            wait = max(self._interval, (time.perf_counter() - started) / MOST_OF_TIME)
            self.cpu_seconds = time.thread_time()
