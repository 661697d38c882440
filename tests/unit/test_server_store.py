"""The server's state, its own or shared: the version of its tables, a journal that is read a little at a time."""

from __future__ import annotations

import itertools
import re
import shutil
import sqlite3
import sys
import threading
import tracemalloc
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import FrameType

import pytest
from patience import wait_until
from postgres import database, tmp_path
from refusals import raises, refused

from fedspzo.broker.rounds.aggregate import ClosedRound
from fedspzo.broker.rounds.job import Job, plan_round
from fedspzo.broker.rounds.masked_round import MaskedRound
from fedspzo.broker.server.controls import store_job
from fedspzo.broker.server.devices import Member, accept
from fedspzo.broker.server.forgetting import forget_devices
from fedspzo.broker.server.member_tables import read_conduct
from fedspzo.broker.server.schema import SHARED_VERSION, VERSION
from fedspzo.broker.server.shared.file import read_place
from fedspzo.broker.server.state_folder import DATABASE, LAST_ROUND, open_database, read_history, read_journal
from fedspzo.broker.server.status import read_status
from fedspzo.broker.server.store import ServerStore
from fedspzo.cli import main
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.protocol.codec import encode
from fedspzo.device_runtime.protocol.entry import Contribution, Entry
from fedspzo.device_runtime.protocol.masked import Masked, Partner
from fedspzo.device_runtime.protocol.messages import Result, Sync
from fedspzo.device_runtime.protocol.plan import Block, Plan
from fedspzo.device_runtime.protocol.signing import SIGNATURE_BYTES, Scope, check
from fedspzo.device_runtime.replica.chain import EMPTY, chain
from fedspzo.device_runtime.replica.state import read_identity

__all__ = ["database", "tmp_path"]

IDENTITY = bytes(32)


def close(store: ServerStore, plan: Plan, scalars: int = 4) -> bytes:
    entry = Entry(plan, (Contribution("", 1.0, (0.5,) * scalars),))
    return store.close_round(entry, ClosedRound(plan.round, 1.0, ("a",), 1.0, 0.1))


def version(folder: Path) -> int:
    with sqlite3.connect(folder / DATABASE) as connection:
        return int(connection.execute("PRAGMA user_version").fetchone()[0])


def test_a_file_says_which_version_its_tables_are(make_plan: Callable[..., Plan], tmp_path: Path) -> None:
    """One from before versions were kept has those of the first."""
    with ServerStore(tmp_path, IDENTITY) as store:
        close(store, make_plan())
    assert version(tmp_path) == (SHARED_VERSION if read_place(tmp_path) else VERSION)
    with sqlite3.connect(tmp_path / DATABASE) as connection:
        connection.execute("PRAGMA user_version = 0")
        connection.execute("DROP TABLE rebase")  # which came later, as this did
        connection.execute("DROP TABLE evaluations")
        connection.execute("DROP TABLE conduct")
    assert len(read_journal(tmp_path)) == read_status(tmp_path)["round"] == 1
    assert read_status(tmp_path)["evaluated"] is None
    with ServerStore(tmp_path, IDENTITY) as store:
        assert (store.journal.last_round, store.rebase) == (1, None)
    assert version(tmp_path) == (SHARED_VERSION if read_place(tmp_path) else VERSION)


