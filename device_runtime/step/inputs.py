"""What the graphs are fed of a batch of examples, apart from weights and activations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fedspzo.device_runtime.data.store import DataStore
from fedspzo.device_runtime.model.stored import Quantised, Stored, widen

#: Rows of a table that are gathered before its pages are let go of.
_ROWS_AT_ONCE = 4


@dataclass(frozen=True)
class Examples:
    """Where feeds come from: some examples, and the token tables.

    Attributes:
        ids: int32 [batch, length of the store].
        lengths, starts, labels, targets: of these examples, see :class:`fedspzo.device_runtime.data.store.DataStore`.
        embedding, output: [1, tokens, width], the tables whose rows are gathered, as they are stored.
        let_go: lets go of the pages that gathering has read of them; None where they may stay in memory.
    """

    ids: np.ndarray
    lengths: np.ndarray
    starts: np.ndarray
    labels: np.ndarray
    embedding: Stored
    output: Stored
    targets: np.ndarray | None = None
    let_go: Callable[[], None] | None = None

    @classmethod
    def of(
        cls,
        store: DataStore,
        indices: np.ndarray,
        tables: tuple[Stored, Stored],
        let_go: Callable[[], None] | None = None,
    ) -> Examples:
        """The examples of a store at some indices."""
        targets = None if store.targets is None else store.targets[indices]
        ids, lengths, starts, labels = (a[indices] for a in (store.ids, store.lengths, store.starts, store.labels))
        return cls(ids, lengths, starts, labels, *tables, targets, let_go)


def fill(name: str, out: np.ndarray, examples: Examples) -> None:
    """Fill one feed. Raises KeyError when the runtime does not know it."""
    _FILL[name](out, examples)


def _rows(out: np.ndarray, examples: Examples) -> None:
    """[B, S, W]: the token embeddings."""
    gather(examples.embedding, examples.ids[:, : out.shape[1]], out, examples.let_go)


def _mask(out: np.ndarray, examples: Examples) -> None:
    """[B, S]: 1 for tokens and 0 for padding."""
    out[...] = np.arange(out.shape[1]) < examples.lengths[:, None]


def _targets(out: np.ndarray, examples: Examples) -> None:
    """[B, L]: one-hot labels, or what the store has in their place."""
    one_hot = np.arange(out.shape[1]) == examples.labels[:, None]
    out[...] = one_hot if examples.targets is None else examples.targets


def _select(out: np.ndarray, examples: Examples) -> None:
    """[B, A, S]: one-hot over the positions whose outputs predict the answer; zero past its end."""
    positions, used = _answer_positions(out.shape[1], examples)
    out[...] = (positions[..., None] == np.arange(out.shape[2])) & used[..., None]


def _answer_mask(out: np.ndarray, examples: Examples) -> None:
    """[B, A]: 1 for the answer's tokens."""
    out[...] = _answer_positions(out.shape[1], examples)[1]


def _answer_rows(out: np.ndarray, examples: Examples) -> None:
    """[B, A, W]: rows of the output table that score the answer's tokens."""
    positions, _ = _answer_positions(out.shape[1], examples)
    ids = np.take_along_axis(examples.ids, np.minimum(positions + 1, examples.ids.shape[1] - 1), axis=1)
    gather(examples.output, ids, out, examples.let_go)


def gather(table: Stored, ids: np.ndarray, out: np.ndarray, let_go: Callable[[], None] | None = None) -> None:
    """Rows of a table [1, rows, width] at ids of any shape, in ``out`` [..., width].

    Args:
        let_go: called after every few rows, since a system may map up to 2 MB around each.
    """
    if let_go is not None:
        flat, rows = ids.reshape(-1), out.reshape(-1, out.shape[-1])
        for start in range(0, len(flat), _ROWS_AT_ONCE):
            piece = slice(start, start + _ROWS_AT_ONCE)
            gather(table, flat[piece], rows[piece])
            let_go()
        return
    widen(table.rows(ids) if isinstance(table, Quantised) else np.take(table[0], ids, axis=0, mode="clip"), out)


def _last(out: np.ndarray, examples: Examples) -> None:
    """[B, 1, S]: one-hot over the last token's position."""
    out[:, 0] = np.arange(out.shape[2]) == examples.lengths[:, None] - 1


def _answer_positions(count: int, examples: Examples) -> tuple[np.ndarray, np.ndarray]:
    """Positions [B, count] that predict the answer's tokens, and which of them there are."""
    offsets = np.arange(count)
    tokens = np.maximum(examples.lengths - 1 - examples.starts, 1) if count > 1 else np.ones_like(examples.starts)
    return examples.starts[:, None] + offsets, offsets < tokens[:, None]


_FILL: dict[str, Callable[[np.ndarray, Examples], None]] = {
    "rows": _rows,
    "mask": _mask,
    "targets": _targets,
    "select": _select,
    "answer_mask": _answer_mask,
    "answer_rows": _answer_rows,
    "last": _last,
}
