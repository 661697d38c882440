"""Runs stages: an engine's graphs over a model's weights, with the feeds that a batch of examples gives them."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Generic, Protocol, TypeVar, cast

import numpy as np

from fedspzo.device_runtime.data.store import DataStore
from fedspzo.device_runtime.engines.protocol import Engine
from fedspzo.device_runtime.model.arrays import ScratchArrays
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.model.manifest import AT, HIDDEN, ROWS, GraphSpec, Shape, SliceSpec, StageSpec
from fedspzo.device_runtime.model.stored import Stored, widen
from fedspzo.device_runtime.platform.profiling import SILENT, Recorder
from fedspzo.device_runtime.step.graphs import Graphs
from fedspzo.device_runtime.step.inputs import Examples, fill, gather
from fedspzo.device_runtime.step.objectives import NOTHING, Known
from fedspzo.device_runtime.step.sliced import answer_losses, stack


class ModelWeights(Protocol):
    """The weights of a bundle's tensors; a replica is one.

    Attributes:
        bundle: the bundle.
    """

    bundle: Bundle

    def tensor(self, index: int) -> Stored:
        """A tensor as it is stored, not to be written."""


W_co = TypeVar("W_co", bound=ModelWeights, covariant=True)
_Other = TypeVar("_Other", bound=ModelWeights)


@dataclass(frozen=True)
class Batch:
    """One batch as the graphs take it.

    Attributes:
        shape: the graphs that it goes through, the cheapest that it fits.
        feeds: feed name → float32 array of the shape's size; rows past ``count`` repeat the last example.
        count: examples that count.
        ids: int32 [batch, length of the store], the tokens.
        lengths: int32 [batch].
        known: what is known of the examples that count.
    """

    shape: Shape
    feeds: Mapping[str, np.ndarray]
    count: int
    ids: np.ndarray
    lengths: np.ndarray
    known: Known = NOTHING


class Forward(Generic[W_co]):
    """Stage by stage through the network. Counts the matrix-product FLOPs of all it ran.

    Attributes:
        weights: the model's weights.
        scratch: where activations come from.
        flops: floating-point operations of matrix products run so far.
        format: of the graphs.
        recorder: is told what phase of a step it is.
        fitting: the groups of branches for which there is memory, for each kind of step, see ``step.budget``.
    """

    def __init__(self, engine: Engine, weights: W_co, recorder: Recorder = SILENT) -> None:
        """Raises BundleError when the bundle has no graphs for the engine."""
        self.weights = weights
        self.bundle = weights.bundle
        self.manifest = self.bundle.manifest
        self.scratch = ScratchArrays()
        self.flops = 0
        self.recorder = recorder
        self.format = engine.format
        self.fitting: dict[tuple[object, ...], list[int]] = {}
        self._graphs = Graphs(self.bundle, engine)
        self._feeds: dict[tuple[int, int, int], dict[str, np.ndarray]] = {}
        self._grouped: dict[int, Batch] = {}
        self._slices: dict[int, np.ndarray] = {}
        indices = {spec.name: index for index, spec in enumerate(self.manifest.tensors)}
        embedding, output = self.manifest.embedding, self.manifest.output or self.manifest.embedding
        self._table_indices = indices[embedding], indices[output]
        self._tables = self.bundle.tensor(indices[embedding]), self.bundle.tensor(indices[output])
        self._shapes = sorted(self.manifest.shapes, key=self._cost)

    @contextmanager
    def holding(self, weights: _Other) -> Iterator[Forward[_Other]]:
        """The same graphs and arrays over other weights of the bundle; operations count here as well."""
        other = cast("Forward[_Other]", copy.copy(self))
        other.weights = weights
        try:
            yield other
        finally:
            self.flops = other.flops

    def batch(self, store: DataStore, indices: np.ndarray) -> Batch:
        """The feeds for some examples (at most the bundle's batch). They stay valid until the next call."""
        count, longest = len(indices), int(store.lengths[indices].max())
        shape = next(s for s in self._shapes if s.groups == 1 and s.batch >= count and s.length >= longest)
        padded = np.concatenate([indices, np.repeat(indices[-1:], shape.batch - count)])
        examples = Examples.of(store, padded, self._tables, self._let_go_of_tables if self.streams else None)
        feeds = self._feeds_of(shape)
        for name, feed in feeds.items():
            fill(name, feed, examples)
        batch = Batch(shape, feeds, count, examples.ids, examples.lengths, Known.of(store, indices))
        self._grouped = {1: batch}
        return batch

    @property
    def streams(self) -> bool:
        """Whether what a stage reads of the bundle's files is let go of after its run."""
        return self._graphs.streams

    @property
    def within(self) -> int | None:
        """Bytes that the process shall keep to, for which it streams; None where it does not."""
        return self._graphs.within if self.streams else None

    def groups(self, batch: Batch) -> list[int]:
        """Numbers of branches that there are graphs for, with batches of this size."""
        return [s.groups for s in self._shapes if (s.batch, s.length) == (batch.shape.batch, batch.shape.length)]

    def grouped(self, batch: Batch, groups: int) -> Batch:
        """The latest batch, repeated for graphs that take several branches."""
        if groups not in self._grouped:
            size = batch.shape.batch, batch.shape.length, groups
            shape = next(s for s in self._shapes if (s.batch, s.length, s.groups) == size)
            feeds = self._feeds_of(shape)
            for name, feed in feeds.items():
                one = batch.feeds[name]
                feed.reshape(groups, *one.shape)[...] = one
            self._grouped[groups] = replace(batch, shape=shape, feeds=feeds)
        return self._grouped[groups]

    def batches(self, store: DataStore) -> Iterator[tuple[np.ndarray, Batch]]:
        """All examples of a store, those of similar length together: their indices and the batch."""
        order = np.argsort(store.lengths, kind="stable")
        for start in range(0, len(order), self.manifest.batch):
            indices = order[start : start + self.manifest.batch]
            yield indices, self.batch(store, indices)

    def run(
        self,
        stage: StageSpec,
        batch: Batch,
        hidden: np.ndarray | None,
        weights: Mapping[int, np.ndarray],
        packed: bool = False,
        alike: bool = False,
        kept: list[np.ndarray] | None = None,
    ) -> list[np.ndarray]:
        """Run one stage.

        Args:
            stage: the stage, or the bundle's decoder.
            batch: the batch that it works on.
            hidden: the activation before it; None for the first, which takes the token rows.
            weights: tensor index → array to take instead of the model's.
            packed: whether the arrays of :meth:`packed` have been written: the graph that has these weights runs.
            alike: whether all branches of the batch start from the same activations.
            kept: gets the keys and values of the tokens, in scratch arrays, where the graph gives them.

        Returns:
            Its outputs, in scratch arrays: the activation; for the last stage losses [B] and, when the task has
            labels, logits [B, L]; for the decoder scores [tokens, B].
        """
        graph = batch.shape.graphs[stage.graph]
        graph = (graph.alike if alike else None) or graph
        feeds = {**batch.feeds, HIDDEN: batch.feeds[ROWS] if hidden is None else hidden}
        inputs = [feeds[name] for name in graph.feeds]
        written = self._graphs.packed(graph) if packed else None
        apart = self._table_indices[1:] if graph.slices else ()
        constants = [index for index in stage.constants if index not in apart]
        loaded = written if written is not None else self._graphs.plain(graph, constants)
        own = [*apart, *([] if written is None else _linear_tensors(stage, graph))]
        missing = self.widened([index for index in stage.tensors if index not in weights])
        inputs += [weights[i] if i in weights else missing[i] for i in stage.tensors if i not in own]
        outputs, keep = ([self.scratch.take(shape) for shape in shapes] for shapes in (graph.outputs, graph.kept))
        loaded.run(inputs, [*outputs, *keep])
        self.release_widened(missing)
        if self.streams:
            self.bundle.let_go(stage.tensors)
        if kept is None:
            self.release(keep)
        else:
            kept += keep
        self.flops += graph.flops
        return [self._scored(stage, batch, graph.slices, outputs)] if graph.slices else outputs

    def _scored(
        self, stage: StageSpec, batch: Batch, slices: Sequence[SliceSpec], before: list[np.ndarray]
    ) -> np.ndarray:
        """What a head gives that scores all tokens in slices, from what it has before the scores."""
        parts = self._in_slices(stage, batch, slices, before[0])
        size = before[0].shape[0]
        if stage == self.manifest.decoder:
            found = stack(parts, self.scratch.take((slices[-1].stop, size)))
        else:
            found = answer_losses(parts, before[1], batch.feeds["answer_mask"], self.scratch.take((size,)))
        self.release(before)
        return found

    def _in_slices(
        self, stage: StageSpec, batch: Batch, slices: Sequence[SliceSpec], at: np.ndarray
    ) -> Iterator[np.ndarray]:
        """What the graph of each slice gives, to be used before the next one is asked for."""
        table, feeds = self._table_indices[1], {**batch.feeds, AT: at}
        for part in slices:
            inputs = [feeds[name] for name in part.graph.feeds]
            if table in stage.constants:
                graph = self._graphs.plain(part.graph, [table], range(part.start, part.stop))
            else:
                graph = self._graphs.plain(part.graph, ())
                inputs.append(self._rows_of(part))
            outputs = [self.scratch.take(shape) for shape in part.graph.outputs]
            graph.run(inputs, outputs)
            if self.streams:
                self.bundle.let_go([table])
            yield outputs[0]
            self.release(outputs)

    def _rows_of(self, part: SliceSpec) -> np.ndarray:
        """A slice of the table that scores tokens: the same array each time, by which engines know it."""
        table = self._tables[1]
        assert isinstance(table, np.ndarray)
        return self._slices.setdefault(part.start, table[:, part.start : part.stop])

    def packed(self, shape: Shape, stage: StageSpec, written: Collection[int]) -> dict[int, np.ndarray]:
        """Tensor index → where the engine has weights of the stage in its own layout.

        The arrays serve all stages with the same graph, until the next shape. There are none where the engine takes all
        weights as inputs, or where some that it has are not among those to be ``written``.
        """
        graph = shape.graphs[stage.graph]
        own = _linear_tensors(stage, graph)
        found = self._graphs.packed(graph) if set(own) <= set(written) else None
        return {} if found is None else dict(zip(own, found.weights, strict=True))

    def run_all(
        self, stages: Sequence[StageSpec], batch: Batch, entered: Sequence[np.ndarray] = ()
    ) -> list[np.ndarray]:
        """Outputs of the last of some stages, unperturbed.

        Args:
            entered: the activation before them, alone, which is released; none where they start at the first stage.
        """
        outputs = list(entered)
        for stage in stages:
            previous = outputs
            outputs = self.run(stage, batch, previous[0] if previous else None, {})
            self.release(previous)
        return outputs

    def release(self, arrays: Sequence[np.ndarray]) -> None:
        """Let scratch arrays be used again."""
        for array in arrays:
            self.scratch.give(array)

    def widened(self, indices: Sequence[int]) -> dict[int, np.ndarray]:
        """Tensors as graphs take them: as they lie, or widened into scratch arrays."""
        found: dict[int, np.ndarray] = {}
        for index in indices:
            stored = self.weights.tensor(index)
            if isinstance(stored, np.ndarray) and stored.dtype == np.float32:
                found[index] = stored
            else:
                found[index] = widen(stored, self.scratch.take(stored.shape))
        return found

    def release_widened(self, arrays: Mapping[int, np.ndarray]) -> None:
        """Release those of :meth:`widened` that are scratch arrays."""
        self.release([array for index, array in arrays.items() if array is not self.weights.tensor(index)])

    def embed(self, ids: np.ndarray, out: np.ndarray) -> None:
        """The rows [..., width] of some tokens, in ``out``."""
        gather(self._tables[0], ids, out, self._let_go_of_tables if self.streams else None)

    def _let_go_of_tables(self) -> None:
        self.bundle.let_go(self._table_indices)

    def _feeds_of(self, shape: Shape) -> dict[str, np.ndarray]:
        key = shape.batch, shape.length, shape.groups
        if key not in self._feeds:
            self._feeds[key] = {name: self.scratch.take(size) for name, size in shape.feeds.items()}
        return self._feeds[key]

    def _cost(self, shape: Shape) -> int:
        return sum(shape.graphs[stage.graph].flops for stage in self.manifest.stages)


def _linear_tensors(stage: StageSpec, graph: GraphSpec) -> list[int]:
    """Those of a stage's tensors that its packed graph has itself, in the graph's order."""
    return [stage.tensors[place] for weight_and_bias in graph.linear for place in weight_and_bias if place >= 0]
