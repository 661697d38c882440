"""The server's replica on a separate thread: held-out accuracy and digests, without delaying a round.

It reads the journal by itself, so that nothing piles up in memory when rounds are quicker than it is.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fedspzo.broker.rounds.best import rank
from fedspzo.broker.server.store import ServerStore
from fedspzo.device_runtime.data.store import DataStore
from fedspzo.device_runtime.engines.protocol import Engine
from fedspzo.device_runtime.model.bundle import file_hash
from fedspzo.device_runtime.protocol.entry import Entry
from fedspzo.device_runtime.replica.weights import Replica
from fedspzo.device_runtime.step.prefix_cache import Prefix, PrefixCache
from fedspzo.device_runtime.step.runner import Forward
from fedspzo.device_runtime.step.scores import Evaluation, evaluate

#: Journal entries that are read at once.
BATCH = 64
#: Rounds between snapshots.
SNAPSHOT_EVERY = 100


@dataclass(frozen=True)
class Schedule:
    """What is due after which rounds; all of it after the last.

    Attributes:
        last: the job's last round.
        evaluate_every: rounds between evaluations.
        digest_every: rounds between those whose plan asks devices for the digest of what they start from.
    """

    last: int
    evaluate_every: int
    digest_every: int

    def overtaken(self, round: int, reached: int) -> bool:
        """Whether the evaluation after a round is of no interest, the next being due already."""
        following = round - round % self.evaluate_every + self.evaluate_every
        return round < self.last and min(following, self.last) <= reached

    def evaluation(self, round: int) -> bool:
        """Whether one is due after a round."""
        return round == self.last or round % self.evaluate_every == 0

    def digest(self, round: int) -> bool:
        """Whether it is asked for."""
        return round == self.last or (round + 1) % self.digest_every == 0

    def snapshot(self, round: int) -> bool:
        """Whether one is due."""
        return round == self.last or round % SNAPSHOT_EVERY == 0

    def due(self, round: int) -> bool:
        """Whether anything is."""
        return self.snapshot(round) or self.evaluation(round) or self.digest(round)


@dataclass(frozen=True)
class Evaluated:
    """How the model after a round does on the held-out set."""

    round: int
    evaluation: Evaluation

    def record(self) -> dict[str, Any]:
        """Plain values for people and programs: round, loss, scores, examples, and the loss's uncertainty if known."""
        known = {name: value for name, value in vars(self.evaluation).items() if value is not None}
        return {"round": self.round, **known}


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


