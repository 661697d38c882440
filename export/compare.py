"""Engines against PyTorch, stage by stage on the real weights, holding one stage's weights at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from fedspzo.device_runtime.data.store import DataStore
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.model.manifest import HIDDEN, KEYS, POSITION, ROWS, VALUES, Shape, StageSpec
from fedspzo.device_runtime.model.metrics import MULTI, REGRESSION
from fedspzo.device_runtime.model.stored import Quantised
from fedspzo.device_runtime.model.task import GENERATION, Task
from fedspzo.device_runtime.step.runner import Batch, Forward
from fedspzo.export.lowering.constants import InCodes, InFull
from fedspzo.export.modules.stage_module import StageModule
from fedspzo.export.network.build import Network
from fedspzo.export.stages import StageRunner, StageWeights

#: Spread of what adapters and labels are given: adapters that do nothing would compare nothing.
_NOISE = 0.05


def compare(runner: StageRunner, networks: Sequence[Network]) -> list[float]:
    """Largest difference from PyTorch at each stage (the decoder's counts for none of them and comes last).

    Differences are relative to the largest value of the stage's output, or to 1 where that is larger; the worst over
    the shapes counts. Each stage starts from PyTorch's activations. Graphs of the next token are compared with what
    PyTorch makes of the whole text.
    """
    worst = np.zeros(len(networks[0].all_stages))
    for network in (network for network in networks if not network.continues):
        store = _random_examples(runner.bundle, network)
        batch = runner.forward.batch(store, np.arange(network.size.batch))
        batch = runner.forward.grouped(batch, network.size.groups)
        hidden = before = batch.feeds[ROWS]
        for index, stage in enumerate(network.all_stages):
            forward = runner.load(stage, network, _NOISE)
            before = before if stage == network.decoder else hidden
            expected = in_pytorch(forward.weights, batch, stage, network.graphs[stage.graph], before, runner.engine)
            kept: list[np.ndarray] = []
            outputs = forward.run(stage, batch, before, {}, kept=kept)
            differences = [difference(a, b) for a, b in zip((*outputs, *kept), expected, strict=True)]
            if batch.shape.graphs[stage.graph].alike:  # before it nothing has adapters, so that branches start alike
                alike = forward.run(stage, batch, before, {}, alike=True)
                differences += [difference(a, b) for a, b in zip(alike, expected, strict=False)]
                forward.release(alike)
            if network is networks[0] and stage in network.stages[:-1]:
                for shape in runner.bundle.manifest.continuations:
                    differences += _next_differences(forward, shape, batch, stage, before, expected)
            worst[index] = max(worst[index], *differences)
            hidden = outputs[0]
            hidden[...] = expected[0]
    return worst.tolist()


def in_pytorch(
    weights: StageWeights, batch: Batch, stage: StageSpec, module: StageModule, before: np.ndarray, engine: str
) -> list[np.ndarray]:
    """PyTorch's outputs of a stage: with activations of 8 bits to quantised matrices, unless the engine is "torch"."""
    feeds = [before if feed == HIDDEN else batch.feeds[feed] for feed in module.feeds]
    inputs = [torch.from_numpy(array) for array in (*feeds, *(weights.tensor(i) for i in stage.tensors))]
    with torch.no_grad():
        return [output.numpy() for output in _whole(module, stage, weights, engine)(*inputs)]


def _next_differences(
    forward: Forward[StageWeights],
    shape: Shape,
    batch: Batch,
    stage: StageSpec,
    before: np.ndarray,
    expected: Sequence[np.ndarray],
) -> list[float]:
    """How far what the next token's graph gives for the last token of texts is from what the whole texts give there.

    Args:
        shape: one of the bundle's ``continuations``.
        batch: the whole texts, at least as many as the shape takes.
        before, expected: the stage's input, and PyTorch's outputs, for these.
    """
    take = forward.scratch.take
    texts, last = np.arange(shape.batch), batch.lengths[: shape.batch] - 1
    feeds = {name: take(size) for name, size in shape.feeds.items()}
    feeds[POSITION][:, 0] = last
    output, *whole = expected
    wanted = [output[texts, last][:, None]]
    for name, kept in zip((KEYS, VALUES), whole, strict=False):  # from the last token on they are not to be seen
        feeds[name] = take((shape.batch, *kept.shape[1:]))
        feeds[name][...] = kept[: shape.batch]
        wanted.append(kept[texts, :, last][:, :, None])
    hidden, found = take((shape.batch, 1, before.shape[2])), list[np.ndarray]()
    hidden[:, 0] = before[texts, last]
    next_batch = Batch(shape, feeds, shape.batch, batch.ids[texts, last][:, None], batch.lengths)
    outputs = forward.run(stage, next_batch, hidden, {}, kept=found)
    differences = [difference(a, b) for a, b in zip((*outputs, *found), wanted, strict=True)]
    forward.release([*feeds.values(), hidden, *outputs, *found])
    return differences


def _whole(module: StageModule, stage: StageSpec, weights: StageWeights, engine: str) -> torch.nn.Module:
    """A stage's module with its constants, computing as the engine does: with activations of 8 bits, or in full."""
    matrices = [matrix for matrix in map(weights.read, stage.constants) if isinstance(matrix, Quantised)]
    return (InFull if engine == "torch" else InCodes)(module, matrices) if matrices else module


def difference(found: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference, relative to the largest value expected, or to 1 where that is larger."""
    if not (np.isfinite(found).all() and np.isfinite(expected).all()):
        return math.inf  # a comparison with NaN would be false, and hide it
    return float(np.abs(found - expected).max() / max(1.0, np.abs(expected).max()))


def _random_examples(bundle: Bundle, network: Network) -> DataStore:
    """Examples of random tokens that fill a shape's batch, the longest as long as the shape."""
    manifest, random = bundle.manifest, np.random.default_rng(0)
    tokens = bundle.weights.shape(manifest.embedding)[1]
    lengths = random.integers(3, network.size.length + 1, network.size.batch, np.int32)
    lengths[0] = network.size.length
    starts = (
        np.maximum(0, lengths - 1 - random.integers(1, manifest.task.answer_tokens + 1, network.size.batch, np.int32))
        if manifest.task.form == GENERATION
        else lengths // 2
    )
    return DataStore(
        ids=random.integers(0, tokens, (network.size.batch, manifest.length), np.int32),
        lengths=lengths,
        starts=starts.astype(np.int32),
        labels=random.integers(0, max(1, len(manifest.task.labels)), network.size.batch, np.int32),
        targets=_random_targets(manifest.task, network.size.batch, random),
    )


def _random_targets(task: Task, batch: int, random: np.random.Generator) -> np.ndarray | None:
    """Sets of labels, or numbers between the least and the greatest, as the graphs are fed them."""
    if task.kind == MULTI:
        return random.integers(0, 2, (batch, len(task.labels))).astype(np.float32)
    if task.kind == REGRESSION:
        numbers = random.uniform(min(task.values), max(task.values), (batch, 1))
        return (np.array(task.values) - numbers).astype(np.float32)
    return None
