"""Keys and values of texts' tokens, kept for the next ones: a text takes one pass, each token after it a short one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fedspzo.device_runtime.data.store import DataStore
from fedspzo.device_runtime.model.manifest import KEYS, LAST, POSITION, ROWS, VALUES, StageSpec
from fedspzo.device_runtime.step.runner import Batch, Forward, ModelWeights


class KeyValues:
    """The keys and values of some texts' tokens, in arrays that the graphs of one token take as they lie.

    Each token's place is its position; what lies from a text's end on is not seen.
    """

    def __init__(self, forward: Forward[ModelWeights], count: int) -> None:
        """Make room for some texts, at most the bundle's batch. The bundle has ``continuations``."""
        manifest, take = forward.manifest, forward.scratch.take
        self._forward = forward
        self._shape = next(shape for shape in manifest.continuations if shape.batch >= count)
        self._feeds = {name: take(size) for name, size in self._shape.feeds.items()}
        self._kept = [[take(size) for size in self._room(stage)] for stage in manifest.stages[:-1]]
        #: The decoder takes whole texts: the one token is the first of them.
        self._head = min(
            (shape for shape in manifest.shapes if (shape.batch, shape.groups) == (self._shape.batch, 1)),
            key=lambda shape: shape.length,
        )
        self._last = take(self._head.feeds[LAST])
        self._whole = take(
            (self._head.batch, self._head.length, self._shape.graphs[manifest.stages[-2].graph].outputs[0][-1])
        )
        for array in self._arrays():
            array.fill(0.0)  # what is not seen must still be a number
        self._last[:, :, 0] = 1.0

    def read(self, store: DataStore, indices: np.ndarray) -> np.ndarray:
        """Keep the keys and values of whole texts.

        Returns:
            The scores of their next tokens, float32 [texts, vocabulary].
        """
        batch = self._forward.batch(store, indices)
        outputs: list[np.ndarray] = []
        for stage, kept in zip(self._forward.manifest.stages, self._kept, strict=False):
            previous, found = outputs, list[np.ndarray]()
            outputs = self._forward.run(stage, batch, previous[0] if previous else None, {}, kept=found)
            for room, array in zip(kept, found, strict=True):
                room[: batch.count, :, : array.shape[2]] = array[: batch.count]
            self._forward.release([*previous, *found])
        scores = self._scores(batch, outputs[0])
        self._forward.release(outputs)
        return scores

    def add(self, store: DataStore, indices: np.ndarray) -> np.ndarray:
        """Keep those of the last token of each text, the others having been kept.

        Returns:
            The scores of the tokens after them, float32 [texts, vocabulary].
        """
        positions = store.lengths[indices] - 1
        ids = store.ids[indices, positions]
        count, rows = len(ids), np.arange(len(ids))
        self._forward.embed(ids[:, None], self._feeds[ROWS][:count])
        self._feeds[POSITION][:count, 0] = positions
        batch = Batch(self._shape, self._feeds, count, ids[:, None], positions + 1)
        outputs: list[np.ndarray] = []
        for stage, kept in zip(self._forward.manifest.stages, self._kept, strict=False):
            previous, found = outputs, list[np.ndarray]()
            with_past = replace(batch, feeds={**self._feeds, **dict(zip((KEYS, VALUES), kept, strict=False))})
            outputs = self._forward.run(stage, with_past, previous[0] if previous else None, {}, kept=found)
            for room, array in zip(kept, found, strict=True):
                room[rows, :, positions] = array[:count, :, 0]
            self._forward.release([*previous, *found])
        self._whole[:, :1] = outputs[0]
        self._forward.release(outputs)
        return self._scores(replace(batch, shape=self._head, feeds={LAST: self._last}), self._whole)

    def release(self) -> None:
        """Let the arrays be used again."""
        self._forward.release(self._arrays())

    def _scores(self, batch: Batch, hidden: np.ndarray) -> np.ndarray:
        decoder = self._forward.manifest.decoder
        assert decoder is not None
        outputs = self._forward.run(decoder, batch, hidden, {})
        scores = np.ascontiguousarray(outputs[0].T[: batch.count])
        self._forward.release(outputs)
        return scores

    def _room(self, stage: StageSpec) -> list[tuple[int, ...]]:
        """Shapes of a stage's keys and values."""
        kept = self._shape.graphs[stage.graph].kept
        return [(batch, heads, self._shape.length, size) for batch, heads, _, size in kept]

    def _arrays(self) -> list[np.ndarray]:
        return [*self._feeds.values(), *(array for arrays in self._kept for array in arrays), self._last, self._whole]
