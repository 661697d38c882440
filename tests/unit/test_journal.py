"""The journal as a checked chain: flipped bits, good copies, backups, and what devices keep for their server."""

from __future__ import annotations

import random
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from refusals import raises

from fedspzo import open_bundle, open_model
from fedspzo.broker.rounds.aggregate import ClosedRound
from fedspzo.broker.server.backup import back_up
from fedspzo.broker.server.blocking import block
from fedspzo.broker.server.enrolment.invitations import job_of, list_askers
from fedspzo.broker.server.forgetting import forget_devices
from fedspzo.broker.server.recovery import FolderSource, Repaired, adopt, open_stopped, repair
from fedspzo.broker.server.state_folder import (
    DATABASE,
    link_bundle,
    open_journal,
    pin_bundle,
    read_history,
    read_journal,
    read_open_plan,
)
from fedspzo.broker.server.status import read_status
from fedspzo.broker.server.store import ServerStore
from fedspzo.device_runtime.errors import StateError
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.protocol.codec import BATCH_BYTES
from fedspzo.device_runtime.protocol.entry import Contribution, Entry
from fedspzo.device_runtime.protocol.plan import Block, Plan
from fedspzo.device_runtime.protocol.signing import SIGNATURE_BYTES
from fedspzo.device_runtime.replica import state
from fedspzo.device_runtime.replica.chain import EMPTY, Record, chain
from fedspzo.device_runtime.replica.state import DeviceState
from fedspzo.model_card import read_run

IDENTITY, ROUNDS = bytes(32), 12
BLOCKS = (Block(3, 1, 0.25, 1e-3), Block(5, 4, 1.0, 1e-2))


def close(store: ServerStore, plan: Plan) -> bytes:
    entry = Entry(plan, (Contribution("", 1.0, tuple(0.5 + plan.round for _ in range(plan.scalars))),))
    return store.close_round(entry, ClosedRound(plan.round, 1.0, ("a",), 1.0, 0.1))


