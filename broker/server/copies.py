"""Devices that run twice, as from a copied state folder: log and status name them. No key counts under two names."""

from __future__ import annotations

import logging

from fedspzo.broker.server.devices import Roster
from fedspzo.broker.server.progress import Progress
from fedspzo.device_runtime.log import RateLimitedLog, printable

log = logging.getLogger(__name__)


class Copies:
    """Notices them."""

    def __init__(self, roster: Roster, progress: Progress) -> None:
        self._roster, self._progress = roster, progress
        self._warnings = RateLimitedLog(log)

    def count(self, device: str) -> int:
        """How often a device was found to run twice."""
        member = self._roster.get(device)
        return member.copies if member else 0

    def tell(self, device: str, before: int) -> None:
        """Warn where a device was found to run in two processes since it had this count."""
        if self.count(device) > before:
            self._warn(
                device,
                f"device '{device}' runs in two processes with one key: was its state folder copied? Stop one of them,"
                " and start it with a state folder and an id of its own",
            )

    def refusal(self, device: str, key: bytes) -> str | None:
        """Why a device that has shown that a key is its own may not take part: it has another's, and would count twice.

        None where it may.
        """
        owner = self._roster.owner(key)
        if owner is None or owner == device:
            return None
        if (member := self._roster.edit(owner)) is not None:
            member.copies += 1
        cure = f"start it with a state folder of its own, or have the server forget '{owner}' (fedspzo forget)"
        self._warn(
            owner,
            f"device '{printable(device, 64)}' is refused, for its key is that of device '{owner}': was a state folder"
            f" copied? If so, {cure}",
        )
        return f"its key is that of device '{owner}'; {cure}"

    def _warn(self, device: str, text: str) -> None:
        self._progress.counts["copies seen"] += 1
        self._warnings.warn(device, text, "device.copied")
