"""The server's own replica on a thread of its own: held-out accuracy and digests, without holding up a round."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from device_runtime.bundle import file_hash
from device_runtime.data import DataStore
from device_runtime.engines import Engine
from device_runtime.evaluation import Evaluation, evaluate
from device_runtime.forward import Forward
from device_runtime.plan import Entry
from device_runtime.replica import Replica


@dataclass(frozen=True)
class Evaluated:
    """How the model after a round does on the held-out set."""

    round: int
    evaluation: Evaluation


@dataclass(frozen=True)
class Digested:
    """The digest of the replica after a round."""

    round: int
    digest: bytes


@dataclass(frozen=True)
class Snapshot:
    """A file with the replica after a round.

    Attributes:
        sha256, size: of the file.
    """

    round: int
    path: Path
    sha256: bytes
    size: int


@dataclass(frozen=True)
class Failed:
    """The thread ended with an error."""

    error: Exception


@dataclass(frozen=True)
class _Task:
    entry: Entry | None
    evaluate: bool
    digest: bool
    snapshot: Path | None


class Evaluator:
    """Follows the journal, and reports what it is asked for in order.

    Attributes:
        round, head: the round that its replica started from, and the hash of the journal up to there.
    """

    def __init__(
        self, engine: Engine, replica: Replica, store: DataStore | None, report: Callable[[object], None]
    ) -> None:
        """Start the thread.

        Args:
            replica: this object is the thread's from now on.
            store: the held-out set, if there is one.
            report: given each :class:`Evaluated`, :class:`Digested`, :class:`Snapshot` or :class:`Failed`, on
                the thread.
        """
        self.round, self.head = replica.round, replica.head
        self._forward = Forward(engine, replica)
        self._store = store
        self._report = report
        self._tasks: queue.Queue[_Task | None] = queue.Queue()
        self._thread = threading.Thread(target=self._run, name="evaluator", daemon=True)
        self._thread.start()

    def submit(
        self, entry: Entry | None, evaluate: bool = False, digest: bool = False, snapshot: Path | None = None
    ) -> None:
        """Apply an entry (or none), then what is asked for, and report it.

        Args:
            snapshot: where to write one, unless the file is there.
        """
        self._tasks.put(_Task(entry, evaluate, digest, snapshot))

    def close(self) -> None:
        """End the thread when all that was submitted is done."""
        self._tasks.put(None)
        self._thread.join()

    def _run(self) -> None:
        replica = self._forward.weights
        try:
            while (task := self._tasks.get()) is not None:
                if task.entry is not None:
                    replica.apply(task.entry)
                if task.snapshot is not None:
                    self._report(_snapshot(replica, task.snapshot))
                if task.evaluate and self._store is not None:
                    self._report(Evaluated(replica.round, evaluate(self._forward, self._store)))
                if task.digest:
                    self._report(Digested(replica.round, replica.digest()))
        except Exception as error:  # a thread's error would be lost; the server raises it
            self._report(Failed(error))


def _snapshot(replica: Replica, path: Path) -> Snapshot:
    if not path.exists():
        replica.save_snapshot(path)
    return Snapshot(
        round=replica.round,
        path=path,
        sha256=bytes.fromhex(file_hash(path)),
        size=path.stat().st_size,
    )
