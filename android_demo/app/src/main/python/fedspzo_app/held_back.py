"""Examples that the phone holds back: it never trains on them, and asks after rounds whether the model does better.

One example in five is held back, chosen by a hash of its text, so that it stays so whatever is added later.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from fedspzo.device_runtime.data.store import DataStore, subset
from fedspzo.device_runtime.model.task import GENERATION, Task

#: Of N examples one is held back.
_ONE_IN = 5
_SEED = b"held back"
_KEY_BYTES = 8


class SplitExamples:
    """A phone's examples, parted into those to train on and those that are held back."""

    def __init__(self, examples: Callable[[], DataStore], task: Task) -> None:
        """``examples`` gives all there are now; the parts are made again when it gives others."""
        self._examples, self._task = examples, task
        self._whole: DataStore | None = None
        self._parts: tuple[DataStore, DataStore]

    def training(self) -> DataStore:
        """Those to train on; at least one."""
        return self._split()[0]

    def held_back(self) -> DataStore:
        """Those that no round uses, all with labels; may be empty."""
        return self._split()[1]

    def _split(self) -> tuple[DataStore, DataStore]:
        whole = self._examples()
        if whole is not self._whole:
            held, labelled = hold_back(whole, self._task), _labelled(whole)
            measured = replace(subset(whole, np.flatnonzero(held & labelled)), feedback=None)
            self._whole, self._parts = whole, (subset(whole, np.flatnonzero(~held)), measured)
        return self._parts


def hold_back(store: DataStore, task: Task) -> np.ndarray:
    """Which examples no round may use: bool [examples].

    All that have the same text are on one side. A text that came first as a reaction, and the first of all, are trained
    on.
    """
    sides: dict[bytes, bool] = {}
    held = np.zeros(len(store), bool)
    for row, (key, labelled) in enumerate(zip(keys(store, task), _labelled(store), strict=True)):
        chosen = bool(row) and bool(labelled) and int.from_bytes(key, "big") % _ONE_IN == 0
        held[row] = sides.setdefault(key, chosen)
    return held


def keys(store: DataStore, task: Task) -> list[bytes]:
    """Of each example, a hash of what the model is asked, without the answer."""
    ends = store.starts + 1 if task.form == GENERATION else store.lengths
    rows = (ids[:end].astype("<i4").tobytes() for ids, end in zip(store.ids, ends, strict=True))
    return [hashlib.blake2b(row, digest_size=_KEY_BYTES, key=_SEED).digest() for row in rows]


def _labelled(store: DataStore) -> np.ndarray:
    return np.ones(len(store), bool) if store.feedback is None else store.feedback.shown < 0
