"""The log: levels that systemd's journal understands, and warnings that a flood of nonsense does not multiply."""

from __future__ import annotations

import logging
import os
from collections import Counter
from contextlib import suppress

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


def marked(text: str, level: int) -> str:
    """Text for the standard error: with its level before each line where the journal reads it (sd-daemon(3))."""
    with suppress(OSError):
        status = os.fstat(2)
        if os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}":
            priority = 3 if level >= logging.ERROR else 4 if level >= logging.WARNING else 6
            return "\n".join(f"<{priority}>{line}" for line in text.split("\n"))
    return text


class Formatter(logging.Formatter):
    """Formats a log's lines as :func:`marked` has them."""

    def format(self, record: logging.LogRecord) -> str:
        """See :meth:`logging.Formatter.format`."""
        return marked(super().format(record), record.levelno)
