"""The energy of a device's work, round by round: sent to a server that asks for it, and kept in the state folder."""

from __future__ import annotations

import json
import logging
import math
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from fedspzo.device_runtime.energy.ledger import Amount
from fedspzo.device_runtime.energy.meter import LEAST, Meter
from fedspzo.device_runtime.energy.sampler import MOST_OF_TIME
from fedspzo.device_runtime.energy.source import Source
from fedspzo.device_runtime.errors import EnergyError, StateError
from fedspzo.device_runtime.files import open_private
from fedspzo.device_runtime.platform.conditions import Conditions
from fedspzo.device_runtime.platform.profiling import IDLE, SILENT, PhaseTimer, Recorder
from fedspzo.device_runtime.protocol.messages import Energy
from fedspzo.device_runtime.replica.state import ENERGY

log = logging.getLogger(__name__)

_T = TypeVar("_T")
#: Seconds between signs of life while the device idles.
_SIGN_S = 1.0
#: The longest idle time at the end, in s: a server waits three times as long for the last report.
LAST_S = 20.0


class NoBook:
    """Where no account is kept; and what an account is asked for.

    Attributes:
        recorder: is told what the device does.
    """

    recorder: Recorder = SILENT

    def spent(self, round: int) -> tuple[Energy, ...]:
        """What a round's work took so far, once; nothing where that is not known."""
        return ()

    def total(self) -> tuple[Energy, ...]:
        """What all work took, once, up to this moment; nothing where that is not known."""
        return ()

    def rest(self) -> None:
        """Idle for so long as the idle power takes to be known, or until :meth:`stop` is called."""

    def stop(self) -> None:
        """Idle no more; any thread may call this."""

    def note(self, round: int, loss: float) -> None:
        """Keep the loss that a round measured beside its joules."""

    def write(self, now: Conditions) -> None:
        """Keep the rounds whose readings are all in.

        Raises:
            StateError: they cannot be written.
        """


class Book(NoBook):
    """Keeps account of one device.

    Attributes:
        recorder: is told what the device does.
    """

    def __init__(
        self, source: Source, folder: Path, idle_s: float = 0.0, alive: Callable[[], None] = lambda: None
    ) -> None:
        """Start with what is in the folder of the device's state.

        Args:
            idle_s: seconds of idleness before and after all work, which show the idle power; after it no more than
                :data:`LAST_S`.
            alive: told every now and then while it idles.
        """
        self._idle_s, self._alive = idle_s, alive
        self._stopping = threading.Event()
        self.recorder: PhaseTimer = PhaseTimer()
        self._meter = Meter(source, self.recorder)
        self._source = source
        self._file = folder / ENERGY
        self._described: dict[str, Any] = {}
        self._losses: dict[int, float] = {}
        self._failed = False
        self._due = 0.0

    def sample(self) -> None:
        """Read the source. Raises EnergyError when it contradicts itself."""
        self._meter.sample()

    def rest(self) -> None:
        """See :class:`NoBook`."""
        self._rest(self._idle_s)

    def stop(self) -> None:
        """See :class:`NoBook`."""
        self._stopping.set()

    def spent(self, round: int) -> tuple[Energy, ...]:
        """See :class:`NoBook`."""
        return self._say(self._try(self._refresh, lambda: self._meter.round(round)))

    def total(self) -> tuple[Energy, ...]:
        """See :class:`NoBook`."""
        self._rest(min(self._idle_s, LAST_S))
        account = self._try(lambda: self._meter.sample(final=True), self._meter.account)
        if account is None:
            return ()
        work, idle = account.work, account.idle
        if idle.watts is not None and idle.drift is not None:
            log.info("idle takes %.3f W, and drifted by %+.3f W", idle.watts, idle.drift)
        if work.joules is None or work.covered < LEAST:
            log.warning("the joules of all work are not told: %s", work.reason or "too little of it has readings")
            return ()
        joules = work.joules / work.covered  # what has no readings counts at the mean, and as uncertain as it is
        return self._tell(joules, math.hypot(work.uncertainty / work.covered, joules - work.joules))

    def note(self, round: int, loss: float) -> None:
        """See :class:`NoBook`."""
        self._losses[round] = loss

    def write(self, now: Conditions) -> None:
        """Append to the file, below what is known of their source. See :class:`NoBook`."""
        records = [self._record(*closed, now) for closed in self._meter.closed_rounds() if closed[1].seconds]
        facts = self._source.facts
        described = {
            "source": self._source.name,
            "measured": facts.measured,
            "scope": facts.scope,
            "remarks": list(facts.remarks),
        }
        try:
            if records:
                new = [described] if described != self._described else []
                lines = [json.dumps(record) for record in (*new, *records)]
                with open_private(self._file, "a") as file:  # a killed process may have left half a line
                    file.write("".join(f"{line}\n" for line in (*[""] * bool(new), *lines)))
                self._described = described
        except OSError as error:
            raise StateError(
                "state.unwritable",
                f"{self._file} cannot be written ({error.strerror}); make room, or make the folder writable",
            ) from None

    def _rest(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        with self.recorder.phase(IDLE):
            while (left := end - time.monotonic()) > 0 and not self._stopping.wait(min(left, _SIGN_S)):
                self._alive()

    def _record(self, round: int, work: Amount, phases: Mapping[str, Amount], now: Conditions) -> dict[str, Any]:
        return {
            "round": round,
            "joules": work.joules,
            "uncertainty": work.uncertainty,
            "seconds": work.seconds,
            "covered": work.covered,
            "loss": self._losses.pop(round, None),
            "phases": {name: [amount.joules, amount.uncertainty, amount.seconds] for name, amount in phases.items()},
            "battery": now.battery,
            "charging": now.charging,
            "temperature_c": now.temperature_c if np.isfinite(now.temperature_c) else None,
            "throttled": now.throttled,
        }

    def _say(self, amount: Amount | None) -> tuple[Energy, ...]:
        return self._tell(amount.joules, amount.uncertainty) if amount else ()

    def _tell(self, *amount: float) -> tuple[Energy, ...]:
        joules, uncertainty = (float(np.float32(number)) for number in amount)
        return (Energy(joules, uncertainty, not self._source.facts.measured),)

    def _refresh(self) -> None:
        """Read the source, unless reading took too much of the time already."""
        started = time.perf_counter()
        if started >= self._due:
            self._meter.sample()
            ended = time.perf_counter()
            self._due = ended + (ended - started) / MOST_OF_TIME

    def _try(self, refresh: Callable[[], None], ask: Callable[[], _T]) -> _T | None:
        """What the meter says; nothing, and a complaint once, when its source contradicts itself."""
        try:
            refresh()
            return ask()
        except EnergyError as error:
            if not self._failed:
                self._failed = True
                log.warning("energy is not told: %s", error, extra={"kind": error.kind})
            return None


def read_book(folder: Path) -> list[dict[str, Any]]:
    """The rounds that a device has kept account of, each with what is known of its source.

    A line that a killed process left half is passed over.

    Raises:
        EnergyError: there is no account.
    """
    try:
        lines = (folder / ENERGY).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise EnergyError(
            "energy.no-account", f"{folder / ENERGY} cannot be read ({error}); run the device with --energy"
        ) from None
    records: list[dict[str, Any]] = []
    source: dict[str, Any] = {}
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and "source" in record:
            source = record
        elif isinstance(record, dict) and "round" in record and source:
            records.append(source | record)
    return records
