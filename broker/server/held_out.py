"""A job's evaluations on its held-out examples, kept in the server's store: the best of them, and whether to stop."""

from __future__ import annotations

import hashlib
import json
import logging
import sqlite3
from collections.abc import Mapping

from fedspzo.broker.rounds.best import best_round, stalled
from fedspzo.broker.rounds.guard import find_breach
from fedspzo.broker.server.evaluation import Evaluated
from fedspzo.broker.server.store import ServerStore
from fedspzo.device_runtime.data.store import DataStore
from fedspzo.device_runtime.errors import PlanError
from fedspzo.device_runtime.step.scores import Evaluation

log = logging.getLogger(__name__)


class HeldOut:
    """The evaluations so far. Those on other examples are forgotten: they do not compare.

    Attributes:
        evaluations: round → how the model did after it.
    """

    def __init__(
        self, store: ServerStore, examples: DataStore | None, patience: int | None = None, guard: float = 0.0
    ) -> None:
        """Read what the store has.

        Args:
            examples: the held-out ones; without any there are no evaluations, and the store's stay as they are.
            patience: the job stops after this number of evaluations without a better one; None for never.
            guard: see :func:`fedspzo.broker.rounds.guard.find_breach`.
        """
        self._store, self._patience, self._guard = store, patience, guard
        self._breach: int | None = None
        self._examples = b"" if examples is None else _fingerprint(examples)
        self.evaluations: dict[int, Evaluation] = {}
        if examples is not None:
            with store.transaction() as execute:
                execute("DELETE FROM evaluations WHERE examples <> ?", (self._examples,))
                self.evaluations = _rows(execute(_SELECT))
            self._watch()

    @property
    def best(self) -> Evaluated | None:
        """The best evaluation, see :func:`fedspzo.broker.rounds.best.rank`."""
        return best_of(self.evaluations)

    @property
    def last(self) -> Evaluated | None:
        """The newest evaluation."""
        last = max(self.evaluations, default=None)
        return None if last is None else Evaluated(last, self.evaluations[last])

    @property
    def stalled(self) -> bool:
        """Whether the job is to stop: for want of a better model, or because the guard says so."""
        patience = self._patience is not None and stalled(self.evaluations, self._patience)
        return patience or self._breach is not None

    def add(self, evaluated: Evaluated) -> bool:
        """Keep an evaluation; tells whether it is the best now."""
        found = evaluated.evaluation
        self.evaluations[evaluated.round] = found
        with self._store.transaction() as execute:
            execute(
                "INSERT OR REPLACE INTO evaluations VALUES (?, ?, ?, ?, ?)",
                (evaluated.round, self._examples, found.examples, found.loss, json.dumps(dict(found.scores))),
            )
        self._watch()
        return best_round(self.evaluations) == evaluated.round

    def _watch(self) -> None:
        """See whether the guard ends the job."""
        if not self._guard or self._breach is not None:
            return
        costs = {closed.round: closed.loss for closed in self._store.history()}
        self._breach = find_breach(self.evaluations, costs, self._guard)
        if self._breach is not None:
            log.warning(
                "the guard ends the job: after round %d the held-out loss is %.4g, %.0f %% above its best, while the"
                " objective improves; what is rewarded is not what is right",
                *(self._breach, self.evaluations[self._breach].loss, 100 * self._excess(self._breach)),
            )

    def _excess(self, round: int) -> float:
        """By what share of the best loss before a round its own is larger."""
        best = min(found.loss for before, found in self.evaluations.items() if before <= round)
        return (self.evaluations[round].loss - best) / abs(best) if best else 1.0


def check_patience(patience: int | None, held_out: bool, guard: float = 0.0) -> None:
    """Raise PlanError when a job's patience is below 1, or it or a guard has no held-out examples to judge by."""
    if guard and not held_out:
        raise PlanError(
            "option.guard", f"guard is {guard:g}, and there are no held-out examples to judge by; give a file of them"
        )
    if patience is not None and (patience < 1 or not held_out):
        raise PlanError(
            "option.patience",
            f"patience is {patience}; give at least 1, and held-out examples to evaluate on",
        )


_SELECT = "SELECT round, count, loss, scores FROM evaluations ORDER BY round"


def read_evaluations(connection: sqlite3.Connection) -> dict[int, Evaluation]:
    """Round → evaluation, of a server's file; a file from before they were kept has none."""
    known = connection.execute("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'evaluations'")
    return _rows(connection.execute(_SELECT)) if known.fetchone() else {}


def best_of(evaluations: Mapping[int, Evaluation]) -> Evaluated | None:
    """The best of some evaluations with its round."""
    best = best_round(evaluations)
    return None if best is None else Evaluated(best, evaluations[best])


def _rows(cursor: sqlite3.Cursor) -> dict[int, Evaluation]:
    return {
        round: Evaluation(float("nan") if loss is None else loss, json.loads(scores), count)
        for round, count, loss, scores in cursor.fetchall()
    }


def _fingerprint(examples: DataStore) -> bytes:
    """What changes with the examples."""
    hashed = hashlib.blake2b(digest_size=16)
    for array in (examples.ids, examples.lengths, examples.starts, examples.labels, examples.targets):
        hashed.update(b"" if array is None else array.tobytes())
    hashed.update(json.dumps(examples.references).encode() if examples.references else b"")
    return hashed.digest()
