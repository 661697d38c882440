"""The bundle: a folder with everything a device needs of a model (manifest, graphs, weights, tokenizer, task).

The manifest says which graph each stage runs and which tensors it takes, in which order. Opening a bundle checks every
file against it, so that what runs later is what was exported.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from device_runtime import directions
from device_runtime.engines import Engine, StageGraph
from device_runtime.errors import BundleError, DataError
from device_runtime.task import Label, Task
from device_runtime.tensors import TensorFile

FORMAT = 1
MANIFEST, WEIGHTS, TOKENIZER = "manifest.json", "weights.safetensors", "tokenizer.json"


@dataclass(frozen=True)
class TensorSpec:
    """One weight tensor (float32).

    Attributes:
        name: its name in ``weights.safetensors``.
        shape: its shape there, which is the shape the graph takes.
        trainable: whether rounds change it.
        source: the parameter of the Hugging Face checkpoint that it came from ("" when it came from none).
        transposed: whether it is the source's transpose with a leading axis of one (the form engines delegate).
    """

    name: str
    shape: tuple[int, ...]
    trainable: bool
    source: str
    transposed: bool


@dataclass(frozen=True)
class GraphSpec:
    """One forward-only graph, which several stages may share.

    Attributes:
        name: what the graph is called.
        feeds: names of its leading inputs (``rows``, ``hidden``, ``mask``, ``targets``); the stage's tensors follow.
        outputs: shapes of its outputs.
        flops: floating-point operations of its matrix products in one run of a whole batch.
        files: engine name → file name.
    """

    name: str
    feeds: tuple[str, ...]
    outputs: tuple[tuple[int, ...], ...]
    flops: int
    files: Mapping[str, str]


@dataclass(frozen=True)
class StageSpec:
    """A piece of the network: the graph it runs and the indices of the tensors it takes."""

    name: str
    graph: str
    tensors: tuple[int, ...]


@dataclass(frozen=True)
class Manifest:
    """What ``manifest.json`` says.

    Attributes:
        model: name, family, source folder and the SHA-256 of the checkpoint's weights.
        task: what the model is asked.
        batch: examples in a batch.
        length: tokens in an example.
        feeds: feed name → shape.
        embedding: the tensor whose rows the runtime gathers by token id (feed ``rows``).
        tensors: all weight tensors; a tensor's index here is the one directions are keyed by.
        graphs, stages: the network.
        files: file name → SHA-256.
    """

    model: Mapping[str, str]
    task: Task
    batch: int
    length: int
    feeds: Mapping[str, tuple[int, ...]]
    embedding: str
    tensors: tuple[TensorSpec, ...]
    graphs: Mapping[str, GraphSpec]
    stages: tuple[StageSpec, ...]
    files: Mapping[str, str]

    def write(self, folder: Path) -> None:
        """Write ``manifest.json``."""
        record = {"format": FORMAT, "directions": directions.FORMAT, **asdict(self)}
        (folder / MANIFEST).write_text(json.dumps(record, indent=1), encoding="utf-8")


class Bundle:
    """An opened bundle: its manifest, its weights by mmap, its graphs on demand."""

    def __init__(self, folder: Path | str) -> None:
        """Open and check a bundle.

        Raises:
            BundleError: a file is missing, truncated, altered, or of a version this runtime does not know.
        """
        self.folder = Path(folder)
        text = self._read_manifest()
        self.manifest = _parse_manifest(self.folder, text)
        for name, expected in self.manifest.files.items():
            self._check_file(name, expected)
        #: 32 bytes that are equal where bundles can train together.
        self.identity = _identity(self.manifest)
        self.weights = TensorFile(self.folder / WEIGHTS)
        for tensor in self.manifest.tensors:
            if self.weights.shape(tensor.name) != tensor.shape:
                raise BundleError(
                    f"{self.folder}: the weights do not fit the manifest at '{tensor.name}'; export again"
                )

    @cached_property
    def engines(self) -> tuple[str, ...]:
        """Names of the engines that every graph has a file for."""
        graphs = list(self.manifest.graphs.values())
        return tuple(name for name in graphs[0].files if all(name in graph.files for graph in graphs))

    def load_graphs(self, engine: Engine) -> dict[str, StageGraph]:
        """Every graph, loaded by an engine. Raises BundleError when the bundle has none for it."""
        if engine.name not in self.engines:
            raise BundleError(
                f"{self.folder} has no graphs for the engine '{engine.name}', only for {', '.join(self.engines)};"
                f" export it with --engine {engine.name}"
            )
        graphs = self.manifest.graphs.values()
        return {graph.name: engine.load(self.folder / graph.files[engine.name]) for graph in graphs}

    def _read_manifest(self) -> str:
        try:
            return (self.folder / MANIFEST).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = "there is no manifest.json in it" if isinstance(error, FileNotFoundError) else str(error)
            raise BundleError(f"{self.folder} is not a bundle: {reason}; make one with: fedspzo export") from None

    def _check_file(self, name: str, expected: str) -> None:
        path = self.folder / name
        try:
            found = file_hash(path)
        except OSError as error:
            raise BundleError(f"{path} cannot be read ({error.strerror}); get or export the bundle again") from None
        if found != expected:
            raise BundleError(f"{path} is not the file that was exported (truncated or altered); get the bundle again")


def file_hash(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def _identity(manifest: Manifest) -> bytes:
    """What two bundles must share to train together: all but where they came from and the formats of the graphs."""
    record = {"format": FORMAT, "directions": directions.FORMAT, **asdict(manifest)}
    del record["model"]
    record["files"] = {name: value for name, value in manifest.files.items() if name in (WEIGHTS, TOKENIZER)}
    record["graphs"] = sorted(manifest.graphs)
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).digest()


def _parse_manifest(folder: Path, text: str) -> Manifest:
    try:
        record = json.loads(text)
        for key, known in (("format", FORMAT), ("directions", directions.FORMAT)):
            if record[key] != known:
                raise BundleError(
                    f"{folder} is of {key} version {record[key]}, and this runtime knows {known}; update fedspzo"
                )
        manifest = Manifest(
            model={str(key): str(value) for key, value in record["model"].items()},
            task=_parse_task(record["task"]),
            batch=int(record["batch"]),
            length=int(record["length"]),
            feeds={name: _shape(shape) for name, shape in record["feeds"].items()},
            embedding=str(record["embedding"]),
            tensors=tuple(TensorSpec(**{**tensor, "shape": _shape(tensor["shape"])}) for tensor in record["tensors"]),
            graphs={name: _parse_graph(graph) for name, graph in record["graphs"].items()},
            stages=tuple(
                StageSpec(stage["name"], stage["graph"], tuple(int(i) for i in stage["tensors"]))
                for stage in record["stages"]
            ),
            files={str(name): str(value) for name, value in record["files"].items()},
        )
        for stage in manifest.stages:
            manifest.graphs[stage.graph]
            [manifest.tensors[index] for index in stage.tensors]
        return manifest
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, DataError) as error:
        raise BundleError(f"{folder / MANIFEST} is damaged ({error!r}); get or export the bundle again") from None


def _parse_task(record: dict[str, Any]) -> Task:
    labels = tuple(Label(label["name"], label["description"]) for label in record["labels"])
    return Task(record["name"], record["template"], labels)


def _parse_graph(record: dict[str, Any]) -> GraphSpec:
    return GraphSpec(
        name=record["name"],
        feeds=tuple(record["feeds"]),
        outputs=tuple(_shape(shape) for shape in record["outputs"]),
        flops=int(record["flops"]),
        files={str(engine): str(name) for engine, name in record["files"].items()},
    )


def _shape(record: list[int]) -> tuple[int, ...]:
    return tuple(int(n) for n in record)
