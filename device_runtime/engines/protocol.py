"""Engines run stage graphs. One small protocol; each engine is a module of its own, imported only when chosen."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from fedspzo.device_runtime.engines.packed_files import PackedFile
from fedspzo.device_runtime.errors import EngineError
from fedspzo.device_runtime.model.stored import Quantised

#: Format of graph files → their suffix. Each format is named after the engine that runs it best.
SUFFIXES = {"litert": ".tflite", "executorch": ".pte", "torch": ".pt2"}
#: Engines. "tflite" is the older interpreter that runs LiteRT's format where ai-edge-litert has no wheel.
ENGINES = (*SUFFIXES, "tflite")
#: Those that can stream constants from files.
STREAMING = ("litert",)
#: More than machines have, and fewer than what a library fails to start.
MOST_THREADS = 1024


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


class StreamedGraph(StageGraph, Protocol):
    """A graph whose constants are in a packed file, mapped into memory."""

    def take(self, packed: PackedFile) -> bool:
        """Compute with the constants of another file from now on; False where they are not laid out alike."""

    def let_go(self) -> None:
        """Let go of the constants' pages; they are read again at the next run."""


@runtime_checkable
class StreamingEngine(Engine, Protocol):
    """An engine that can have the constants of graphs in packed files, of which only what is at work is in memory.

    Attributes:
        within: bytes that the process shall keep to, for which it does; None where all constants stay in memory.
        packs_as: what packed files depend on, apart from the constants and the graph.
    """

    within: int | None
    packs_as: str

    def pack(self, path: Path, file: Path) -> None:
        """Write the packed file of a graph.

        Raises:
            EngineError: the engine cannot.
        """

    def load_streamed(self, path: Path, packed: PackedFile) -> StreamedGraph:
        """Load a graph file with a packed file in place of its constants.

        Raises:
            EngineError: the engine cannot read the graph, or the packed file is not the graph's.
        """


def cannot_load(engine: str, path: Path, reason: object) -> EngineError:
    """The error to raise for a graph's file that an engine refuses."""
    return EngineError("engine.load-failed", f"{engine} cannot load {path} ({reason}); export the bundle again")


def cannot_run(engine: str, reason: object) -> EngineError:
    """The error to raise for a graph that an engine has loaded and cannot run."""
    return EngineError("engine.run-failed", f"{engine} cannot run the graph ({reason}); export the bundle again")


def check_count(expected: int, arrays: Sequence[np.ndarray]) -> None:
    """Raise EngineError unless there are as many arrays as the graph takes or gives."""
    if len(arrays) != expected:
        raise EngineError(
            "engine.array-count", f"the graph takes {expected} arrays, not {len(arrays)}; export the bundle again"
        )


def aligned_address(array: np.ndarray, shape: tuple[int, ...]) -> int:
    """Where an array lies. Raises EngineError unless it is float32, of this shape, contiguous, at a multiple of 64."""
    address: int = array.__array_interface__["data"][0]
    if array.shape != shape or array.dtype != np.float32 or not array.flags.c_contiguous or address % 64:
        raise EngineError(
            "engine.array-shape",
            f"the graph takes an aligned float32 {shape}, not {array.dtype} {array.shape}; export the bundle again",
        )
    return address


def create_engine(name: str, threads: int = 1, within: int | None = None) -> Engine:
    """The engine of that name, using ``threads`` threads.

    Args:
        within: bytes to keep to, for which constants stream from files, for :data:`STREAMING` engines.

    Raises:
        EngineError: no such engine, or its library is not installed.
    """
    if name not in ENGINES:
        raise EngineError("engine.unknown", f"there is no engine '{name}'; choose one of {', '.join(ENGINES)}")
    if not 1 <= threads <= MOST_THREADS:
        raise EngineError(
            "engine.threads",
            f"an engine needs at least 1 thread, not {threads}, and at most {MOST_THREADS}; change --threads",
        )
    module = importlib.import_module(f"fedspzo.device_runtime.engines.{name}")
    engine: Engine = module.create(threads, within) if name in STREAMING else module.create(threads)
    return engine
