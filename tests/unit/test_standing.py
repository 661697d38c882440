"""A server that may be behind its devices, or not the only one: what it asks, what proves it, and who goes on."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from refusals import raises
from victim import BLOCKS, TOPICS, Victim

from fedspzo.broker.rounds.aggregate import ClosedRound
from fedspzo.broker.server.backup import back_up
from fedspzo.broker.server.devices import Member, Roster
from fedspzo.broker.server.outbox import Outbox
from fedspzo.broker.server.standing import Standing
from fedspzo.broker.server.store import ServerStore
from fedspzo.device_runtime.link.connection import Link
from fedspzo.device_runtime.protocol.codec import decode
from fedspzo.device_runtime.protocol.entry import Contribution, Entry
from fedspzo.device_runtime.protocol.messages import Sync, Wanted
from fedspzo.device_runtime.protocol.plan import Plan
from fedspzo.device_runtime.protocol.signing import split
from fedspzo.device_runtime.protocol.topics import Topics
from fedspzo.device_runtime.replica.chain import EMPTY
from fedspzo.device_runtime.replica.state import MOST_EVIDENCE

IDENTITY, ROUNDS = bytes(32), 20


class Fleet:
    """Three devices of a server, which have been counted in its last round, and what it sends to them."""

    def __init__(self, folder: Path, trusted: bool = False) -> None:
        self.store = ServerStore(folder, IDENTITY)
        last = self.store.journal.last_round
        self.members = [Member(name, bytes(32), results=1, served=last, round=last, synced=True) for name in "abc"]
        self.roster = Roster(iter(self.members))
        self.outbox = Outbox(Link("mqtt://localhost", "server", []), Topics("default"), self.store, self.roster)
        self.standing = Standing(self.store, self.roster, self.outbox, trusted)

    def wanted(self) -> int:
        (_, signed, _), *_ = self.outbox._waiting
        self.outbox._waiting.clear()
        message = decode(split(signed))
        assert isinstance(message, Wanted)
        return message.after

    def search(self, device: Member, other: ServerStore, most: int = 1 << 20) -> str | None:
        """What a device with another server's journal hears in the end, and how it is asked."""
        last = other.journal.last_round
        sync = Sync(bytes(32), 7, IDENTITY, last, other.journal.head(last) or EMPTY, 5, 1.0, True, True)
        said = self.standing.ask(device, sync)
        self.asked = []
        while said is None and self.outbox._waiting:
            self.asked.append(self.wanted())
            said = self.standing.hear(device, other.journal.kept(self.asked[-1], most))
        return said


def run(store: ServerStore, make_plan: Callable[..., Plan], up_to: int, scalar: float) -> None:
    with store.transaction():
        for round in range(store.journal.last_round + 1, up_to + 1):
            entry = Entry(make_plan(round=round), (Contribution("", 1.0, (scalar,) * 4),))
            store.close_round(entry, ClosedRound(round, 1.0, ("a",), 1.0, 0.1))


@pytest.fixture
def fork(make_plan: Callable[..., Plan], tmp_path: Path) -> Callable[[int, int], Path]:
    """Makes the folder of a second server: with the rounds up to one as in ``server``, and then others."""

    def make(common: int, last: int) -> Path:
        with ServerStore(tmp_path / "server", IDENTITY) as store:
            run(store, make_plan, common, 1.0)
        other = shutil.copytree(tmp_path / "server", tmp_path / "other")
        for folder, rounds, scalar in ((tmp_path / "server", ROUNDS, 1.0), (other, last, 2.0)):
            with ServerStore(folder, IDENTITY) as store:
                run(store, make_plan, rounds, scalar)
        return other

    return make


def test_a_device_ahead_proves_that_a_server_is_behind(fork: Callable[[int, int], Path], tmp_path: Path) -> None:
    with ServerStore(fork(ROUNDS, ROUNDS + 3), IDENTITY) as other:
        fleet = Fleet(tmp_path / "server")
        with raises("server.behind", "'a'", f"round {ROUNDS + 1}", "fedspzo server adopt"):
            fleet.search(fleet.members[0], other)
    fleet.store.close()


