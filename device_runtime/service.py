"""A device as a service of systemd: it says that it has started, that it gets on and what it does, and marks its log.

The words are datagrams to the socket that ``$NOTIFY_SOCKET`` names (sd_notify(3)); elsewhere nothing is said. The
watchdog hears of work that is done, of each graph that has run and of each turn of the agent, so that a device that
hangs is started anew and one that is slow is not.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from device_runtime.engines import Constants, Engine, Linear, PackedGraph, PackingEngine, StageGraph

READY, ALIVE = "READY=1", "WATCHDOG=1"


class ServiceManager:
    """Who started this process, if it wants to be told."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        address = environment.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) if address else None

    def say(self, *words: str) -> None:
        """Say something like ``STATUS=round 3``; what the manager does not take is lost, and no work waits for it."""
        if self._socket is not None:
            with suppress(OSError):
                self._socket.sendto("\n".join(words).encode(), socket.MSG_DONTWAIT, self._address)


class WatchedEngine:
    """An engine that tells of each graph that has run. See :class:`device_runtime.engines.Engine`."""

    def __init__(self, engine: Engine, ran: Callable[[], None]) -> None:
        self.name, self.format, self.takes_constants = engine.name, engine.format, engine.takes_constants
        self._engine, self._ran = engine, ran

    def load(self, path: Path, constants: Constants | None = None) -> StageGraph:
        """See :class:`device_runtime.engines.Engine`."""
        return _WatchedGraph(self._engine.load(path, constants), self._ran)

    def load_packed(self, path: Path, linear: Sequence[Linear]) -> PackedGraph | None:
        """See :class:`device_runtime.engines.PackingEngine`; None for an engine that is none."""
        graph = self._engine.load_packed(path, linear) if isinstance(self._engine, PackingEngine) else None
        return None if graph is None else _WatchedPackedGraph(graph, self._ran)


class _WatchedGraph:
    def __init__(self, graph: StageGraph, ran: Callable[[], None]) -> None:
        self._graph, self._ran = graph, ran

    def run(self, inputs: Sequence[np.ndarray], outputs: Sequence[np.ndarray]) -> None:
        """See :class:`device_runtime.engines.StageGraph`."""
        self._graph.run(inputs, outputs)
        self._ran()


class _WatchedPackedGraph(_WatchedGraph):
    def __init__(self, graph: PackedGraph, ran: Callable[[], None]) -> None:
        super().__init__(graph, ran)
        self.weights = graph.weights


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
