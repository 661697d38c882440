"""An engine that reports each graph that has run, so that a watchdog can tell a slow device from one that hangs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from fedspzo.device_runtime.engines.protocol import Constants, Engine, Linear, PackedGraph, PackingEngine, StageGraph


class WatchedEngine:
    """An engine that tells of each graph that has run. See :class:`fedspzo.device_runtime.engines.protocol.Engine`."""

    def __init__(self, engine: Engine, ran: Callable[[], None]) -> None:
        self.name, self.format, self.takes_constants = engine.name, engine.format, engine.takes_constants
        self._engine, self._ran = engine, ran

    def load(self, path: Path, constants: Constants | None = None) -> StageGraph:
        """See :class:`fedspzo.device_runtime.engines.protocol.Engine`."""
        return _WatchedGraph(self._engine.load(path, constants), self._ran)

    def load_packed(self, path: Path, linear: Sequence[Linear]) -> PackedGraph | None:
        """See :class:`fedspzo.device_runtime.engines.protocol.PackingEngine`; None for an engine that is not one."""
        graph = self._engine.load_packed(path, linear) if isinstance(self._engine, PackingEngine) else None
        return None if graph is None else _WatchedPackedGraph(graph, self._ran)


class _WatchedGraph:
    def __init__(self, graph: StageGraph, ran: Callable[[], None]) -> None:
        self._graph, self._ran = graph, ran

    def run(self, inputs: Sequence[np.ndarray], outputs: Sequence[np.ndarray]) -> None:
        """See :class:`fedspzo.device_runtime.engines.protocol.StageGraph`."""
        self._graph.run(inputs, outputs)
        self._ran()


class _WatchedPackedGraph(_WatchedGraph):
    def __init__(self, graph: PackedGraph, ran: Callable[[], None]) -> None:
        super().__init__(graph, ran)
        self.weights = graph.weights
