"""What a step will cost on a device, from the manifest alone: matrix-product FLOPs and memory."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fedspzo.device_runtime.model.manifest import Manifest, Shape, TensorSpec
from fedspzo.device_runtime.model.stored import stored_bytes
from fedspzo.device_runtime.protocol.plan import Plan
from fedspzo.device_runtime.step.order import first_trained, goes_by_path
from fedspzo.device_runtime.step.stage_pass import partition

#: Resident bytes of a process with Python, numpy, MQTT and an engine before any weight, as measured on x86-64 Linux.
BASE_BYTES = {"litert": 75_000_000, "executorch": 75_000_000, "torch": 380_000_000}


@dataclass(frozen=True)
class Memory:
    """A forecast of resident bytes during a step.

    Attributes:
        weights: the trainable weights.
        frozen: the frozen tensors that stages read (mapped from the bundle's file, or packed by the engine).
        buffers: perturbed copies of a stage's weights, one for each branch that goes through a graph together; and its
            frozen weights, widened.
        activations: of all branches between two stages, and the batch's feeds.
        workspace: the engine's packed copy of the largest matrix that is an input, and intermediate results of the
            graphs that it holds: one, or one for each stage whose constants are in memory (an estimate).
        base: Python, numpy and the engine's library.
    """

    weights: int
    frozen: int
    buffers: int
    activations: int
    workspace: int
    base: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.frozen + self.buffers + self.activations + self.workspace + self.base


def step_flops(manifest: Manifest, shape: Shape, plan: Plan) -> int:
    """Operations of one step's matrix products: Σ 2·P_b·F_b, where stages before the first trained one run once.

    One-sided: all stages once, and for each block P_b times all from its first trained one on. Batches that are
    replayed pass the stages from there on alone.
    """
    start = first_trained(manifest, plan.blocks)[0]
    runs = enumerate(zip(manifest.stages, stage_runs(manifest, plan), strict=True))
    return sum(
        count * shape.graphs[stage.graph].flops * (1 + plan.replay * (number >= start))
        for number, (stage, count) in runs
    )


def stage_runs(manifest: Manifest, plan: Plan) -> list[int]:
    """How many times a step runs each stage."""
    perturbed = [block for block, found in enumerate(plan.blocks) if found.fanout]
    starts = first_trained(manifest, plan.blocks)
    paths = [sum(1 for _ in plan.paths(block)) for block in perturbed]
    runs = []
    for stage in range(len(manifest.stages)):
        passed = [count for start, count in zip(starts, paths, strict=True) if start <= stage]
        runs.append(1 + sum(passed) if plan.sides == 1 else 2 * passed[-1] if passed else 1)
    return runs


def forecast_inference(manifest: Manifest, engine_format: str, streams: bool) -> Memory:
    """Resident bytes of a process that runs the largest shape without a plan; see :func:`forecast_memory`.

    Where the base streams, branches go one by one if they must.
    """
    shapes = (shape for shape in manifest.shapes if shape.groups == 1 or not streams)
    largest = max(shapes, key=lambda shape: (shape.groups, shape.batch * shape.length))
    tensors = manifest.tensors
    trained = {i for stage in manifest.stages for i in stage.tensors if tensors[i].trainable}
    return Memory(
        weights=sum(stored_bytes(tensors[i].shape, tensors[i].dtype) for i in trained),
        frozen=_frozen(manifest, streams),
        buffers=0,
        activations=_feeds_and_kept(largest),
        workspace=_workspace(manifest, largest, [largest.groups] * len(manifest.stages), streams),
        base=BASE_BYTES.get(engine_format, 0),
    )


def forecast_memory(
    manifest: Manifest,
    shape: Shape,
    plan: Plan,
    engine_format: str,
    streams: bool = False,
    groups: Sequence[int] | None = None,
) -> Memory:
    """Resident bytes of a device during one step in one shape.

    Args:
        streams: whether frozen tensors are in memory one stage at a time.
        groups: of branches that may go through a graph together; None for all that there are graphs for.
    """
    tensors = manifest.tensors
    trained = {i for stage in manifest.stages for i in stage.tensors if tensors[i].trainable}
    if groups is None:
        groups = [s.groups for s in manifest.shapes if (s.batch, s.length) == (shape.batch, shape.length)]
    branches = 2 * plan.measured if plan.sides == 2 else max(block.fanout for block in plan.blocks)
    together = max(map(len, partition(branches, groups)))
    return Memory(
        weights=sum(stored_bytes(tensors[i].shape, tensors[i].dtype) for i in trained),
        frozen=_frozen(manifest, streams),
        buffers=together * _largest_copies(manifest, lambda spec: spec.trainable)
        + _largest_copies(manifest, lambda spec: not spec.trainable and spec.dtype != "float32"),
        activations=_activations(manifest, shape, plan) + _feeds_and_kept(shape),
        workspace=_workspace(manifest, shape, [min(together, runs) for runs in stage_runs(manifest, plan)], streams),
        base=BASE_BYTES.get(engine_format, 0),
    )


def _frozen(manifest: Manifest, streams: bool) -> int:
    """Bytes of the frozen tensors that stages read: of all of them, or of the stage with the most."""
    tensors = manifest.tensors
    by_stage = [{i for i in (*s.tensors, *s.constants) if not tensors[i].trainable} for s in manifest.stages]
    sizes = [stored_bytes(spec.shape, spec.dtype) for spec in tensors]
    if not streams:
        return sum(sizes[i] for i in set().union(*by_stage))
    for index, spec in enumerate(tensors):
        if spec.name == manifest.output:  # one slice at a time
            sizes[index] = sizes[index] * _rows_at_once(manifest) // spec.shape[1]
    return max(sum(sizes[i] for i in indices) for indices in by_stage)


def _largest_copies(manifest: Manifest, copied: Callable[[TensorSpec], bool]) -> int:
    """Bytes of float32 arrays for some of any stage's tensors, where stages use arrays of the same shape again."""
    arrays: Counter[tuple[int, ...]] = Counter()
    for stage in manifest.stages:
        specs = (manifest.tensors[index] for index in stage.tensors)
        arrays |= Counter(spec.shape for spec in specs if copied(spec))
    return sum(count * _size(dimensions) for dimensions, count in arrays.items())


def _activations(manifest: Manifest, shape: Shape, plan: Plan) -> int:
    """Most bytes of all branches' activations at a time."""
    one_run = [sum(map(_size, shape.graphs[stage.graph].outputs)) for stage in manifest.stages]
    if goes_by_path(manifest, shape.batch, shape.length):  # two to start from in each block, and a stage's in and out
        ended = first_trained(manifest, plan.blocks)[-1] == len(one_run) - 1 and plan.sides == 1  # all of a last stage
        held = plan.blocks[-1].fanout * one_run[-1] if ended else 0
        return (2 * sum(block.fanout > 0 for block in plan.blocks) + 1) * max(one_run) + held
    runs = stage_runs(manifest, plan)
    most, before, branches = 0, 0, runs[0]
    for output, count in zip(one_run, runs, strict=True):
        # As many branches as before: an input is released when its output is there, so that one of these is held.
        most = max(most, before + (output if count == branches else count * output))
        before, branches = count * output, count
    return most


def _feeds_and_kept(shape: Shape) -> int:
    """Bytes of feeds, and of the most keys and values that a graph gives, which are let go after each run."""
    kept = (sum(map(_size, graph.kept)) for graph in shape.graphs.values())
    return sum(map(_size, shape.feeds.values())) + max(kept)


def _workspace(manifest: Manifest, shape: Shape, together: Sequence[int], streams: bool) -> int:
    """An engine's packed copy of the largest matrix that is an input, and intermediate results: an estimate.

    A graph has as many results at a time as a layer has matrices that are as wide: two, or three where one gates
    another; and what a quantised base multiplies, in 8 bits. Graphs with constants that do not stream are all loaded.

    Args:
        together: branches that go through each stage together.
    """
    specs, tables = manifest.tensors, (manifest.embedding, manifest.output)
    inputs = (specs[i] for stage in manifest.stages for i in stage.tensors)
    copied = (spec.shape for spec in inputs if len(spec.shape) == 3 and (spec.transposed or spec.trainable))
    rank = manifest.adapters.rank if manifest.adapters else 0
    # Width → most matrices of a stage of which it is the larger side, without adapters' factors.
    widest: Counter[int] = Counter()
    for stage in manifest.stages:
        found = (specs[i] for i in (*stage.tensors, *stage.constants))
        sides = [spec.shape[-2:] for spec in found if len(spec.shape) > 1 and spec.name not in tables]
        widest |= Counter(max(side) for side in sides if min(side) > rank)
    width = max(widest, default=1)
    results = max(widest[width], 2) + any(stage.constants for stage in manifest.stages) / 4
    held = [int(results * _size((stack * shape.batch * shape.length, width))) for stack in together]
    kept = sum(size for size, stage in zip(held, manifest.stages, strict=True) if stage.constants and not streams)
    scores = (max(together) * shape.batch, manifest.task.answer_tokens, _rows_at_once(manifest))
    return max(map(_size, copied), default=0) + max(kept, *held) + 2 * _size(scores)


def _size(dimensions: Sequence[int]) -> int:
    """Bytes of a float32 array."""
    return 4 * math.prod(dimensions)


def _rows_at_once(manifest: Manifest) -> int:
    """Rows of the table that scores tokens which are multiplied at a time; 0 where the network has no such table."""
    slices = manifest.shapes[0].graphs[manifest.stages[-1].graph].slices
    whole = next((spec.shape[1] for spec in manifest.tensors if spec.name == manifest.output), 0)
    return max((part.stop - part.start for part in slices), default=whole)
