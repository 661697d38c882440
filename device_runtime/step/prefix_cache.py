"""Activations of a frozen prefix of the network, kept on disk: a batch of known examples skips the prefix.

It is a cache: what it holds can be computed again, so it is not synced; each activation has a hash, and a damaged file
is started again.
"""

from __future__ import annotations

import hashlib
import logging
import sqlite3
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedspzo.device_runtime.files import make_private
from fedspzo.device_runtime.replica.weights import Replica
from fedspzo.device_runtime.step.runner import Batch, Forward

log = logging.getLogger(__name__)

#: Bytes of activations that are kept at most; beyond that examples are computed each time.
MOST_BYTES = 1 << 30
#: Stages of a frozen prefix from which on keeping its activations is worth a file: an embedding alone is not.
WORTH_CACHING = 2
_HASH_BYTES = 16


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
        rows: list[bytes] = []
        for key in _keys(prefix, batch):
            stored = self._read(key)
            if len(stored) != _HASH_BYTES + out[0].nbytes or _hash(key, stored[_HASH_BYTES:]) != stored[:_HASH_BYTES]:
                return False
            rows.append(stored[_HASH_BYTES:])
        for row, content in zip(out, [*rows, *rows[-1:] * (len(out) - len(rows))], strict=True):
            row.reshape(-1)[...] = np.frombuffer(content, np.float32)
        return True

    def save(self, prefix: bytes, batch: Batch, hidden: np.ndarray) -> None:
        """Keep the activations of a batch, float32 [batch, …]; those of another prefix go."""
        try:
            with self._open() as connection:
                connection.execute("DELETE FROM activations WHERE prefix != ?", (prefix,))
                (size,) = connection.execute("SELECT COALESCE(SUM(LENGTH(activation)), 0) FROM activations").fetchone()
                for key, row in zip(_keys(prefix, batch), hidden, strict=False):
                    content = row.tobytes()
                    size += len(content)
                    if size <= self._most:
                        values = key, prefix, _hash(key, content) + content
                        connection.execute("INSERT OR REPLACE INTO activations VALUES (?, ?, ?)", values)
        except sqlite3.OperationalError as error:  # the disk is full, for example: it continues without
            log.warning("%s cannot be written (%s)", self._file, error)
        except sqlite3.DatabaseError as error:
            self._begin_anew(error)

    def _read(self, key: bytes) -> bytes:
        """What is stored for an example, empty when that is nothing."""
        try:
            found = self._open().execute("SELECT activation FROM activations WHERE key = ?", (key,)).fetchone()
        except sqlite3.DatabaseError as error:
            self._begin_anew(error)
            return b""
        return bytes(found[0]) if found else b""

    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            try:
                self._connection = _connect(self._file)
            except (sqlite3.DatabaseError, UnicodeError) as error:  # SQLite quotes a damaged table's name as it is
                self._begin_anew(error)
                self._connection = _connect(self._file)
        return self._connection

    def _begin_anew(self, error: Exception) -> None:
        log.warning("%s is started again (%s)", self._file, error)
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        self._file.unlink(missing_ok=True)


@dataclass(frozen=True)
class Prefix:
    """The first stages of a replica's network, whose weights stay as they are.

    Attributes:
        forward: runs them.
        count: of the stages.
        cache: keeps their activations; None where each batch passes them.
    """

    forward: Forward[Replica]
    count: int
    cache: PrefixCache | None

    def run(self, batch: Batch) -> list[np.ndarray]:
        """The activation after the prefix, alone in the list, in a scratch array; none where it has no stages."""
        forward, stages = self.forward, self.forward.manifest.stages[: self.count]
        if self.cache is None or len(stages) < WORTH_CACHING:
            return forward.run_all(stages, batch)
        hidden = forward.scratch.take(batch.shape.graphs[stages[-1].graph].outputs[0])
        weights = forward.weights.digest_of(forward.weights.trainable_in(range(len(stages))))
        name = repr((forward.bundle.identity, forward.format, len(stages), weights)).encode()
        if not self.cache.load(name, batch, hidden):
            forward.release([hidden])
            hidden = forward.run_all(stages, batch)[0]
            self.cache.save(name, batch, hidden)
        return [hidden]


def _hash(key: bytes, content: bytes) -> bytes:
    return hashlib.blake2b(key + content, digest_size=_HASH_BYTES).digest()


def _connect(file: Path) -> sqlite3.Connection:
    with suppress(OSError):  # SQLite says better what is wrong
        make_private(file)
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
