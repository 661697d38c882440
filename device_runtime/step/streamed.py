"""Graphs whose constants stream from packed files, so that a layer or two are in memory, whatever the network's depth.

Layers that compute the same share one loaded graph, which takes each layer's file in turn: their activations inside the
engine are in memory once. While a layer runs, the file that came after it last time is read ahead; what is behind is
let go. The files are kept in ``$XDG_CACHE_HOME/fedspzo/packed`` or ``~/.cache/fedspzo/packed``.
"""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

from fedspzo.device_runtime.engines.external_buffers import References, read_references
from fedspzo.device_runtime.engines.packed_files import PackedFile, PackedFiles
from fedspzo.device_runtime.engines.protocol import StreamedGraph, StreamingEngine
from fedspzo.device_runtime.errors import EngineError, StateError
from fedspzo.device_runtime.files import cache_folder
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.model.manifest import GraphSpec

log = logging.getLogger(__name__)

FOLDER = "packed"
#: Loaded graphs that are kept, each with the engine's memory for its activations: those of two kinds of layers, for one
#: branch and for several.
_KEPT = 4


class StreamedGraphs:
    """The graphs of a bundle with constants, streamed."""

    def __init__(self, bundle: Bundle, engine: StreamingEngine) -> None:
        self._bundle, self._engine = bundle, engine
        self._references: dict[str, References] = {}
        self._open: dict[str, PackedFile] = {}
        self._after: dict[str, str] = {}  # key of a file → of the one that was asked for after it
        self._loaded: list[tuple[bytes, StreamedGraph]] = []  # with their templates, the latest last
        self._current: tuple[str, StreamedGraph] | None = None
        self._files: PackedFiles | None = None
        try:
            self._files = PackedFiles(cache_folder() / FOLDER)
        except RuntimeError:
            self._stop("there is no home folder to keep packed weights in; set XDG_CACHE_HOME to a writable folder")

    @property
    def works(self) -> bool:
        """Whether constants can be kept in files, as far as is known."""
        return self._files is not None

    def graph(self, spec: GraphSpec) -> StreamedGraph | None:
        """A graph, ready with its constants; None where they cannot be kept in files, which is told once."""
        if self._files is None:
            return None
        try:
            return self._ready(spec, self._files)
        except (EngineError, StateError) as error:
            self._stop(str(error))
            return None

    def rest(self) -> None:
        """Let go of what the latest graph has in memory."""
        if self._current is not None:
            self._current[1].let_go()

    def _ready(self, spec: GraphSpec, files: PackedFiles) -> StreamedGraph:
        references = self._refers(spec)
        key = self._key(spec, references)
        path = self._bundle.folder / spec.files[self._engine.format]
        if key not in self._open:
            self.rest()
            self._open[key] = files.open(key, lambda file: self._pack(path, file))
        packed = self._open[key]
        alike = (graph for template, graph in reversed(self._loaded) if template == references.template)
        loaded = next((graph for graph in alike if graph.take(packed)), None)
        if self._current is not None and self._current[1] is not loaded:
            self.rest()
        if loaded is None:
            del self._loaded[: 1 - _KEPT]
            loaded = self._engine.load_streamed(path, packed)
        self._loaded = [each for each in self._loaded if each[1] is not loaded] + [(references.template, loaded)]
        if self._current is not None and self._current[0] != key:
            self._after[self._current[0]] = key
        self._current = key, loaded
        if (coming := self._open.get(self._after.get(key, ""))) is not None:
            coming.read_ahead()
        return loaded

    def _pack(self, graph: Path, file: Path) -> None:
        self._bundle.check_base()
        self._engine.pack(graph, file)

    def _refers(self, spec: GraphSpec) -> References:
        file = spec.files[self._engine.format]
        if file not in self._references:
            self._references[file] = read_references((self._bundle.folder / file).read_bytes())
        return self._references[file]

    def _key(self, spec: GraphSpec, references: References) -> str:
        """What a packed file depends on: the constants, where the graph has them, the engine and the processor."""
        data = self._bundle.manifest.files[spec.data[self._engine.format]]
        return hashlib.sha256(repr((data, references.constants, self._engine.packs_as)).encode()).hexdigest()

    def _stop(self, why: str) -> None:
        log.warning("%s; until then all weights stay in memory", why)
        self._files, self._current = None, None
        self._loaded.clear()
        self._open.clear()
