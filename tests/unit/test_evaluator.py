"""The server's evaluator against its journal: it holds nobody up, skips what is late and keeps what is needed."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from patience import PATIENCE_S

from fedspzo.broker.rounds.aggregate import ClosedRound
from fedspzo.broker.rounds.best import rank
from fedspzo.broker.server.evaluation import Digested, Evaluated, Evaluator, Failed, Schedule, Snapshot
from fedspzo.broker.server.held_out import best_of
from fedspzo.broker.server.store import ServerStore
from fedspzo.device_runtime.data.store import DataStore
from fedspzo.device_runtime.engines.protocol import create_engine
from fedspzo.device_runtime.errors import StateError
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.protocol.entry import Contribution, Entry
from fedspzo.device_runtime.protocol.plan import Block, Plan
from fedspzo.device_runtime.replica.weights import Replica
from fedspzo.device_runtime.step.scores import Evaluation

ROUNDS = 250
SCHEDULE = Schedule(last=ROUNDS, evaluate_every=20, digest_every=25)
DIGESTS = [0, *range(24, ROUNDS, 25), ROUNDS]
BLOCKS = (Block(3, 1, 0.25, 1e-3), Block(5, 4, 1.0, 1e-2))


@pytest.fixture
def server(bundle: Bundle, make_plan: Callable[..., Plan], tmp_path: Path) -> ServerStore:
    """A journal of all rounds but the last."""
    server = ServerStore(tmp_path / "server", bundle.identity)
    with server.transaction():
        for number in range(1, ROUNDS):
            append(server, make_plan(round=number, base_seed=number, blocks=BLOCKS))
    return server


def append(server: ServerStore, plan: Plan) -> None:
    entry = Entry(plan, (Contribution("", 1.0, (1.0, -2.0, 0.5, 0.25)),))
    server.close_round(entry, ClosedRound(plan.round, 1.0, ("a",), 0.1, 0.1))


def rounds(reports: list[object], kind: type[Evaluated | Digested | Snapshot]) -> list[int]:
    return [report.round for report in reports if isinstance(report, kind)]


def test_what_is_late_is_skipped_and_what_is_needed_kept(
    server: ServerStore, bundle: Bundle, store: DataStore, make_plan: Callable[..., Plan]
) -> None:
    """All rounds but the last are closed while the first evaluation takes its time, and the last one later."""
    reports: list[object] = []
    busy, go_on, done = threading.Event(), threading.Event(), threading.Event()

    def report(event: object) -> None:
        reports.append(event)
        if event == reports[0]:
            busy.set()
            assert go_on.wait(PATIENCE_S)
        if isinstance(event, Digested) and event.round == DIGESTS[-2]:
            append(server, make_plan(round=ROUNDS, base_seed=ROUNDS, blocks=BLOCKS))
            evaluator.follow(ROUNDS)
        if isinstance(event, Digested) and event.round == ROUNDS:
            done.set()

    evaluator = Evaluator(create_engine("litert"), Replica(bundle), store, server, SCHEDULE, report)
    evaluator.follow(0)
    assert busy.wait(PATIENCE_S)
    for number in range(1, ROUNDS):
        evaluator.follow(number)
    go_on.set()
    assert done.wait(PATIENCE_S)
    evaluator.close()
    assert rounds(reports, Evaluated) == [0, 240, 250]
    assert rounds(reports, Digested) == DIGESTS
    assert rounds(reports, Snapshot) == [100, 200, 250]
    assert sorted(server.snapshots()) == [200, 250]
    replica = Replica(bundle)
    for entry in server.journal.entries():
        replica.apply(entry)
    last = reports[-1]
    assert isinstance(last, Digested)
    assert last.digest == replica.digest()
    newest = Replica(bundle, server.snapshot)
    assert (newest.round, newest.digest()) == (ROUNDS, replica.digest())


def test_in_time_nothing_is_skipped_and_a_restart_goes_on_at_the_snapshot(
    server: ServerStore, bundle: Bundle, store: DataStore
) -> None:
    evaluations: dict[int, Evaluation] = {}

    def follow(expected: list[int]) -> None:
        """A journal grows by 20 rounds whenever an evaluation is done. A better model than before gets a snapshot."""
        reports: list[object] = []
        done = threading.Event()

        def report(event: object) -> None:
            reports.append(event)
            if isinstance(event, Evaluated) and event.round < expected[-1]:
                evaluator.follow(event.round + 20)
            elif isinstance(event, Evaluated | Failed):
                done.set()

        replica = Replica(bundle, server.snapshot)
        best = best_of(evaluations)
        evaluator = Evaluator(create_engine("litert"), replica, store, server, SCHEDULE, report, best)
        assert (evaluator.round, evaluator.head) == (expected[0], server.journal.head(expected[0]))
        evaluator.follow(expected[0])
        assert done.wait(PATIENCE_S)
        evaluator.close()
        assert rounds(reports, Evaluated) == expected
        snapshots = {round for round in expected if round and round % 100 == 0}
        for report in reports:
            if isinstance(report, Evaluated):
                better = all(rank(report.evaluation) > rank(other) for other in evaluations.values())
                snapshots |= {report.round} if better and report.round else set()
                evaluations[report.round] = report.evaluation
        assert rounds(reports, Snapshot) == sorted(snapshots)
        found = best_of(evaluations)
        assert found is not None
        assert {found.round, expected[-1] // 100 * 100} <= {0, *server.snapshots()}
        assert len(server.snapshots()) <= 3

    follow([0, 20, 40, 60, 80, 100])
    follow([100, 120, 140, 160, 180, 200, 220, 240])


def test_a_job_that_ends_early_is_attended_to_as_at_its_end(
    server: ServerStore, bundle: Bundle, store: DataStore
) -> None:
    """Where nothing was due, and where the round was evaluated already: it is not evaluated again."""
    reports: queue.Queue[object] = queue.Queue()
    evaluator = Evaluator(create_engine("litert"), Replica(bundle), store, server, SCHEDULE, reports.put)
    evaluator.follow(0)
    while not isinstance(reports.get(timeout=PATIENCE_S), Digested):
        pass
    evaluator.follow(7)
    evaluator.end()
    found = [reports.get(timeout=PATIENCE_S) for _ in range(3)]
    assert [type(report) for report in found] == [Evaluated, Snapshot, Digested]
    assert {report.round for report in found} == {7}  # type: ignore[attr-defined]
    evaluator.close()
    evaluator = Evaluator(
        create_engine("litert"), Replica(bundle, server.snapshot), store, server, SCHEDULE, reports.put
    )
    evaluator.follow(7)
    evaluator.end()
    found = [reports.get(timeout=PATIENCE_S) for _ in range(5)]
    assert [type(report) for report in found] == [Snapshot, Evaluated, Digested, Snapshot, Digested]
    evaluator.close()
    assert reports.empty()


def test_a_journal_that_is_damaged_is_told(server: ServerStore, bundle: Bundle, store: DataStore) -> None:
    with server.transaction() as execute:
        execute("DELETE FROM journal WHERE round = 7")
    reports: queue.Queue[object] = queue.Queue()
    evaluator = Evaluator(create_engine("litert"), Replica(bundle), store, server, SCHEDULE, reports.put)
    evaluator.follow(ROUNDS - 1)
    while not isinstance(failed := reports.get(timeout=PATIENCE_S), Failed):
        pass
    evaluator.close()
    assert isinstance(failed.error, StateError)
    assert "the journal lacks round 7" in str(failed.error)
