"""When a device that hears nothing from its server says so: after 10 s, and then at growing intervals."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

from fedspzo.device_runtime.device.events import Waiting
from fedspzo.device_runtime.errors import BundleError

log = logging.getLogger(__name__)

#: Seconds without a word after which a device says so for the first time: after it has connected; and once it has heard
#: the server, which has nothing to say to a device that is not asked in a round.
FIRST_S, QUIET_S = 10.0, 300.0
#: Most seconds between two notices.
LONGEST_S = 3600.0


class Silence:
    """Watches for how long the server has said nothing.

    Attributes:
        due: when to call :meth:`tell`, by the monotonic clock.
    """

    def __init__(self, job: str, place: str, bundle: Path, observe: Callable[[Waiting], None]) -> None:
        """``place`` is the broker's URL; ``observe`` is told of each notice."""
        self._job, self._place, self._bundle, self._observe = job, place, bundle, observe
        self._told = self._warned = self._foreign = False
        self._since = time.monotonic()
        self._wait = FIRST_S
        self.due = self._since + self._wait

    def begin(self) -> None:
        """The connection stands, from now on."""
        self._begin(FIRST_S)

    def end(self) -> None:
        """The server was heard."""
        if self._told:
            log.info("the server of job '%s' is there", self._job)
            self._observe(Waiting(""))
        self._told = self._warned = self._foreign = False
        self._begin(QUIET_S)

    def reject(self) -> None:
        """A message came whose signature is not that of the bundle's server."""
        self._foreign = True

    def tell(self, connected: bool) -> None:
        """Say what the device waits for, and what the reason may be."""
        now = time.monotonic()
        self._told = True
        waited = f"for {now - self._since:.0f} s"
        if not connected:
            reason = f"there is no connection to the broker at {self._place} {waited}; trying again"
            log.info("%s", reason)
        elif self._foreign:
            error = BundleError(
                "device.wrong-server-key",
                f"another server than that of {self._bundle} signs the messages of job '{self._job}' at {self._place}:"
                " the bundle belongs to another server; fetch it again from this job's server (fedspzo fetch)",
            )
            reason = str(error)
            if not self._warned:
                self._warned = True
                log.warning("%s", error, extra={"kind": error.kind})
        else:
            reason = (
                f"waiting for the server of job '{self._job}' at {self._place}, not heard {waited}: it may not be"
                " running, the job may have another name (--job) or be over, or a round may be open that began before"
            )
            log.info("%s", reason)
        self._observe(Waiting(reason))
        self._wait = min(2 * self._wait, LONGEST_S)
        self.due = now + self._wait

    def _begin(self, wait: float) -> None:
        self._since = time.monotonic()
        self._wait = wait
        self.due = self._since + wait
