"""A bundle's graphs, loaded by an engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from fedspzo.device_runtime.engines.protocol import (
    Constants,
    Engine,
    Linear,
    PackedGraph,
    PackingEngine,
    StageGraph,
    StreamingEngine,
)
from fedspzo.device_runtime.errors import BundleError
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.model.manifest import BASE, WEIGHTS, GraphSpec
from fedspzo.device_runtime.model.stored import Quantised
from fedspzo.device_runtime.step.streamed import StreamedGraphs

_G = TypeVar("_G")


def load_graph(
    bundle: Bundle, engine: Engine, graph: GraphSpec, constants: Sequence[int] = (), rows: range | None = None
) -> StageGraph:
    """Load a graph of a bundle, with the tensors that are part of it.

    Args:
        rows: those that the graph has of its constants; None for all.

    Raises:
        EngineError: the engine cannot read it.
    """
    file = bundle.folder / graph.files[engine.format]
    if not constants:
        return engine.load(file)
    data = graph.data[engine.format]
    stored = [bundle.tensor(index) for index in constants] if data in (BASE, WEIGHTS) else []
    matrices = [matrix for matrix in stored if isinstance(matrix, Quantised)]
    if rows is not None:
        matrices = [matrix.slice(rows.start, rows.stop) for matrix in matrices]
    return engine.load(file, Constants(bundle.folder / data, matrices))


class Graphs:
    """The graphs of a bundle that an engine has loaded.

    Of a graph that holds weights (constants, or packed ones) only that of the latest shape is kept: each has a copy.
    """

    def __init__(self, bundle: Bundle, engine: Engine) -> None:
        """Raises BundleError when the bundle has no graphs for the engine, or was altered."""
        _check(bundle, engine)
        self._bundle, self._engine = bundle, engine
        self._plain: dict[str, tuple[str, StageGraph]] = {}
        self._packed: dict[str, tuple[str, PackedGraph | None]] = {}
        self._streamed: StreamedGraphs | None = None
        #: Bytes that the process shall keep to, if it streams.
        self.within = engine.within if isinstance(engine, StreamingEngine) else None
        if isinstance(engine, StreamingEngine) and self.within is not None:
            self._streamed = StreamedGraphs(bundle, engine)
        else:
            bundle.check_base()

    def plain(self, graph: GraphSpec, constants: Sequence[int], rows: range | None = None) -> StageGraph:
        """A graph that takes all weights as inputs but (some rows of) its ``constants``; see :func:`load_graph`."""
        if self._streamed is not None:
            if not constants:
                self._streamed.rest()
            elif (streamed := self._streamed.graph(graph)) is not None:
                return streamed
        file = graph.files[self._engine.format]
        key = graph.name if constants else file
        return _kept(self._plain, key, file, lambda: load_graph(self._bundle, self._engine, graph, constants, rows))

    @property
    def streams(self) -> bool:
        """Whether constants stream, and what is read of the bundle's files is let go of after its use."""
        return self._streamed is not None and self._streamed.works

    def packed(self, graph: GraphSpec) -> PackedGraph | None:
        """A graph whose linear maps' weights are written where the engine has them; None where it has no such form."""
        engine, file = self._engine, graph.packed.get(self._engine.format)
        if file is None or not isinstance(engine, PackingEngine):
            return None

        def load() -> PackedGraph | None:
            return engine.load_packed(self._bundle.folder / file, _stand_ins(self._bundle, graph))

        return _kept(self._packed, graph.name, file, load)


def _kept(loaded: dict[str, tuple[str, _G]], key: str, file: str, load: Callable[[], _G]) -> _G:
    """The graph of a file, loaded in place of another file's under the key."""
    if loaded.get(key, ("",))[0] != file:
        loaded.pop(key, None)  # gone before the next one needs its memory
        loaded[key] = file, load()
    return loaded[key][1]


def _stand_ins(bundle: Bundle, graph: GraphSpec) -> list[Linear]:
    """The constants of a packed graph: the weights of the first stage that runs it."""
    tensors = next(stage for stage in bundle.manifest.stages if stage.graph == graph.name).tensors
    linear = []
    for weight_at, bias_at in graph.linear:
        weight = np.asarray(bundle.tensor(tensors[weight_at]))  # [1, in, out], which the graph takes as [out, in]
        bias = np.asarray(bundle.tensor(tensors[bias_at])) if bias_at >= 0 else None
        linear.append(Linear(weight.reshape(weight.shape[:0:-1]), bias))
    return linear


def _check(bundle: Bundle, engine: Engine) -> None:
    """Raise BundleError when the bundle has no graphs for an engine."""
    if engine.format not in bundle.formats:
        raise BundleError(
            "bundle.no-graphs",
            f"{bundle.folder} has graphs for {', '.join(bundle.formats)}, and none for the engine '{engine.name}';"
            f" export it with --engine {engine.format}",
        )
    if bundle.manifest.constants and not engine.takes_constants:
        raise BundleError(
            "bundle.quantised-base",
            f"{bundle.folder} has a quantised base, which the engine '{engine.name}' cannot run; use the engine"
            f" '{engine.format}'",
        )