def test_a_file_of_another_version_is_refused(
    make_plan: Callable[..., Plan], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with ServerStore(tmp_path, IDENTITY) as store:
        close(store, make_plan())
    with sqlite3.connect(tmp_path / DATABASE) as connection:
        connection.execute(f"PRAGMA user_version = {SHARED_VERSION + 1}")
    for use in (
        lambda: ServerStore(tmp_path, IDENTITY),
        lambda: read_journal(tmp_path),
        lambda: read_history(tmp_path),
    ):
        with raises("state.newer-version", "install that version"):
            use()
    assert "[state.newer-version]" in refused(capsys, "status", tmp_path)
    with sqlite3.connect(tmp_path / DATABASE) as connection:
        connection.execute("PRAGMA user_version = 0")
        connection.execute("ALTER TABLE history DROP COLUMN joules")
    with raises("state.not-a-servers-database", "its table 'history' has other columns"):
        ServerStore(tmp_path, IDENTITY)


def test_another_programs_file_stays_as_it_is(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / DATABASE) as connection:
        connection.execute("CREATE TABLE notes (text TEXT)")
    with raises("state.not-a-servers-database", "it has no table 'job'"):
        ServerStore(tmp_path, IDENTITY)
    with sqlite3.connect(tmp_path / DATABASE) as connection:
        assert [name for (name,) in connection.execute("SELECT name FROM sqlite_master")] == ["notes"]


def test_a_long_journal_is_read_a_little_at_a_time(make_plan: Callable[..., Plan], tmp_path: Path) -> None:
    """Opening a folder and going through its journal holds a small part of it in memory."""
    plan, rounds = {"blocks": (Block(3, 1, 1.0, 1e-3), Block(5, 3000, 1.0, 1e-3))}, 1000
    with ServerStore(tmp_path, IDENTITY) as store, store.transaction():
        for round in range(1, rounds + 1):
            size = len(close(store, make_plan(round=round, **plan), 3000))
    tracemalloc.start()
    with ServerStore(tmp_path, IDENTITY) as store:
        assert sum(1 for _ in store.journal.entries()) == rounds
        assert [entry.round for entry in store.journal.entries(after=500, most=100)] == [*range(501, 601)]
    held = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert held < rounds * size / 4


def test_a_round_is_encoded_and_hashed_once(make_plan: Callable[..., Plan], tmp_path: Path) -> None:
    calls: Counter[object] = Counter()

    def count(frame: FrameType, event: str, argument: object) -> None:
        calls[frame.f_code] += event == "call"

    with ServerStore(tmp_path, IDENTITY, "job") as store:
        sys.setprofile(count)
        signed = close(store, make_plan())
        sys.setprofile(None)
        assert (calls[encode.__code__], calls[chain.__code__]) == (1, 1)
        check(signed, Scope("job", IDENTITY, head=EMPTY), store.signer.public)
        assert store.journal.signed(0, 1) == (signed,)
        assert store.journal.head(1) == chain(EMPTY, signed[:-SIGNATURE_BYTES])


def test_a_folder_that_is_refused_is_let_go(bundle: Bundle, tmp_path: Path) -> None:
    with ServerStore(tmp_path, bundle.identity, "a"):
        pass
    with raises("state.other-job", "'a'"):
        ServerStore(tmp_path, bundle.identity, "b")
    with ServerStore(tmp_path, bundle.identity, "a"):
        pass


def test_a_servers_folder_is_no_devices(tmp_path: Path) -> None:
    ServerStore(tmp_path, bytes(32)).close()
    before = set(tmp_path.iterdir())
    with raises("state.a-servers", tmp_path, "a folder of its own"):
        read_identity(tmp_path, "a")
    assert set(tmp_path.iterdir()) == before


def test_an_open_round_does_not_wait_for_a_device_that_is_forgotten(
    make_plan: Callable[..., Plan], tmp_path: Path
) -> None:
    """A result that it has given counts."""
    with ServerStore(tmp_path, IDENTITY) as store:
        store.save_members([Member(name, bytes(32)) for name in ("a", "b", "c")])
        store.save_open_round(make_plan(), ("a", "b", "c"))
        store.save_result("a", Result(1, b"", (1.0,) * 4, 1.0, 4, 0.1, b""))
    forget_devices(tmp_path, ["a", "b"])
    with ServerStore(tmp_path, IDENTITY) as store:
        opened = store.load_open_round(0.0)
        assert opened is not None
        assert (opened.cohort, opened.missing) == (("a", "c"), ["c"])
        assert [member.name for member in store.load_members()] == ["c"]


def test_groups_of_a_device_that_is_forgotten_are_forgotten(tmp_path: Path) -> None:
    """And its keys: the members of its group, of which no sum can come, are asked again."""
    job, names = Job(cohort=12, quorum=4, mode="groups", sides=2), [f"d{n}" for n in range(12)]
    plan = plan_round(replace(job, stages=5, split=(3,)), 1)
    groups = [names[start::3] for start in range(3)]
    with ServerStore(tmp_path, IDENTITY) as store:
        store.save_members([Member(name, bytes(32)) for name in names])
        store.save_open_round(plan, tuple(names))
        store.save_groups(1, groups)
        for name in names:
            store.save_partner(name, Partner(name.encode(), b"", b""))
            store.save_result(name, Masked(1, 1, b"words"))
    forget_devices(tmp_path, ["d4"])
    with ServerStore(tmp_path, IDENTITY) as store:
        opened = store.load_open_round(0.0)
        assert isinstance(opened, MaskedRound)
        assert [list(group) for group in opened.groups] == [groups[0], groups[2]]
        assert opened.masked.keys() == {*groups[0], *groups[2]}
        assert {device for device, _ in store.load_partners()} == set(names) - {"d4"}


def test_what_a_device_says_of_its_program_is_kept(tmp_path: Path) -> None:
    """Only what is known of what it can; a device of before says nothing."""
    sync = Sync(bytes(32), 1, IDENTITY, 0, EMPTY, 5, 1.0, True, True, "9.1\n" + "x" * 99, ("bound", "fly"))
    members = [Member("a", bytes(32), copies=2, floods=1, cut_off=True), Member("b", bytes(32))]
    accept(members[0], sync)
    accept(members[1], replace(sync, version="", can=()))
    with ServerStore(tmp_path, IDENTITY) as store:
        store.save_members(members)
        assert [(m.version, m.can, m.copies, m.floods, m.cut_off) for m in store.load_members()] == [
            ("9.1\\n" + "x" * 36 + "…", {"bound"}, 2, 1, True),
            ("", frozenset(), 0, 0, False),
        ]
    first, second = read_status(tmp_path)["devices"]
    assert (first["version"][:5], first["copies"], second["version"]) == ("9.1\\n", 2, None)
    assert (first["can"], second["can"]) == (["bound"], [])
    forget_devices(tmp_path, ["a"])
    with open_database(tmp_path) as connection:
        assert set(read_conduct(connection)) == {"b"}


def test_a_status_is_of_one_moment(make_plan: Callable[..., Plan], tmp_path: Path) -> None:
    """While rounds are closed, no device is ahead of the journal."""
    reading = threading.Event()
    store = ServerStore(tmp_path, IDENTITY)
    member = Member("a", bytes(32))

    def run() -> None:
        for round in itertools.count(1):
            with store.transaction():
                close(store, make_plan(round=round))
                member.served = round
                store.save_members([member])
            if reading.is_set() and round >= 200:
                break

    writer = threading.Thread(target=run)
    writer.start()
    try:
        wait_until(lambda: read_status(tmp_path)["round"] > 0)
        assert {read_status(tmp_path)["devices"][0]["behind"] for _ in range(200)} == {0}
    finally:
        reading.set()
        writer.join()
        store.close()


def test_a_status_says_how_many_rounds_there_are(
    make_plan: Callable[..., Plan], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with ServerStore(tmp_path, IDENTITY) as store:
        close(store, make_plan())
        assert read_status(tmp_path)["rounds"] is None, "a server of before job settings were kept"
        store_job(store, Job(rounds=40))
    assert main(["status", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "\nround 1 of 40, journal of " in out
    assert "by an operator" not in out
    with ServerStore(tmp_path, IDENTITY) as store, store.transaction() as execute:
        execute("INSERT INTO changes VALUES (1, 0, 'me', 'state', '\"running\"', '\"paused\"', 1)")
    assert main(["status", str(tmp_path)]) == 0
    assert "\nthe job is paused by an operator\n" in capsys.readouterr().out


def test_a_status_with_long_names_and_large_numbers_has_columns(
    make_plan: Callable[..., Plan], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with ServerStore(tmp_path, IDENTITY) as store:
        close(store, make_plan())
        store.save_members([Member("a" * 64, bytes(32), bytes_up=10**13), Member("b", bytes(32), bytes_down=10**13)])
    assert main(["status", str(tmp_path)]) == 0
    job, *_, title, first, second = capsys.readouterr().out.splitlines()
    assert job == "job 'default'"
    assert len(title) == len(first) == len(second)
    ends = [match.end() for match in re.finditer(r"\S+", title.replace("J a round", "J_a_round"))]
    for line in (first, second):
        assert all(line[end - 1] != " " and line[end : end + 1] in ("", " ") for end in ends[1:])


def test_an_older_database_in_the_place_of_a_newer_one_is_noticed(
    make_plan: Callable[..., Plan], tmp_path: Path
) -> None:
    """Copied over it, so that the file system says that it is the same file; settled, it is as any other."""
    folder = tmp_path / "server"
    for last, copy in ((1, tmp_path / "old"), (3, tmp_path / "new")):
        with ServerStore(folder, IDENTITY) as store:
            for round in range(store.journal.last_round + 1, last + 1):
                close(store, make_plan(round=round))
            store.settle()
            assert not store.moved
        shutil.copytree(folder, copy)
    for name, moved in (("new", False), ("old", True)):
        shutil.copyfile(tmp_path / name / DATABASE, folder / DATABASE)
        with ServerStore(folder, IDENTITY) as store:
            assert store.moved == moved
    with ServerStore(folder, IDENTITY) as store:
        store.settle()
    with ServerStore(folder, IDENTITY) as store:
        assert (store.journal.last_round, store.moved) == (1, False)
        close(store, make_plan(round=2))
    assert (folder / LAST_ROUND).read_text() == "2"