@pytest.mark.parametrize("last", [ROUNDS + 5, ROUNDS, 15])
@pytest.mark.parametrize("common", [0, 1, 9, 14])
def test_the_first_round_in_which_two_servers_differ_is_found(
    fork: Callable[[int, int], Path], tmp_path: Path, common: int, last: int
) -> None:
    """Who most devices follow continues; the other ends. An answer may hold one entry only."""
    with ServerStore(fork(common, last), IDENTITY) as other:
        fleet = Fleet(tmp_path / "server")
        said = fleet.search(fleet.members[0], other, most=1)
        assert said == f"most devices have another entry than it for round {common + 1}; start it with --afresh"
        assert len(fleet.asked) <= 6
        for member in fleet.members:
            member.synced, member.served = False, common
        with raises("server.two-journals", "'b'", f"round {common + 1}", "another server"):
            fleet.search(fleet.members[1], other)
    fleet.store.close()


def test_who_can_show_nothing_is_refused(fork: Callable[[int, int], Path], tmp_path: Path) -> None:
    """With the cure for it: it may be the server that is wrong where the device is ahead."""
    other = fork(5, ROUNDS + 3)
    with ServerStore(other, IDENTITY) as store:
        store.journal.forget(ROUNDS + 3)
        fleet = Fleet(tmp_path / "server")
        head = bytes(15) + b"x"
        for round, said in ((ROUNDS + 3, "keep the state folder"), (ROUNDS, "--afresh")):
            sync = Sync(bytes(32), round, IDENTITY, round, head, 5, 1.0, True, True)
            assert fleet.standing.ask(fleet.members[0], sync) is None
            assert fleet.wanted() == min(round, ROUNDS + 1) - 1
            assert said in (fleet.standing.hear(fleet.members[0], ()) or "")
    fleet.store.close()


def test_a_restored_server_waits_for_most_of_its_devices(
    make_plan: Callable[..., Plan], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fleet = Fleet(tmp_path / "server")
    assert not fleet.standing.doubtful
    run(fleet.store, make_plan, 3, 1.0)
    back_up(tmp_path / "server", tmp_path / "backup")
    fleet.store.close()
    for _ in range(2):  # and no longer once they have told
        fleet = Fleet(tmp_path / "server")
        assert not fleet.standing.doubtful
        fleet.store.close()
    fleet = Fleet(tmp_path / "backup")
    assert "no round is opened before 2 of 3 devices" in caplog.text
    for device in (Member("stranger", bytes(32)), fleet.members[0], fleet.members[0]):
        fleet.standing.agree(device)
        assert fleet.standing.doubtful
    fleet.store.close()
    fleet = Fleet(tmp_path / "backup")
    fleet.standing.agree(fleet.members[0])
    fleet.standing.agree(fleet.members[2])
    assert not fleet.standing.doubtful
    fleet.store.close()
    shutil.copytree(tmp_path / "backup", tmp_path / "copy")
    for trusted, doubtful in ((False, True), (True, False), (False, False)):
        fleet = Fleet(tmp_path / "copy", trusted)
        assert fleet.standing.doubtful == doubtful
        fleet.store.close()


def test_a_device_stays_with_the_first_entry_and_keeps_the_second(
    victim: Victim, make_plan: Callable[..., Plan], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = (
        victim.sign(Entry(make_plan(blocks=BLOCKS), (Contribution("", 1.0, (scalar,) * 4),)), head=EMPTY)
        for scalar in (1.0, 2.0)
    )
    victim.hear(first, TOPICS.result)
    standing = victim.standing
    for _ in range(2):
        victim.hear(second, TOPICS.result)
        victim.hear(first, TOPICS.result)
    assert victim.standing == standing
    (file,) = (victim.agent._state.folder / "evidence").iterdir()
    assert file.parent.stat().st_mode & 0o777 == 0o700
    assert split(first) in file.read_bytes()
    assert split(second) in file.read_bytes()
    assert "it has a second entry for round 1, so another server runs this job" in caplog.text
    many = [
        victim.sign(Entry(make_plan(blocks=BLOCKS), (Contribution("", 1.0, (3.0 + more,) * 4),)), head=EMPTY)
        for more in range(MOST_EVIDENCE + 1)
    ]
    for other in many:
        victim.hear(other, TOPICS.result)
    kept = sorted(file.parent.iterdir())
    assert (len(kept), file in kept) == (MOST_EVIDENCE, True), "the first ones: a server can sign without end"
    assert f"such pairs are kept in {file.parent}" in caplog.text
    assert victim.standing == standing