@pytest.fixture(scope="module")
def folder(make_plan: Callable[..., Plan], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The state folder of a server with some rounds; to be copied."""
    made = tmp_path_factory.mktemp("server")
    with ServerStore(made, IDENTITY) as store, store.transaction():
        for round in range(1, ROUNDS + 1):
            close(store, make_plan(round=round))
    with closing(sqlite3.connect(made / DATABASE)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return made


@pytest.fixture
def server(folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(folder, tmp_path / "server")


def change(server: Path, statement: str, *values: object) -> None:
    with closing(sqlite3.connect(server / DATABASE, isolation_level=None)) as connection:
        connection.execute(statement, values)


def flip(server: Path, round: int, part: str, byte: int) -> None:
    with closing(sqlite3.connect(server / DATABASE)) as connection:
        (blob,) = connection.execute(f"SELECT {part} FROM journal WHERE round = ?", (round,)).fetchone()
    changed = bytearray(blob)
    changed[byte] ^= 16
    change(server, f"UPDATE journal SET {part} = ? WHERE round = ?", bytes(changed), round)


def repaired(server: Path, *sources: Path) -> list[Repaired]:
    with open_stopped(server) as own:
        return list(repair(own, [FolderSource(source) for source in sources]))


@pytest.mark.parametrize("part", ["entry", "signature", "head"])
@pytest.mark.parametrize("round", [1, 7, ROUNDS])
def test_a_flipped_bit_is_found_and_put_right(folder: Path, server: Path, part: str, round: int) -> None:
    """Only an entry needs a copy, and a copy with a flipped bit of its own does not count as one."""
    flip(server, round, part, -3)
    with raises("journal.entry-damaged", f"round {round} ", "fedspzo server repair"):
        ServerStore(server, IDENTITY)
    with raises("journal.entry-damaged", f"round {round} "):
        read_journal(server)
    bad = shutil.copytree(folder, server.parent / "bad")
    flip(bad, round, "entry", -3)
    if part == "entry":
        with raises("journal.no-good-copy", f"round {round} ", bad, "--from"):
            repaired(server, bad)
    named = {"head": "hash"}.get(part, part)
    source = str(folder) if part == "entry" else ""
    assert repaired(server, bad, folder) == [Repaired(round, named, source)]
    assert repaired(server) == []
    with ServerStore(server, IDENTITY) as own, open_journal(folder) as good:
        assert own.journal.signed(0, 1 << 20) == good.signed(0, 1 << 20)
        for asked in (ROUNDS, 0, 3, ROUNDS + 1):  # in any order
            assert own.journal.head(asked) == good.head(asked)
        assert (good.head(0), good.head(ROUNDS + 1)) == (EMPTY, None)


def test_rounds_that_were_lost_or_renumbered_are_found(folder: Path, server: Path) -> None:
    change(server, "DELETE FROM journal WHERE round IN (3, 4)")
    change(server, "UPDATE journal SET entry = x'00', signature = 'ab', head = x'01' WHERE round = 5")
    change(server, "UPDATE journal SET round = 1 << 40 WHERE round = ?", ROUNDS)
    with raises("journal.round-missing", "round 3"):
        ServerStore(server, IDENTITY)
    found = [(each.round, each.part, bool(each.source)) for each in repaired(server, folder)]
    assert found == [(3, "entry", True), (4, "entry", True), (5, "entry", True), (ROUNDS, "number", False)]
    assert read_journal(server) == read_journal(folder)


def test_a_bit_anywhere_in_the_file_changes_no_journal(folder: Path, server: Path) -> None:
    """It is named, or the journal is read as it was written."""
    good, file = read_journal(folder), server / DATABASE
    data, chance = file.read_bytes(), random.Random(18)
    written = [place for place, byte in enumerate(data) if byte]  # most of each table's page is empty
    kinds, read = set(), 0
    for _ in range(300):
        broken = bytearray(data)
        broken[chance.choice(written)] ^= 1 << chance.randrange(8)
        for end in ("-wal", "-shm"):
            (server / (DATABASE + end)).unlink(missing_ok=True)
        file.write_bytes(broken)
        try:
            with ServerStore(server, IDENTITY) as store:
                assert list(store.journal.entries()) == good[: store.journal.last_round]
                whole = store.journal.last_round == ROUNDS
            assert whole
            read += 1
        except StateError as error:
            kinds.add(error.kind)
    assert 30 < read < 270
    assert "state.in-use" not in kinds, "a folder whose file is damaged is let go"


def test_a_damaged_list_of_tables_is_named(server: Path) -> None:
    """SQLite says what is wrong with it in the file's own bytes, which are then no text."""
    file = server / DATABASE
    data = file.read_bytes()
    assert b"CREATE TABLE job" in data
    file.write_bytes(data.replace(b"CREATE TABLE job", b"CREATE TABLE\xd9job"))
    with raises("state.database-unusable", file, "damaged"):
        ServerStore(server, IDENTITY)
    with raises("state.unreadable", file, "damaged"):
        read_status(server)


def test_a_file_that_cannot_be_read_is_named(server: Path, bundle_folder: Path, tmp_path: Path) -> None:
    """One that a killed process left empty, another program's, and one with a column whose name is no text."""
    link_bundle(server, bundle_folder)
    file, kept = server / DATABASE, (server / DATABASE).read_bytes()
    with closing(sqlite3.connect(tmp_path / "other")) as other:
        other.execute("CREATE TABLE other (one)")
    garbled = kept.replace(b"CREATE TABLE blocked (name", b"CREATE TABLE blocked (\xd9ame")
    assert garbled != kept

    def kinds(*uses: Callable[[], object]) -> set[str]:
        found = set()
        for use in uses:
            with pytest.raises(StateError, match=DATABASE) as raised:
                use()
            found.add(raised.value.kind)
        return found

    for content in (b"", (tmp_path / "other").read_bytes(), garbled):
        file.write_bytes(content)
        assert kinds(
            lambda: read_journal(server),
            lambda: open_model(server),
            lambda: open_model(server, "best"),
            lambda: open_bundle(server),
            lambda: read_run(server, 1),
            lambda: read_history(server),
            lambda: read_open_plan(server),
            lambda: job_of(server),
            lambda: block(server, ["a"]),
            lambda: forget_devices(server, ["a"]),
            lambda: repaired(server),
            lambda: back_up(server, tmp_path / "backup"),
        ) == {"state.unreadable"}
    assert kinds(lambda: list_askers(server), lambda: pin_bundle(tmp_path, server)) == {"state.unreadable"}


def test_a_backup_is_whole_or_none(server: Path, make_plan: Callable[..., Plan], tmp_path: Path) -> None:
    """It is made while the server runs; what it lacks is adopted from elsewhere."""
    with ServerStore(server, IDENTITY) as store:
        assert store.backed_up == 0
        assert back_up(server, tmp_path / "backup") == ROUNDS
        assert store.backed_up == ROUNDS
        for round in (ROUNDS + 1, ROUNDS + 2):
            close(store, make_plan(round=round))
        store.save_open_round(make_plan(round=ROUNDS + 3), ("a",))
    with raises("state.backup-in-place", server):
        back_up(server, server)
    with raises("state.backup-inside", server / "inside"):
        back_up(server, server / "inside")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").touch()
    with raises("state.backup-among-files", tmp_path / "mine", "empty folder"):
        back_up(server, tmp_path / "mine")
    with open_stopped(tmp_path / "backup") as own:
        own.connection.execute("INSERT INTO summed VALUES (?, 'a b')", (ROUNDS + 1,))
        assert [round for round, _ in adopt(own, [FolderSource(server)])] == [ROUNDS + 1, ROUNDS + 2]
        assert not own.connection.execute("SELECT * FROM summed").fetchall()
    assert read_journal(tmp_path / "backup") == read_journal(server)
    flip(server, 2, "entry", -3)
    with raises("journal.entry-damaged", "round 2"):
        back_up(server, tmp_path / "backup")
    assert len(read_journal(tmp_path / "backup")) == ROUNDS + 2


def test_a_journal_of_another_job_is_no_source(server: Path, make_plan: Callable[..., Plan], tmp_path: Path) -> None:
    """Nor one of this job's bundle by another server's key. One with damaged entries still is."""
    with ServerStore(tmp_path / "other", IDENTITY) as store:
        close(store, make_plan(round=1))
    good = shutil.copytree(server, tmp_path / "good")
    for round in (1, ROUNDS):
        flip(good, round, "entry", -3)
    with open_stopped(server) as own:
        FolderSource(good).check_job(own.check)
        with raises("state.foreign-journal", tmp_path / "other", "another job"):
            FolderSource(tmp_path / "other").check_job(own.check)
    flip(server, 3, "entry", -3)
    with raises("journal.no-good-copy", "round 3", "no copy of it was looked for", "--from", "--access"):
        repaired(server)


def records(make_plan: Callable[..., Plan], folder: Path, bundle: Bundle, count: int) -> list[Record]:
    """Signed rounds of a server, as a device gets them."""
    found: list[Record] = []
    with ServerStore(folder, bundle.identity) as store, store.transaction():
        for round in range(1, count + 1):
            signed = close(store, make_plan(round=round, blocks=BLOCKS))
            payload = signed[:-SIGNATURE_BYTES]
            head = chain(found[-1].head if found else EMPTY, payload)
            entry = Entry(make_plan(round=round, blocks=BLOCKS), (Contribution("", 1.0, (0.5 + round,) * 4),))
            found.append(Record(entry, payload, head, signed[-SIGNATURE_BYTES:]))
    return found


def test_a_device_keeps_what_no_backup_has(
    bundle: Bundle, make_plan: Callable[..., Plan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds = records(make_plan, tmp_path / "server", bundle, 8)
    device = DeviceState(tmp_path / "device", bundle)

    def kept() -> int:
        return len(device.kept(0, BATCH_BYTES))

    device.follow(rounds[:2])
    device.snapshot()
    assert kept() == 0  # nobody has asked for it
    device.keep(2)
    device.follow(rounds[2:6])
    device.snapshot()
    device.close()
    device = DeviceState(tmp_path / "device", bundle)
    assert (kept(), len(device.kept(2, BATCH_BYTES)), len(device.kept(5, 1)), device.kept(6, 1)) == (0, 4, 1, ())
    with ServerStore(tmp_path / "server", bundle.identity) as store:
        assert device.kept(2, BATCH_BYTES) == store.journal.signed(2, BATCH_BYTES)[:4]
    device.keep(4)
    assert (device.kept(3, 1), len(device.kept(4, BATCH_BYTES))) == ((), 2)
    monkeypatch.setattr(state, "MOST_KEPT_BYTES", len(rounds[0].payload) + 64 + 10)
    device.snapshot()
    assert (device.kept(4, 1), len(device.kept(5, BATCH_BYTES))) == ((), 1)
    device.close()


def test_a_device_drops_what_is_damaged_and_asks_again(
    bundle: Bundle, make_plan: Callable[..., Plan], tmp_path: Path
) -> None:
    rounds = records(make_plan, tmp_path / "server", bundle, 6)
    device = DeviceState(tmp_path / "device", bundle)
    device.follow(rounds)
    good = device.replica.digest()
    device.close()
    with closing(sqlite3.connect(tmp_path / "device" / state.DATABASE, isolation_level=None)) as connection:
        (blob,) = connection.execute("SELECT entry FROM journal WHERE round = 4").fetchone()
        connection.execute("UPDATE journal SET entry = ? WHERE round = 4", (blob[:-1] + bytes([blob[-1] ^ 1]),))
    device = DeviceState(tmp_path / "device", bundle)
    assert (device.replica.round, device.replica.head) == (3, rounds[2].head)
    device.follow(rounds[3:])
    assert device.replica.digest() == good
    device.close()
