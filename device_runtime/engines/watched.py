"""An engine that reports each graph that has run, so that a watchdog can tell a slow device from one that hangs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from fedspzo.device_runtime.engines.packed_files import PackedFile
from fedspzo.device_runtime.engines.protocol import (
    Constants,
    Engine,
    Linear,
    PackedGraph,
    PackingEngine,
    StageGraph,
    StreamedGraph,
    StreamingEngine,
)


class WatchedEngine:
    """An engine that tells of each graph that has run. See :class:`fedspzo.device_runtime.engines.protocol.Engine`."""

    def __init__(self, engine: Engine, ran: Callable[[], None]) -> None:
        self.name, self.format, self.takes_constants = engine.name, engine.format, engine.takes_constants
        self.within: int | None = None
        self.packs_as = ""
        if isinstance(engine, StreamingEngine):
            self.within, self.packs_as = engine.within, engine.packs_as
        self._engine, self._ran = engine, ran

    def load(self, path: Path, constants: Constants | None = None) -> StageGraph:
        """See :class:`fedspzo.device_runtime.engines.protocol.Engine`."""
        return _WatchedGraph(self._engine.load(path, constants), self._ran)

    def load_packed(self, path: Path, linear: Sequence[Linear]) -> PackedGraph | None:
        """See :class:`fedspzo.device_runtime.engines.protocol.PackingEngine`; None for an engine that is not one."""
        graph = self._engine.load_packed(path, linear) if isinstance(self._engine, PackingEngine) else None
        return None if graph is None else _WatchedPackedGraph(graph, self._ran)

    def pack(self, path: Path, file: Path) -> None:
        """See :class:`fedspzo.device_runtime.engines.protocol.StreamingEngine`."""
        self._streaming.pack(path, file)

    def load_streamed(self, path: Path, packed: PackedFile) -> StreamedGraph:
        """See :class:`fedspzo.device_runtime.engines.protocol.StreamingEngine`."""
        return _WatchedStreamedGraph(self._streaming.load_streamed(path, packed), self._ran)

    @property
    def _streaming(self) -> StreamingEngine:
        assert isinstance(self._engine, StreamingEngine)
        return self._engine


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


class _WatchedStreamedGraph(_WatchedGraph):
    def __init__(self, graph: StreamedGraph, ran: Callable[[], None]) -> None:
        super().__init__(graph, ran)
        self.take, self.let_go = graph.take, graph.let_go
