"""Answers that a model generates, token by token."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np

from fedspzo.device_runtime.data.encoder import Encoder
from fedspzo.device_runtime.data.store import DataStore
from fedspzo.device_runtime.step.key_values import KeyValues
from fedspzo.device_runtime.step.runner import Forward, ModelWeights
from fedspzo.device_runtime.step.sampling import Sampling

GREEDY = Sampling()


class Reader(Protocol):
    """Scores the next tokens of texts."""

    def read(self, store: DataStore, indices: np.ndarray) -> np.ndarray:
        """The scores of the next tokens of some texts, float32 [texts, vocabulary]."""

    def add(self, store: DataStore, indices: np.ndarray) -> np.ndarray:
        """The same after a token has been added to texts that have been read."""

    def release(self) -> None:
        """Forget the texts."""


class WholeTexts:
    """Reads the whole text for each token, where the bundle's graphs keep no keys and values."""

    def __init__(self, forward: Forward[ModelWeights]) -> None:
        self._forward = forward

    def read(self, store: DataStore, indices: np.ndarray) -> np.ndarray:
        """See :class:`Reader`."""
        manifest, batch = self._forward.manifest, self._forward.batch(store, indices)
        if manifest.decoder is None:
            raise ValueError("the bundle's task generates nothing")
        outputs = self._forward.run_all((*manifest.stages[:-1], manifest.decoder), batch)
        scores = np.ascontiguousarray(outputs[0].T[: batch.count])
        self._forward.release(outputs)
        return scores

    add = read

    def release(self) -> None:
        """See :class:`Reader`."""


def generate(forward: Forward[ModelWeights], store: DataStore, sampling: Sampling = GREEDY) -> list[str]:
    """The answers to all examples of a store."""
    answers = [""] * len(store)
    for index, answer in stream(forward, store, sampling):
        answers[index] = answer
    return answers


def stream(forward: Forward[ModelWeights], store: DataStore, sampling: Sampling = GREEDY) -> Iterator[tuple[int, str]]:
    """(index of an example, its answer so far), whenever there is more of one.

    What may yet turn out to be no part of the answer is held back: spaces, a character's first bytes, and what the text
    that ends an answer starts with.
    """
    task, encoder = forward.manifest.task, Encoder(forward.bundle)
    ends = [text for text in (task.answer_end, task.stop) if text]
    # Prompts alone: whatever the store knows of the answers is left out.
    texts = DataStore(store.ids.copy(), store.starts + 1, store.starts, store.labels)

    def answer(index: int) -> tuple[str, bool]:
        """A text's answer so far, and whether it ends here."""
        start, length = int(texts.starts[index]) + 1, int(texts.lengths[index])
        text = encoder.decode(texts.ids[index, start:length].tolist())
        stop = min((at for at in map(text.find, ends) if at >= 0), default=None)
        ended = stop is not None or length - start >= task.answer_tokens or length >= texts.ids.shape[1]
        return (text[:stop] if ended else _certain(text, ends)).strip(), ended

    order = np.argsort(texts.lengths, kind="stable")
    for first in range(0, len(order), forward.manifest.batch):
        indices = order[first : first + forward.manifest.batch]
        reader: Reader = KeyValues(forward, len(indices)) if forward.manifest.continuations else WholeTexts(forward)
        try:
            yield from _continue(reader, texts, indices, sampling, answer)
        finally:
            reader.release()


def _continue(
    reader: Reader,
    texts: DataStore,
    indices: np.ndarray,
    sampling: Sampling,
    answer: Callable[[int], tuple[str, bool]],
) -> Iterator[tuple[int, str]]:
    """Add tokens to some texts until the answers of all have ended; see :func:`stream`."""
    scores = reader.read(texts, indices)
    going = {int(index): "" for index in indices}
    while True:
        for row, index in enumerate(indices.tolist()):
            if index not in going:
                continue
            at = int(texts.lengths[index])
            texts.ids[index, at] = sampling.choose(scores[row], index, at)
            texts.lengths[index] = at + 1
            found, ended = answer(index)
            if found != going[index]:
                yield index, found
            going[index] = found
            if ended:
                del going[index]
        if not going:
            return
        scores = reader.add(texts, indices)


def _certain(text: str, ends: Sequence[str]) -> str:
    """A text without what may change when it continues: a character's first bytes, or what an end starts with."""
    text = text.rstrip("\ufffd")
    open_ends = (end[:size] for end in ends for size in range(len(end) - 1, 0, -1) if text.endswith(end[:size]))
    return text[: len(text) - max(map(len, open_ends), default=0)]
