"""The log of a program: how its lines look, where they go, and a limit for warnings that repeat.

Libraries only use ``logging.getLogger(__name__)``; commands use :func:`written_log`. A warning or an error has its kind
as ``extra={"kind": …}``, for programs that read the log as JSON.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from logging.handlers import WatchedFileHandler
from pathlib import Path

#: Warnings about one sender that are written in full; after them, those whose number is a power of two.
_IN_FULL = 20
#: Senders that are told apart.
_SENDERS = 1000
#: Characters of a sender's name that are kept.
_NAMED = 100


def printable(text: str, most: int = 300) -> str:
    """Text from outside as one line for a terminal or a log: of at most ``most`` characters, those escaped that act.

    They are control characters, line ends, and what turns the direction of writing.
    """
    return _escaped(text[:most]) + "…" * (len(text) > most)


def several(count: int, noun: str) -> str:
    """A number of things, in words."""
    return f"{count} {noun}{'s' * (count != 1)}"


def list_some(names: Sequence[str], most: int = 5) -> str:
    """Some of many names, and the number of the others."""
    return ", ".join(names[:most]) + f" and {several(len(names) - most, 'other')}" * (len(names) > most)


def _escaped(text: str) -> str:
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def _escaped_lines(text: str) -> str:
    """Lines as they are, and tabs in them; whatever else acts on a terminal is escaped."""
    if text.isprintable():
        return text
    return "\n".join("\t".join(map(_escaped, line.split("\t"))) for line in text.split("\n"))


class RateLimitedLog:
    """Writes warnings, ever fewer about the same sender."""

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._counts: Counter[str] = Counter()

    def warn(self, sender: str, text: str, kind: str = "") -> None:
        """Warn of something that a sender did."""
        sender = sender[:_NAMED]
        if sender not in self._counts and len(self._counts) >= _SENDERS:
            sender = "others"
        self._counts[sender] += 1
        count = self._counts[sender]
        if count <= _IN_FULL:
            self._log.warning("%s", text, extra={"kind": kind})
        elif count & (count - 1) == 0:
            self._log.warning("%s (%d warnings about this sender so far)", text, count, extra={"kind": kind})


class _Lines(logging.Formatter):
    """Text for people: time and level before the message, or the level's number alone where systemd's journal reads.

    A kind follows in brackets. An error that ends a command stands on the screen as the command's answer, undated.
    """

    def __init__(self, dated: bool, journal: bool = False, screen: bool = False) -> None:
        super().__init__("%(message)s", "%Y-%m-%d %H:%M:%S")
        self._dated, self._journal, self._screen = dated, journal, screen

    def format(self, record: logging.LogRecord) -> str:
        """See :meth:`logging.Formatter.format`."""
        text = _escaped_lines(super().format(record))
        if kind := getattr(record, "kind", ""):
            text = f"{text} [{kind}]"
        if self._journal:
            priority = 3 if record.levelno >= logging.ERROR else 4 if record.levelno >= logging.WARNING else 6
            return "\n".join(f"<{priority}>{line}" for line in text.split("\n"))  # sd-daemon(3)
        if not self._dated or (self._screen and record.name == "fedspzo.cli"):
            return text
        return f"{self.formatTime(record, self.datefmt)} {record.levelname:7} {text}"


class _JsonLines(logging.Formatter):
    """For programs: an object a line, with time, level, logger and message, and a kind where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """See :meth:`logging.Formatter.format`."""
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        fields = {
            "time": f"{moment}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _escaped_lines(record.getMessage()),
        }
        if kind := getattr(record, "kind", ""):
            fields["kind"] = kind
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return json.dumps(fields, ensure_ascii=False)


@contextmanager
def written_log(
    serving: bool = False, verbose: bool = False, as_json: bool = False, file: Path | None = None
) -> Iterator[None]:
    """Write this process's log to the standard error, and to a file too where one is given.

    Args:
        serving: the program runs until it is told to end: its lines have times, and say what it does (level info).
        verbose: say what is sent and received too (level debug).
        as_json: a JSON object a line.

    Raises:
        OSError: the file cannot be written.
    """
    handlers: list[logging.Handler] = [logging.StreamHandler()]
    handlers[0].setFormatter(_JsonLines() if as_json else _Lines(serving, _journal_reads_errors(), screen=True))
    if file is not None:
        handlers.append(WatchedFileHandler(file, encoding="utf-8"))
        handlers[1].setFormatter(_JsonLines() if as_json else _Lines(dated=True))
    root, ours = logging.getLogger(), logging.getLogger("fedspzo")
    level = ours.level
    for handler in handlers:
        root.addHandler(handler)
    ours.setLevel(logging.DEBUG if verbose else logging.INFO if serving else logging.NOTSET)
    try:
        yield
    finally:
        ours.setLevel(level)
        for handler in handlers:
            root.removeHandler(handler)
            handler.close()


def _journal_reads_errors() -> bool:
    """Whether the standard error goes to systemd's journal."""
    with suppress(OSError):
        status = os.fstat(2)
        return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"
    return False
