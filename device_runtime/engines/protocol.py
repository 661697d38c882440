"""Engines run stage graphs. One small protocol; each engine is a module of its own, imported only when chosen."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from fedspzo.device_runtime.errors import EngineError
from fedspzo.device_runtime.model.stored import Quantised

#: Format of graph files → their suffix. Each format is named after the engine that runs it best.
SUFFIXES = {"litert": ".tflite", "executorch": ".pte", "torch": ".pt2"}
#: Engines. "tflite" is the older interpreter that runs LiteRT's format where ai-edge-litert has no wheel.
ENGINES = (*SUFFIXES, "tflite")


class StageGraph(Protocol):
    """A loaded forward-only graph."""

    def run(self, inputs: Sequence[np.ndarray], outputs: Sequence[np.ndarray]) -> None:
        """Run the graph once.

        Args:
            inputs: C-contiguous float32 arrays in the graph's order, each starting at a multiple of 64 bytes.
            outputs: arrays of the same kind that receive the results.

        Raises:
            EngineError: the engine refused the arrays.
        """


@dataclass(frozen=True)
class Constants:
    """Quantised matrices that are part of a graph.

    Attributes:
        file: where the engine finds them.
        matrices: the same as arrays, in the graph's order; none where the file is of the engine's own kind.
    """

    file: Path
    matrices: Sequence[Quantised]


@dataclass(frozen=True)
class Linear:
    """Constants that stand in a graph for a linear map's weights.

    Attributes:
        weight: float32 [out, in].
        bias: float32 [out], or None where the map has none.
    """

    weight: np.ndarray
    bias: np.ndarray | None


class PackedGraph(StageGraph, Protocol):
    """A graph whose linear maps' weights are no inputs, but are written where the engine has them.

    Attributes:
        weights: of each map, its weight [in, panels, outputs of a panel], and its bias [panels, outputs of a panel]
            where it has one: views for ``directions.format.DirectionKernel.shift`` to write to.
    """

    weights: Sequence[np.ndarray]


class Engine(Protocol):
    """Loads the graphs of one format.

    Attributes:
        name: the engine's name, one of :data:`ENGINES`.
        format: the format that it runs, a key of :data:`SUFFIXES`.
        takes_constants: whether it runs graphs that quantised matrices are part of.
    """

    name: str
    format: str
    takes_constants: bool

    def load(self, path: Path, constants: Constants | None = None) -> StageGraph:
        """Load a graph file, with the matrices that are part of the graph.

        Raises:
            EngineError: the engine cannot read it.
        """


@runtime_checkable
class PackingEngine(Engine, Protocol):
    """An engine that lets the weights of linear maps be written in the form that it has packed them into."""

    def load_packed(self, path: Path, linear: Sequence[Linear]) -> PackedGraph | None:
        """Load a graph file with constants for its linear maps' weights.

        Returns:
            None where the engine cannot, or does not keep these weights as expected.
        """


def create_engine(name: str, threads: int = 1) -> Engine:
    """The engine of that name, using ``threads`` threads.

    Raises:
        EngineError: no such engine, or its library is not installed.
    """
    if name not in ENGINES:
        raise EngineError(f"there is no engine '{name}'; choose one of {', '.join(ENGINES)}")
    if threads < 1:
        raise EngineError(f"an engine has at least 1 thread, not {threads}")
    module = importlib.import_module(f"fedspzo.device_runtime.engines.{name}")
    engine: Engine = module.create(threads)
    return engine
