"""Activations of a frozen prefix of the network, kept on disk across rounds: each example goes through it once.

It is a cache: what it holds can be computed again, so it is not synced, and a damaged file is begun anew.
"""

from __future__ import annotations

import hashlib
import logging
import sqlite3
from contextlib import suppress
from pathlib import Path

import numpy as np

from device_runtime.forward import Batch

log = logging.getLogger(__name__)

#: Bytes of activations that are kept at most; beyond that examples are computed each time.
MOST_BYTES = 1 << 30


class PrefixCache:
    """A file of activations by prefix, shape and example."""

    def __init__(self, file: Path, most_bytes: int = MOST_BYTES) -> None:
        """``file`` is made when it is first needed."""
        self._file = file
        self._most = most_bytes
        self._connection: sqlite3.Connection | None = None

    def load(self, prefix: bytes, batch: Batch, out: np.ndarray) -> bool:
        """Fill in the activations of a batch, if all of them are there.

        Args:
            prefix: tells the prefix's stages and weights from any other.
            out: float32 [batch, …].
        """
        rows = [self._read(key) for key in _keys(prefix, batch)]
        if any(row is None or len(row) != out[0].nbytes for row in rows):
            return False
        for row, blob in zip(out, [*rows, *rows[-1:] * (len(out) - len(rows))], strict=True):
            row.reshape(-1)[...] = np.frombuffer(blob or b"", np.float32)
        return True

    def save(self, prefix: bytes, batch: Batch, hidden: np.ndarray) -> None:
        """Keep the activations of a batch, float32 [batch, …]; those of another prefix go."""
        with suppress(sqlite3.Error), self._open() as connection:
            connection.execute("DELETE FROM activations WHERE prefix != ?", (prefix,))
            (size,) = connection.execute("SELECT COALESCE(SUM(LENGTH(activation)), 0) FROM activations").fetchone()
            for key, row in zip(_keys(prefix, batch), hidden, strict=False):
                size += row.nbytes
                if size <= self._most:
                    connection.execute(
                        "INSERT OR REPLACE INTO activations VALUES (?, ?, ?)", (key, prefix, row.tobytes())
                    )

    def _read(self, key: bytes) -> bytes | None:
        try:
            found = self._open().execute("SELECT activation FROM activations WHERE key = ?", (key,)).fetchone()
        except sqlite3.Error:
            return None
        return found[0] if found else None

    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            try:
                self._connection = _connect(self._file)
            except sqlite3.DatabaseError as error:
                log.warning("%s is begun anew (%s)", self._file, error)
                self._file.unlink(missing_ok=True)
                self._connection = _connect(self._file)
        return self._connection


def _connect(file: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(file)
    connection.execute("PRAGMA synchronous = OFF")
    connection.execute(
        "CREATE TABLE IF NOT EXISTS activations (key BLOB PRIMARY KEY, prefix BLOB NOT NULL, activation BLOB NOT NULL)"
    )
    return connection


def _keys(prefix: bytes, batch: Batch) -> list[bytes]:
    """A key for each example of a batch: what its activation depends on."""
    size = f"{batch.shape.batch}x{batch.shape.length}".encode()
    return [
        hashlib.blake2b(prefix + size + ids[:length].tobytes(), digest_size=16).digest()
        for ids, length in zip(batch.ids[: batch.count], batch.lengths, strict=False)
    ]
