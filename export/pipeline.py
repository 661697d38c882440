"""The export pipeline: checkpoint and task in, checked bundle out, with a report of what each stage costs."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from device_runtime.bundle import MANIFEST, TOKENIZER, WEIGHTS, Bundle, GraphSpec, Manifest, file_hash
from device_runtime.data import DataStore
from device_runtime.engines import SUFFIXES, create_engine
from device_runtime.errors import ExportError
from device_runtime.forward import HIDDEN, Forward
from device_runtime.replica import Replica
from device_runtime.task import Task
from device_runtime.tensors import write_tensors
from export.checkpoint import Checkpoint
from export.families import Network, find_family
from export.lowering import count_flops, export_program, lower
from export.quiet import quiet

#: Largest difference between an engine's output and PyTorch's that an export may have.
TOLERANCE = 1e-4


@dataclass(frozen=True)
class StageReport:
    """What export found out about a stage.

    Attributes:
        name: the stage.
        parameters, trainable: weights that it takes, and those of them that rounds change.
        flops: of its matrix products for a whole batch.
        delegated: engine → share of the matrix work that its delegate takes, 0 to 1.
        deviation: engine → largest difference from PyTorch on the stage's real weights.
    """

    name: str
    parameters: int
    trainable: int
    flops: int
    delegated: dict[str, float]
    deviation: dict[str, float]


def export_bundle(
    model: str,
    task: Task,
    engines: Sequence[str],
    batch: int,
    length: int,
    out: Path,
    progress: Callable[[str], None] = lambda step: None,
) -> list[StageReport]:
    """Export a model for a task.

    Args:
        model: folder, hub id, or ``minilm``.
        engines: formats to lower to.
        batch: examples in a batch.
        length: tokens in an example.
        out: the bundle's folder; it must not exist, and appears only when all checks have passed.
        progress: told what is being done.

    Raises:
        ExportError: the model or an option is not supported, a matrix product was not delegated, or an engine
            deviates from PyTorch by more than :data:`TOLERANCE`.
    """
    unknown = [name for name in engines if name not in SUFFIXES]
    if unknown or not engines:
        raise ExportError(f"there is no engine '{', '.join(unknown)}'; choose from {', '.join(SUFFIXES)}")
    if batch < 1 or length < 4:
        raise ExportError("a batch has at least 1 example, and an example at least 4 tokens")
    if out.exists():
        raise ExportError(f"{out} exists already; remove it or choose another --out")
    progress(f"reading {model}")
    checkpoint = Checkpoint(model)
    network = find_family(checkpoint).build(checkpoint, task, batch, length)
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        reports = _write(checkpoint, network, task, engines, batch, length, partial, progress)
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return reports


def _write(
    checkpoint: Checkpoint,
    network: Network,
    task: Task,
    engines: Sequence[str],
    batch: int,
    length: int,
    folder: Path,
    progress: Callable[[str], None],
) -> list[StageReport]:
    progress("writing weights")
    specs = {name: tensor.spec for name, tensor in network.tensors.items()}
    shapes = {name: spec.shape for name, spec in specs.items()}
    write_tensors(folder / WEIGHTS, shapes, (np.ascontiguousarray(t.load()) for t in network.tensors.values()), {})
    shutil.copyfile(checkpoint.folder / TOKENIZER, folder / TOKENIZER)
    graphs, delegated = {}, {}
    for name, graph in network.graphs.items():
        stage = next(stage for stage in network.stages if stage.graph == name)
        tensors = [list(shapes.values())[index] for index in stage.tensors]
        example = [torch.zeros(_feed_shape(network, feed)) for feed in graph.feeds]
        example = [*(x + 1 for x in example), *(torch.zeros(shape) for shape in tensors)]
        progress(f"tracing {name}")
        program = export_program(graph.module, example)
        files: dict[str, str] = {}
        for engine in engines:
            progress(f"lowering {name} to {engine}")
            files[engine], share = lower(program, engine, folder, name)
            if share < 1.0:
                raise ExportError(
                    f"{engine} delegates only {share:.1%} of the matrix work of '{name}', which would run slowly;"
                    " leave this engine out or report the model"
                )
            delegated[name, engine] = share
        with torch.inference_mode():
            outputs = tuple(tuple(out.shape) for out in graph.module(*example))
        graphs[name] = GraphSpec(name, graph.feeds, outputs, count_flops(graph.module, example), files)
    manifest = Manifest(
        model={
            "name": checkpoint.name,
            "family": checkpoint.config.model_type,
            "source": str(checkpoint.folder.resolve()),
            "hash": checkpoint.hash,
        },
        task=task,
        batch=batch,
        length=length,
        feeds=network.feeds,
        embedding=network.embedding,
        tensors=tuple(specs.values()),
        graphs=graphs,
        stages=network.stages,
        files={path.name: file_hash(path) for path in sorted(folder.iterdir()) if path.name != MANIFEST},
    )
    manifest.write(folder)
    reports = [_describe(manifest, index, delegated, engines) for index in range(len(manifest.stages))]
    for engine in engines:
        progress(f"comparing {engine} with PyTorch")
        with quiet():
            deviations = _compare(Bundle(folder), network, engine)
        for index, deviation in enumerate(deviations):
            reports[index].deviation[engine] = deviation
            if not deviation <= TOLERANCE:
                raise ExportError(
                    f"{engine} deviates from PyTorch by {deviation:.1e} at '{reports[index].name}', more than"
                    f" {TOLERANCE:.0e}; leave this engine out or report the model"
                )
    return reports


def _feed_shape(network: Network, feed: str) -> tuple[int, ...]:
    return network.feeds["rows"] if feed == HIDDEN else network.feeds[feed]


def _describe(
    manifest: Manifest, index: int, delegated: dict[tuple[str, str], float], engines: Sequence[str]
) -> StageReport:
    stage = manifest.stages[index]
    tensors = [manifest.tensors[i] for i in stage.tensors]
    sizes = [(int(np.prod(tensor.shape)), tensor.trainable) for tensor in tensors]
    return StageReport(
        name=stage.name,
        parameters=sum(size for size, _ in sizes),
        trainable=sum(size for size, trains in sizes if trains),
        flops=manifest.graphs[stage.graph].flops,
        delegated={engine: delegated[stage.graph, engine] for engine in engines},
        deviation={},
    )


def _compare(bundle: Bundle, network: Network, engine: str) -> list[float]:
    """Largest difference from PyTorch at each stage, on the stage's real weights and random tokens."""
    manifest = bundle.manifest
    random = np.random.default_rng(0)
    store = DataStore(
        ids=random.integers(
            0, bundle.weights.shape(manifest.embedding)[0], (manifest.batch, manifest.length), np.int32
        ),
        lengths=random.integers(3, manifest.length + 1, manifest.batch, np.int32),
        labels=random.integers(0, len(manifest.task.labels), manifest.batch, np.int32),
        truncated=0,
    )
    forward = Forward(create_engine(engine), Replica(bundle))
    batch = forward.batch(store, np.arange(manifest.batch))
    feeds = {name: torch.from_numpy(feed) for name, feed in batch.feeds.items()}
    hidden: np.ndarray | None = None
    deviations = []
    for index, stage in enumerate(manifest.stages):
        found = forward.run(index, batch, hidden, {})
        graph = network.graphs[stage.graph]
        inputs = [torch.from_numpy(hidden) if name == HIDDEN else feeds[name] for name in graph.feeds]
        inputs += [torch.tensor(forward.replica.tensor(i)) for i in stage.tensors]
        with torch.inference_mode():
            expected = [output.numpy() for output in graph.module(*inputs)]
        deviations.append(max(float(np.abs(a - b).max()) for a, b in zip(found, expected, strict=True)))
        hidden = found[0]
        hidden[...] = expected[0]
    return deviations
