"""Pages of the journal: what a late device is sent fits, is whole, and is checked once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from refusals import raises

from fedspzo.broker.rounds.aggregate import ClosedRound, close_round
from fedspzo.broker.rounds.groups import divide
from fedspzo.broker.rounds.job import Job, plan_round
from fedspzo.broker.rounds.sizes import largest_message
from fedspzo.broker.server import pages
from fedspzo.broker.server.devices import Roster
from fedspzo.broker.server.outbox import Outbox
from fedspzo.broker.server.pages import Pages
from fedspzo.broker.server.store import ServerStore
from fedspzo.device_runtime.link.connection import Link
from fedspzo.device_runtime.privacy.words import count_words
from fedspzo.device_runtime.protocol.codec import encode
from fedspzo.device_runtime.protocol.entry import Contribution, Entry, GroupSum
from fedspzo.device_runtime.protocol.masked import Group, Partner, Partners
from fedspzo.device_runtime.protocol.messages import EntryBatch, Message, Result
from fedspzo.device_runtime.protocol.plan import Block, Plan
from fedspzo.device_runtime.protocol.signing import SIGNATURE_BYTES
from fedspzo.device_runtime.protocol.topics import Topics
from fedspzo.device_runtime.replica import journal

ROUNDS = 20


def run(store: ServerStore, make_plan: Callable[..., Plan], up_to: int) -> None:
    for round in range(store.journal.last_round + 1, up_to + 1):
        entry = Entry(make_plan(round=round), (Contribution("", 1.0, (float(round),) * 4),))
        store.close_round(entry, ClosedRound(round, 1.0, ("a",), 1.0, 0.1))


@pytest.fixture
def store(make_plan: Callable[..., Plan], tmp_path: Path) -> Iterator[ServerStore]:
    with ServerStore(tmp_path, bytes(32)) as opened:
        run(opened, make_plan, ROUNDS)
        yield opened


@pytest.mark.parametrize("block", [1, 3, 256])
def test_pages_are_the_journal_a_piece_at_a_time(
    store: ServerStore, make_plan: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(pages, "BLOCK", block)
    monkeypatch.setattr(pages, "MOST_KEPT", 1000)  # bytes: some entries
    own = Pages(store.journal)
    for _ in range(2):
        last = store.journal.last_round
        every = store.journal.signed(0, last)
        for room in (1, 500, 1000, 1 << 20):
            found: list[bytes] = []
            while page := own.after(len(found), room):
                assert len(encode(EntryBatch(page))) <= room + 8 or len(page) == 1
                found += page
            assert tuple(found) == every
        assert own.after(7, 1) == every[7:8]
        assert own.after(last + 3, 1000) == ()
        run(store, make_plan, last + 5)


def test_an_entry_is_checked_once(store: ServerStore, monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[int] = []
    find = journal.find_damage
    monkeypatch.setattr(journal, "find_damage", lambda row, *more: checked.append(row.round) or find(row, *more))
    own = Pages(store.journal)
    for after in (0, 5, 3, 19, 0):
        own.after(after, 40_000)
    assert sorted(checked) == list(range(1, ROUNDS + 1))


def test_a_broker_that_takes_too_small_packets_is_refused(store: ServerStore) -> None:
    job = Job(cohort=2, batch=4).with_blocks((Block(3, 1, 0.25, 1e-3), Block(5, 40, 1.0, 1e-2)))
    least = largest_message(job) + 64 + len(Topics("default").down("d" * 64)) + 16
    assert 400 < least < 600
    for size, enough in ((least, True), (least - 1, False)):
        link = Link(f"mqtt://localhost?packet={size}", "server", [])
        outbox = Outbox(link, Topics("default"), store, Roster(iter(())))
        assert outbox.room("a") == size - 64 - len(Topics("default").down("a")) - 16
        if enough:
            outbox.check_room(job)
        else:
            with raises("broker.packet-too-large", f"at most {size} bytes", "max_packet_size"):
                outbox.check_room(job)


@pytest.mark.parametrize(
    "changes",
    [
        {"cohort": 3},
        {"cohort": 3, "seeds": "device"},
        {"cohort": 20, "mode": "groups", "group": 4},
        {"cohort": 128, "mode": "secure"},
        {"cohort": 16, "mode": "secure", "privacy": "device", "privacy_budget": 8.0, "rounds": 9},
    ],
)
def test_no_message_of_a_round_is_larger_than_is_said(changes: dict[str, Any]) -> None:
    """A late entry with its groups' sums, the groups, and the keys of their members, with certificates."""
    job = replace(Job(cohort=2, batch=4, final_rate=0.1), **changes)
    job = job.with_blocks((Block(3, 1, 0.25, 1.0), Block(5, 40, 1.0, 0.5)))
    plan = plan_round(job, job.rounds)
    if not plan.noise:
        plan = replace(plan, bound=0.3, masking=tuple(replace(each, attempt=30, clip=0.3) for each in plan.masking))
    names = [f"{number:064d}" for number in range(job.cohort)]
    results = {name: Result(1, b"", (0.1,) * plan.scalars, 0.0, 1, 0.0, b"") for name in names}
    sent: list[Message] = []
    if plan.masking:
        masked = tuple(GroupSum(len(group), bytes(4 * count_words(plan))) for group in divide(plan, names))
        entry = replace(close_round(plan, dict(list(results.items())[: len(masked)])), sums=masked)
        most = max(map(len, divide(plan, names)))
        card = Partner(bytes(32), bytes(32), bytes(64), bytes(64))
        sent += [Partners((card,) * (most - 1)), Group(plan.round, bytes(8), (bytes(16),) * most)]
    else:
        entry = close_round(plan, results)
    sent.append(EntryBatch((encode(entry) + bytes(SIGNATURE_BYTES),)))
    assert max(len(encode(each)) for each in sent) <= largest_message(job)
