"""How a device that is far behind catches up: by the journal, or by a snapshot when that is quicker here and now.

Both speeds are measured, not guessed: rounds applied per second on this device, and bytes per second over this network.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path

from fedspzo.device_runtime.device.download import download
from fedspzo.device_runtime.errors import FedSPZOError
from fedspzo.device_runtime.protocol.messages import Offer

log = logging.getLogger(__name__)

#: A snapshot that has arrived is read and checked at about this speed, in bytes a second.
LOADED_PER_S = 4e8
#: Seconds and bytes after which a download's speed is believed.
_TRIAL_S, _TRIAL_BYTES = 1.0, 1 << 20
#: A download is given up when it will take so many times what the journal will: its beginning says only roughly.
MARGIN = 1.25


class _TooSlow(Exception):
    """The journal is quicker."""


class Planner:
    """Knows the pace of this device."""

    def __init__(self) -> None:
        self._rounds, self._seconds = 0, 0.0
        self._unreachable: set[str] = set()  # not tried again by this process

    def applied(self, rounds: int, seconds: float) -> None:
        """Learn how long it took to apply some journal entries."""
        self._rounds += rounds
        self._seconds += seconds

    def journal_seconds(self, rounds: int) -> float:
        """Seconds that so many rounds of the journal will take; 0 before the first one was applied."""
        return self._seconds / self._rounds * rounds if self._rounds else 0.0

    def fetch(self, offer: Offer, behind: int, path: Path, authority: str) -> bool:
        """Download a snapshot unless the journal is quicker.

        Args:
            behind: rounds between the replica and the snapshot.
            authority: whom to trust over HTTPS, see :func:`fedspzo.device_runtime.device.download.download`.

        Returns:
            Whether the snapshot is at ``path``, whole and as the server signed it.
        """
        allowed = self.journal_seconds(behind)
        if offer.size / LOADED_PER_S >= allowed or offer.url in self._unreachable:
            return False
        started = time.monotonic()
        before: list[int] = []

        def judge(done: int, total: int) -> None:
            seconds = time.monotonic() - started
            before[:] = before or [done]
            arrived = done - before[0]
            if done < total and (seconds > _TRIAL_S or arrived > _TRIAL_BYTES):
                rate = max(arrived, 1) / seconds
                if seconds + (total - done) / rate + total / LOADED_PER_S > MARGIN * allowed:
                    raise _TooSlow

        try:
            download(offer.url, path, offer.sha256.hex(), authority, judge, limit=offer.size)
        except _TooSlow:
            log.warning("the journal is quicker than the snapshot of round %d", offer.round)
            return False
        except FedSPZOError as error:
            log.warning("the snapshot of round %d cannot be had, so the journal is used: %s", offer.round, error)
            if len(self._unreachable) < 100:
                self._unreachable.add(offer.url)
            return False
        return True
