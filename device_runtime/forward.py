"""Runs stages: an engine's graphs over a replica's weights, with the feeds that a batch of examples gives them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from device_runtime.arrays import ArrayPool
from device_runtime.data import DataStore
from device_runtime.engines import Engine
from device_runtime.replica import Replica

HIDDEN = "hidden"


@dataclass(frozen=True)
class Batch:
    """One batch as the graphs take it.

    Attributes:
        feeds: feed name → float32 array of the bundle's shape; rows past ``count`` repeat the last example.
        count: examples that count.
    """

    feeds: Mapping[str, np.ndarray]
    count: int


class Forward:
    """Stage by stage through the network. Counts the matrix-product FLOPs of all it ran.

    Attributes:
        replica: the weights.
        pool: where activations come from.
        flops: floating-point operations of matrix products run so far.
    """

    def __init__(self, engine: Engine, replica: Replica) -> None:
        """Raises BundleError or EngineError when the bundle's graphs cannot run on the engine."""
        self.replica = replica
        self.manifest = replica.bundle.manifest
        self.pool = ArrayPool()
        self.flops = 0
        self._graphs = replica.bundle.load_graphs(engine)
        self._table = replica.bundle.weights.view(self.manifest.embedding)
        self._feeds = {name: self.pool.take(shape) for name, shape in self.manifest.feeds.items()}

    def batch(self, store: DataStore, indices: np.ndarray) -> Batch:
        """The feeds for some examples (at most the bundle's batch). They stay valid until the next call."""
        count = len(indices)
        padded = np.concatenate([indices, np.repeat(indices[-1:], self.manifest.batch - count)])
        for name, feed in self._feeds.items():
            _FILL[name](feed, store, padded, self._table)
        return Batch(self._feeds, count)

    def run(
        self, stage: int, batch: Batch, hidden: np.ndarray | None, weights: Mapping[int, np.ndarray]
    ) -> list[np.ndarray]:
        """Run one stage.

        Args:
            stage: its index.
            batch: the batch that it works on.
            hidden: the activation before it; None before the first.
            weights: tensor index → array to take instead of the replica's.

        Returns:
            Its outputs, in arrays from the pool: the activation, or for the last stage losses [B] and logits [B, L].
        """
        spec = self.manifest.stages[stage]
        graph = self.manifest.graphs[spec.graph]
        feeds = batch.feeds if hidden is None else {**batch.feeds, HIDDEN: hidden}
        inputs = [feeds[name] for name in graph.feeds]
        inputs += [weights[index] if index in weights else self.replica.tensor(index) for index in spec.tensors]
        outputs = [self.pool.take(shape) for shape in graph.outputs]
        self._graphs[spec.graph].run(inputs, outputs)
        self.flops += graph.flops
        return outputs

    def evaluate(self, store: DataStore) -> Evaluation:
        """Loss and logits of the unperturbed model on all examples of a store."""
        losses, logits = [], []
        for start in range(0, len(store), self.manifest.batch):
            batch = self.batch(store, np.arange(start, min(start + self.manifest.batch, len(store))))
            outputs: list[np.ndarray] = []
            for stage in range(len(self.manifest.stages)):
                previous = outputs
                outputs = self.run(stage, batch, previous[0] if previous else None, {})
                self.release(previous)
            losses.append(outputs[0][: batch.count].astype(np.float64))
            logits.append(outputs[1][: batch.count].copy())
            self.release(outputs)
        return Evaluation(float(np.concatenate(losses).mean()), np.concatenate(logits), store.labels)

    def release(self, arrays: Sequence[np.ndarray]) -> None:
        """Give arrays back to the pool."""
        for array in arrays:
            self.pool.give(array)


@dataclass(frozen=True)
class Evaluation:
    """How a model does on labelled examples.

    Attributes:
        loss: mean cross-entropy.
        logits: float32 [examples, labels].
        labels: int32 [examples], the right answers.
    """

    loss: float
    logits: np.ndarray
    labels: np.ndarray

    @property
    def correct(self) -> int:
        """Examples answered right."""
        return int((self.logits.argmax(axis=1) == self.labels).sum())

    @property
    def accuracy(self) -> float:
        """Share of examples answered right."""
        return self.correct / len(self.labels)


def _fill_rows(out: np.ndarray, store: DataStore, indices: np.ndarray, table: np.ndarray) -> None:
    np.take(table, store.ids[indices], axis=0, out=out, mode="clip")


def _fill_mask(out: np.ndarray, store: DataStore, indices: np.ndarray, table: np.ndarray) -> None:
    out[...] = np.arange(out.shape[1]) < store.lengths[indices, None]


def _fill_targets(out: np.ndarray, store: DataStore, indices: np.ndarray, table: np.ndarray) -> None:
    out[...] = np.arange(out.shape[1]) == store.labels[indices, None]


_FILL = {"rows": _fill_rows, "mask": _fill_mask, "targets": _fill_targets}
