"""What a step will cost on a device, from the manifest alone: matrix-product FLOPs and memory."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from fedspzo.device_runtime.model.manifest import Manifest, Shape, StageSpec, TensorSpec
from fedspzo.device_runtime.model.stored import layout
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
        workspace: the engine's packed copy of the largest matrix that is an input, and its intermediate results (an
            estimate).
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

    One-sided: all stages once, and for each block P_b times all from its first trained one on.
    """
    return sum(runs * shape.graphs[stage.graph].flops for stage, runs in _runs(manifest, plan))


def forecast_memory(manifest: Manifest, shape: Shape, plan: Plan, engine_format: str) -> Memory:
    """Resident bytes of a device during one step in one shape."""
    tensors = manifest.tensors
    trained = {i for stage in manifest.stages for i in stage.tensors if tensors[i].trainable}
    frozen = {i for stage in manifest.stages for i in (*stage.tensors, *stage.constants)} - trained

    def size(dimensions: Sequence[int]) -> int:
        return 4 * math.prod(dimensions)

    buffers: Counter[tuple[int, ...]] = Counter()
    wide: Counter[tuple[int, ...]] = Counter()
    for stage in manifest.stages:
        wide |= Counter(tensors[i].shape for i in stage.tensors if i in frozen and tensors[i].dtype != "float32")
        buffers |= Counter(tensors[i].shape for i in stage.tensors if i in trained)
    runs = _runs(manifest, plan)
    outputs = [count * sum(map(size, shape.graphs[stage.graph].outputs)) for stage, count in runs]
    if goes_by_path(manifest, shape.batch, shape.length):  # two to start from in each block, and a stage's in and out
        largest = max(output // count for output, (_, count) in zip(outputs, runs, strict=True))
        between = (2 * sum(block.fanout > 0 for block in plan.blocks) + 1) * largest
    else:
        between = max(
            before + (after // count if count == distinct else after)  # one goes when its next one is there
            for before, after, (_, distinct), (_, count) in zip(
                [0, *outputs], outputs, [runs[0], *runs], runs, strict=False
            )
        )
    groups = [s.groups for s in manifest.shapes if (s.batch, s.length) == (shape.batch, shape.length)]
    branches = 2 * plan.measured if plan.sides == 2 else max(block.fanout for block in plan.blocks)
    together = max(map(len, partition(branches, groups)))
    packed = (tensors[i] for stage in manifest.stages for i in stage.tensors)
    matrices = [spec.shape for spec in packed if len(spec.shape) == 3 and (spec.transposed or spec.trainable)]
    widest = max(matrices, key=size, default=(1, 1, 1))
    constants = (tensors[i] for stage in manifest.stages for i in stage.constants)
    tables = (manifest.embedding, manifest.output)
    features = max(map(max, (*matrices, *(spec.shape for spec in constants if spec.name not in tables))), default=1)
    tokens = together * shape.batch * shape.length
    scores = size((shape.batch, manifest.task.answer_tokens, _rows(manifest, manifest.output)))
    return Memory(
        weights=sum(stored_bytes(tensors[i]) for i in trained),
        frozen=sum(stored_bytes(tensors[i]) for i in frozen),
        buffers=together * sum(count * size(dimensions) for dimensions, count in buffers.items())
        + sum(count * size(dimensions) for dimensions, count in wide.items()),
        activations=between + sum(map(size, shape.feeds.values())),
        workspace=size(widest) + 2 * size((tokens, features)) + 2 * scores,
        base=BASE_BYTES.get(engine_format, 0),
    )


def stored_bytes(spec: TensorSpec) -> int:
    """Bytes of a tensor at rest."""
    arrays = layout(spec.name, spec.shape, spec.dtype).values()
    return sum(math.prod(shape) * dtype.itemsize for shape, dtype in arrays)


def _rows(manifest: Manifest, table: str) -> int:
    """Rows of a table, 0 when there is none."""
    return next((spec.shape[1] for spec in manifest.tensors if spec.name == table), 0)


def stage_runs(manifest: Manifest, plan: Plan) -> list[int]:
    """How many times a step runs each stage."""
    return [count for _, count in _runs(manifest, plan)]


def _runs(manifest: Manifest, plan: Plan) -> list[tuple[StageSpec, int]]:
    """Each stage with the number of times that a step runs it."""
    perturbed = [block for block, found in enumerate(plan.blocks) if found.fanout]
    starts = first_trained(manifest, plan.blocks)
    paths = [sum(1 for _ in plan.paths(block)) for block in perturbed]
    found = []
    for number, stage in enumerate(manifest.stages):
        passed = [count for start, count in zip(starts, paths, strict=True) if start <= number]
        runs = 1 + sum(passed) if plan.sides == 1 else 2 * passed[-1] if passed else 1
        found.append((stage, runs))
    return found
