"""Warnings about what others send, which a flood of nonsense does not turn into a flood of lines."""

from __future__ import annotations

import logging
from collections import Counter

#: Warnings about one sender that are written in full; after them, those whose number is a power of two.
_FREELY = 20
#: Senders that are told apart.
_SENDERS = 1000


class Complaints:
    """Writes warnings, ever fewer about the same sender."""

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._counts: Counter[str] = Counter()

    def add(self, sender: str, text: str) -> None:
        """Warn of something that a sender did."""
        if sender not in self._counts and len(self._counts) >= _SENDERS:
            sender = "others"
        self._counts[sender] += 1
        count = self._counts[sender]
        if count <= _FREELY:
            self._log.warning("%s", text)
        elif count & (count - 1) == 0:
            self._log.warning("%s (the %d. complaint of this kind)", text, count)
