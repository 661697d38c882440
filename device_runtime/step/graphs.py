"""A bundle's graphs, loaded by an engine."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedspzo.device_runtime.engines.protocol import Constants, Engine, Linear, PackedGraph, PackingEngine, StageGraph
from fedspzo.device_runtime.errors import BundleError
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.model.manifest import BASE, WEIGHTS, GraphSpec
from fedspzo.device_runtime.model.stored import Quantised


def load_graph(bundle: Bundle, engine: Engine, graph: GraphSpec, constants: Sequence[int] = ()) -> StageGraph:
    """Load a graph of a bundle, with the tensors that are part of it.

    Raises:
        EngineError: the engine cannot read it.
    """
    file = bundle.folder / graph.files[engine.format]
    if not constants:
        return engine.load(file)
    data = graph.data[engine.format]
    matrices = [bundle.tensor(index) for index in constants] if data in (BASE, WEIGHTS) else []
    return engine.load(file, Constants(bundle.folder / data, [m for m in matrices if isinstance(m, Quantised)]))


def load_packed(bundle: Bundle, engine: Engine, graph: GraphSpec) -> PackedGraph | None:
    """A graph whose linear maps' weights are written where the engine has them; None where there is none."""
    if engine.format not in graph.packed or not isinstance(engine, PackingEngine):
        return None
    tensors = next(stage for stage in bundle.manifest.stages if stage.graph == graph.name).tensors
    linear = []
    for weight_at, bias_at in graph.linear:
        weight = np.asarray(bundle.tensor(tensors[weight_at]))  # [1, in, out], which the graph takes as [out, in]
        bias = np.asarray(bundle.tensor(tensors[bias_at])) if bias_at >= 0 else None
        linear.append(Linear(weight.reshape(weight.shape[:0:-1]), bias))
    return engine.load_packed(bundle.folder / graph.packed[engine.format], linear)


def check_engine(bundle: Bundle, engine: Engine) -> None:
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