class Evaluator:
    """Follows the journal, and reports what is due, in order. An evaluation that comes late is left out.

    Attributes:
        round, head: the round that its replica started from, and the hash of the journal up to there.
    """

    def __init__(
        self,
        engine: Engine,
        replica: Replica,
        examples: DataStore | None,
        store: ServerStore,
        schedule: Schedule,
        report: Callable[[object], None],
        best: Evaluated | None = None,
        frozen: int = 0,
    ) -> None:
        """Start the thread, which waits for :meth:`follow`.

        Args:
            replica: this object is the thread's from now on.
            examples: the held-out set, if there is one.
            store: has the journal, and takes the snapshots.
            report: given each :class:`Evaluated`, :class:`Digested`, :class:`Snapshot` or :class:`Failed`, on
                the thread.
            best: the best evaluation so far; a better one's round gets a snapshot.
            frozen: stages at the start of the network that the job leaves as they are; examples pass them once.

        Raises:
            StateError: the journal cannot be read.
        """
        self.round, self.head = replica.round, replica.head
        self._forward = Forward(engine, replica)
        self._prefix = Prefix(self._forward, frozen, PrefixCache(store.activations))
        self._examples = examples
        self._store = store
        self._schedule = schedule
        self._report = report
        self._best = best
        self._evaluated = -1
        self._journal = store.open_journal()
        self._reached = -1
        self._ended = self._closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="evaluator", daemon=True)
        self._thread.start()

    def follow(self, reached: int) -> None:
        """Take the replica to this round, up to which the journal is on disk."""
        with self._changed:
            self._reached = reached
            self._changed.notify()

    def end(self) -> None:
        """No round follows those that there are: the last is attended to as the schedule's last."""
        with self._changed:
            self._ended = True
            self._changed.notify()

    def close(self) -> None:
        """End the thread after what it is at."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        replica = self._forward.weights
        try:
            if self._await(-1):
                if replica.round in self._store.snapshots():
                    self._report(_snapshot(replica, self._store.snapshots()[replica.round]))
                self._evaluate()
                self._report(Digested(replica.round, replica.digest()))
            while self._await(replica.round):
                if self._ended:
                    self._schedule = replace(self._schedule, last=self._reached)
                together: list[Entry] = []
                for entry in self._journal.entries(replica.round, min(BATCH, self._reached - replica.round)):
                    together.append(entry)
                    if self._schedule.due(entry.round):
                        break
                if together:
                    replica.apply_all(together, self._journal.head(together[-1].round))
                self._attend()
        except Exception as error:  # a thread's error would be lost; the server raises it
            self._report(Failed(error))
        finally:
            self._journal.close()

    def _await(self, round: int) -> bool:
        """Wait until the journal has an entry after a round, or ends there; False when the thread is to end."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._closing or self._reached > round or (self._ended and self._schedule.last != round)
            )
            return not self._closing

    def _attend(self) -> None:
        """Do what is due after the replica's round."""
        replica = self._forward.weights
        improved = self._schedule.evaluation(replica.round) and self._evaluate()
        if improved or self._schedule.snapshot(replica.round):
            best = self._best.round if self._best else None
            self._report(_snapshot(replica, self._store.new_snapshot(replica.round, best)))
            self._store.share_snapshot(replica.round)
        if self._schedule.digest(replica.round):
            self._report(Digested(replica.round, replica.digest()))

    def _evaluate(self) -> bool:
        """Evaluate once, unless it is too late; tells whether the model is the best so far."""
        round = self._forward.weights.round
        if self._examples is None or round == self._evaluated or self._schedule.overtaken(round, self._reached):
            return False
        found = Evaluated(round, evaluate(self._forward, self._examples, self._prefix))
        self._evaluated = round
        self._report(found)
        if self._best is not None and rank(found.evaluation) <= rank(self._best.evaluation):
            return False
        self._best = found
        return True


def _snapshot(replica: Replica, path: Path) -> Snapshot:
    if not path.exists():
        replica.save_snapshot(path)
    return Snapshot(
        round=replica.round,
        path=path,
        sha256=bytes.fromhex(file_hash(path)),
        size=path.stat().st_size,
    )


@dataclass(frozen=True)
class Claim:
    """A device says that its replica after a round has this digest."""

    device: str
    round: int
    digest: bytes


class DigestWatch:
    """Holds claims until the server's own digest of their round is known."""

    def __init__(self) -> None:
        self._known: dict[int, bytes] = {}
        self._waiting: dict[str, Claim] = {}

    def known(self, round: int) -> bytes | None:
        """The server's digest after a round, if the evaluator has come so far."""
        return self._known.get(round)

    def learn(self, round: int, digest: bytes) -> list[Claim]:
        """Take in the server's digest of a round; returns the claims that it proves wrong."""
        self._known[round] = digest
        return self._settle()

    def claim(self, claim: Claim) -> list[Claim]:
        """Take in a device's claim; returns the claims that are proved wrong."""
        self._waiting[claim.device] = claim  # a device's latest: it cannot pile them up
        return self._settle()

    def _settle(self) -> list[Claim]:
        settled = [claim for claim in self._waiting.values() if claim.round in self._known]
        for claim in settled:
            del self._waiting[claim.device]
        return [claim for claim in settled if claim.digest != self._known[claim.round]]
