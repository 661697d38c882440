"""The last lines of this process's log, for the console: as they are on the screen, one by one."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fedspzo.device_runtime.log import printable

#: Lines that are kept, and characters of each.
LINES, CHARACTERS = 300, 1000


class RecentLog(logging.Handler):
    """Keeps the last lines from level info on; what is sent and received (debug) is left out. Any thread may ask."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self._lines: deque[dict[str, Any]] = deque(maxlen=LINES)
        self._began, self._count = time.time_ns(), 0

    def emit(self, record: logging.LogRecord) -> None:
        """See :meth:`logging.Handler.emit`."""
        try:
            text = record.getMessage()
            if record.exc_info and record.exc_info[1] is not None:
                text += f": {record.exc_info[1]!r}"
            self._lines.append(
                {
                    "at": record.created,
                    "level": record.levelname.lower(),
                    "kind": str(getattr(record, "kind", "")),
                    "text": printable(text, CHARACTERS),
                }
            )
            self._count += 1
        except Exception:
            self.handleError(record)

    @property
    def stamp(self) -> str:
        """Changes with each line, and with each start of the server."""
        return f"{self._began}-{self._count}"

    def lines(self) -> list[dict[str, Any]]:
        """The lines, the oldest first: time (Unix), level, kind and text."""
        self.acquire()
        try:
            return list(self._lines)
        finally:
            self.release()


@contextmanager
def recent_log() -> Iterator[RecentLog]:
    """What this package logs while the context lasts."""
    kept, ours = RecentLog(), logging.getLogger("fedspzo")
    ours.addHandler(kept)
    try:
        yield kept
    finally:
        ours.removeHandler(kept)
