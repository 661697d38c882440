"""A state that is shared in PostgreSQL: one server at a time has it, and what is in it is the same in every folder."""

from __future__ import annotations

import pickle
import signal
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from patience import PATIENCE_S, wait_until
from postgres import Database, database, needs_postgres
from refusals import raises

from fedspzo.broker.rounds.aggregate import ClosedRound
from fedspzo.broker.server.backup import back_up
from fedspzo.broker.server.blocking import block
from fedspzo.broker.server.devices import Member
from fedspzo.broker.server.key_change import change_key
from fedspzo.broker.server.schema import SHARED_VERSION, VERSION, writing
from fedspzo.broker.server.shared.changes import columns
from fedspzo.broker.server.shared.file import PLACE, Place, catch_up, open_file, read_place, write_place
from fedspzo.broker.server.shared.holding import Held
from fedspzo.broker.server.signing_key import KEY
from fedspzo.broker.server.state_folder import DATABASE, read_journal
from fedspzo.broker.server.status import read_status
from fedspzo.broker.server.store import ServerStore
from fedspzo.device_runtime.protocol.entry import Contribution, Entry
from fedspzo.device_runtime.protocol.messages import KEYS
from fedspzo.device_runtime.protocol.plan import Plan

__all__ = ["database"]

pytestmark = needs_postgres
IDENTITY = bytes(32)


@pytest.fixture
def place(database: Database) -> Place:
    """Of a job that has no state yet."""
    return Place(database.url, f"t{uuid4().hex}")


@pytest.fixture
def folder(place: Place, tmp_path: Path) -> Callable[[str], Path]:
    """Makes a folder whose state is shared."""

    def make(name: str) -> Path:
        write_place(tmp_path / name, place)
        return tmp_path / name

    return make


def close(store: ServerStore, plan: Plan) -> bytes:
    entry = Entry(plan, (Contribution("", 1.0, (0.5,) * 4),))
    return store.close_round(entry, ClosedRound(plan.round, 1.0, ("a",), 1.0, 0.1))


def rows(file: Path) -> dict[str, list[tuple[object, ...]]]:
    """All that is in a server's file and not about the file."""
    with closing(sqlite3.connect(file)) as connection:
        return {
            name: connection.execute(f"SELECT rowid, * FROM {name} ORDER BY rowid").fetchall() for name in columns()
        }


def version(folder: Path) -> int:
    with closing(sqlite3.connect(folder / DATABASE)) as connection:
        return int(connection.execute("PRAGMA user_version").fetchone()[0])


def ask(database: Database, place: Place, statement: str) -> str:
    return database.run("psql", "-At", "-c", f'SET search_path TO "fedspzo_{place.job}"', "-c", statement).split("\n")[
        1
    ]


def test_a_server_that_is_killed_is_followed_by_another(
    folder: Callable[[str], Path], make_plan: Callable[..., Plan], tmp_path: Path
) -> None:
    """The standby has every round, the open one with its result, the snapshot, and the same key."""
    first, second = folder("first"), folder("second")
    plans = [make_plan(round=number) for number in (1, 2, 3)]
    ready = tmp_path / "ready"
    script = textwrap.dedent(f"""
        import pickle, sys, time
        from pathlib import Path
        from fedspzo.broker.rounds.aggregate import ClosedRound
        from fedspzo.broker.server.store import ServerStore
        from fedspzo.device_runtime.protocol.entry import Contribution, Entry
        from fedspzo.device_runtime.protocol.messages import Result

        plans = pickle.load(sys.stdin.buffer)
        store = ServerStore(Path({str(first)!r}), bytes(32))
        for plan in plans[:2]:
            entry = Entry(plan, (Contribution("", 1.0, (0.5,) * 4),))
            store.close_round(entry, ClosedRound(plan.round, 1.0, ("a",), 1.0, 0.1))
        store.save_open_round(plans[2], ("a", "b"))
        store.save_result("a", Result(3, bytes(16), (0.5,) * 4, 1.0, 12, 0.1, b""))
        store.new_snapshot(2).write_bytes(b"snapshot")
        store.share_snapshot(2)
        Path({str(ready)!r}).touch()
        time.sleep(1000)
    """)
    process = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write(pickle.dumps(plans))
    process.stdin.close()
    wait_until(lambda: ready.exists() or process.poll() is not None)
    with raises("state.runs-elsewhere", "--standby"):
        Held(second, second / DATABASE)
    waited: list[str] = []

    def wait(who: str) -> None:
        if not waited:
            process.send_signal(signal.SIGKILL)
            process.wait(PATIENCE_S)
        waited.append(who)

    with ServerStore(second, IDENTITY, held=Held(second, second / DATABASE, wait)) as store:
        opened = store.load_open_round(0.0)
        assert opened is not None
        assert (store.journal.last_round, opened.plan, set(opened.results)) == (2, plans[2], {"a"})
        assert (second / KEY).read_bytes() == (first / KEY).read_bytes()
        assert not store.moved
        assert store.snapshots()[2].read_bytes() == b"snapshot"
        close(store, plans[2])
    assert waited
    assert len(read_journal(second)) == 3
    assert rows(first / DATABASE) != rows(second / DATABASE)
    assert len(read_journal(first)) == 3, "a folder that is looked into is brought up to date"
    assert rows(first / DATABASE) == rows(second / DATABASE)


def test_a_server_that_was_replaced_changes_nothing(
    folder: Callable[[str], Path], make_plan: Callable[..., Plan], database: Database, place: Place
) -> None:
    """It stood still for so long that another one took its place; even before it notices, nothing counts."""
    with ServerStore(folder("a"), IDENTITY) as store:
        close(store, make_plan(round=1))
        ask(database, place, "UPDATE lease SET token = token + 1, host = 'elsewhere'")
        with raises("state.lease-lost", "elsewhere", "--standby"):
            close(store, make_plan(round=2))
        assert store.journal.last_round == 1
        assert ask(database, place, "SELECT COUNT(*) FROM journal") == "1"

        def refused_at_once() -> bool:
            try:
                with store.transaction():
                    return False
            except Exception as error:
                return "was replaced" in str(error)

        wait_until(refused_at_once)


def test_a_change_that_the_file_missed_is_there_at_the_next_start(
    folder: Callable[[str], Path], make_plan: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a kill between the database's commit and the file's."""
    first = folder("a")
    with ServerStore(first, IDENTITY) as store:
        close(store, make_plan(round=1))
        mirror = store._connection.mirror
        assert mirror is not None
        push = mirror.push

        def push_and_die(file: sqlite3.Connection) -> None:
            push(file)
            raise KeyboardInterrupt

        monkeypatch.setattr(mirror, "push", push_and_die)
        with pytest.raises(KeyboardInterrupt):
            close(store, make_plan(round=2))
        assert store.journal.last_round == 1
    with ServerStore(first, IDENTITY) as store:
        assert store.journal.last_round == 2
        close(store, make_plan(round=3))


def test_commands_work_in_any_folder_while_no_server_runs(
    folder: Callable[[str], Path], make_plan: Callable[..., Plan]
) -> None:
    first, second = folder("a"), folder("b")
    for place in (first, second):
        with ServerStore(place, IDENTITY) as store:
            store.save_members([Member("phone", bytes(32), can=frozenset({KEYS}))])
    block(first, ["phone"])
    assert read_status(second)["blocked"] == ["phone"]
    with ServerStore(second, IDENTITY) as store:
        close(store, make_plan(round=1))
        assert "phone" in store.load_blocked()
        with raises("state.lease-lost", "run commands there"):
            block(first, ["phone"])
        block(second, ["phone"])  # beside its server
    change_key(second)
    change_key(first)  # which has the new key from the database
    with ServerStore(first, IDENTITY) as store:
        close(store, make_plan(round=2))
        assert store.keys.at(1) != store.keys.at(2) == store.signer.public
    assert read_status(second)["round"] == 2
    assert (first / KEY).read_bytes() == (second / KEY).read_bytes()


def test_a_folder_with_a_state_moves_it_to_a_new_database(
    place: Place, make_plan: Callable[..., Plan], tmp_path: Path, folder: Callable[[str], Path]
) -> None:
    first = tmp_path / "own"
    with ServerStore(first, IDENTITY) as store:
        close(store, make_plan(round=1))
    with ServerStore(first, IDENTITY, held=Held(first, first / DATABASE, place=place)) as store:
        close(store, make_plan(round=2))
    with ServerStore(second := folder("second"), IDENTITY) as store:
        assert store.journal.last_round == 2
    assert version(first) == SHARED_VERSION, "older programs do not touch it"
    back_up(first, tmp_path / "backup")
    assert version(tmp_path / "backup") == VERSION
    with ServerStore(tmp_path / "backup", IDENTITY) as store:
        assert store.journal.last_round == 2
        close(store, make_plan(round=3))
    (second / PLACE).unlink()
    with raises("state.place-missing", "--database"):
        ServerStore(second, IDENTITY)
    write_place(second, place)
    other = tmp_path / "other"
    with ServerStore(other, IDENTITY):
        pass
    with raises("state.two-states", "a new folder"):
        Held(other, other / DATABASE, place=place)
    assert len(read_journal(second)) == 2
    assert rows(second / DATABASE) == rows(first / DATABASE)


def test_a_database_that_is_older_than_a_folder_is_refused(
    folder: Callable[[str], Path], make_plan: Callable[..., Plan], database: Database, place: Place, tmp_path: Path
) -> None:
    with ServerStore(first := folder("a"), IDENTITY) as store:
        close(store, make_plan(round=1))
    ask(database, place, "UPDATE lease SET commits = commits - 1")
    with raises("state.database-older", "lacks the last 1 changes"):
        ServerStore(first, IDENTITY)
    assert back_up(first, tmp_path / "backup") == 1
    database.run("psql", "-qc", f'DROP SCHEMA "fedspzo_{place.job}" CASCADE')
    with ServerStore(first, IDENTITY) as store:
        close(store, make_plan(round=2))
    with ServerStore(folder("b"), IDENTITY) as store:
        assert store.journal.last_round == 2, "the folder has filled the database"


def test_a_place_that_cannot_be_used_is_not_kept(
    folder: Callable[[str], Path], make_plan: Callable[..., Plan], place: Place, tmp_path: Path
) -> None:
    away = Place("postgresql://127.0.0.1:1/jobs", place.job)
    own = tmp_path / "own"
    with ServerStore(own, IDENTITY) as store:
        close(store, make_plan(round=1))
    for first in (own, folder("shared")):
        before = read_place(first)
        with raises("state.database-refuses", "127.0.0.1:1/jobs"):
            Held(first, first / DATABASE, place=away)
        assert read_place(first) == before
        ServerStore(first, IDENTITY).close()
    with ServerStore(folder("other"), IDENTITY) as store:
        close(store, make_plan(round=1))
    with raises("state.two-states", "a new folder"):
        Held(own, own / DATABASE, place=place)
    with ServerStore(own, IDENTITY) as store:
        assert store.journal.last_round == 1


def test_a_key_that_the_database_does_not_know_is_not_overwritten(folder: Callable[[str], Path]) -> None:
    """The database was restored from before a change of the key."""
    ServerStore(folder("a"), IDENTITY).close()
    other = folder("b")
    (other / KEY).write_bytes(bytes(range(32)))
    with raises("state.unknown-key", "a newer copy"):
        ServerStore(other, IDENTITY)
    assert (other / KEY).read_bytes() == bytes(range(32))


def test_a_database_that_was_restored_is_in_doubt(
    folder: Callable[[str], Path], make_plan: Callable[..., Plan], database: Database, place: Place
) -> None:
    """A dump lacks what came after it, so its server waits until devices have said where they stand."""
    with ServerStore(folder("a"), IDENTITY) as store:
        store.settle()
        close(store, make_plan(round=1))
        assert not store.moved
    schema = f"fedspzo_{place.job}"
    dump = str(database.folder / "dump")
    database.run("pg_dump", "-n", schema, "-f", dump)
    database.run("psql", "-qc", f'DROP SCHEMA "{schema}" CASCADE')
    database.run("psql", "-qf", dump)
    with ServerStore(folder("b"), IDENTITY) as store:
        assert store.journal.last_round == 1
        assert store.moved
        store.settle()
        assert not store.moved


def test_a_database_that_cannot_be_used_is_named(
    make_plan: Callable[..., Plan], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And its password is not."""
    place = Place("postgresql://somebody:secret@127.0.0.1:1/jobs", "default")
    with pytest.raises(Exception, match=r"PostgreSQL at 127\.0\.0\.1:1/jobs cannot be used") as caught:
        Held(tmp_path, tmp_path / DATABASE, place=place)
    assert "secret" not in str(caught.value) + repr(place)
    write_place(tmp_path, place)
    assert oct((tmp_path / "database.json").stat().st_mode)[-3:] == "600"
    with raises("state.database-url", "postgresql://"):
        Place("nonsense", "default").connect()
    with raises("job.name", "letters, digits"):
        Place("postgresql://127.0.0.1:1/jobs", 'a" b').connect()
    (tmp_path / "database.json").write_text("{")
    with raises("state.place-unreadable", "--database"):
        ServerStore(tmp_path, IDENTITY)


values = {
    "INTEGER": st.integers(-(2**63), 2**63 - 1),
    "REAL": st.floats(allow_nan=False) | st.none(),
    "TEXT": st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])),
    "BLOB": st.binary(max_size=64),
}


@st.composite
def changes(draw: st.DrawFn) -> list[tuple[str, str, tuple[object, ...]]]:
    """Statements that put, replace and remove rows of some tables."""
    found: list[tuple[str, str, tuple[object, ...]]] = []
    for _ in range(draw(st.integers(1, 12))):
        name = draw(st.sampled_from(["devices", "results", "journal", "counts", "evaluations"]))
        kinds = columns()[name]
        if draw(st.booleans()):
            row = [draw(values[kind]) for kind in kinds.values()]
            row[0] = draw(st.integers(1, 4)) if kinds[next(iter(kinds))] == "INTEGER" else draw(st.sampled_from("abc"))
            marks = ", ".join("?" * len(row))
            found.append((name, f"INSERT OR REPLACE INTO {name} VALUES ({marks})", tuple(row)))
        else:
            found.append(
                (name, f"DELETE FROM {name} WHERE {next(iter(kinds))} <= ?", (draw(st.sampled_from([1, 2, "b"])),))
            )
    return found


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(changes(), min_size=1, max_size=4))
def test_any_changes_are_the_same_everywhere(
    database: Database,
    tmp_path_factory: pytest.TempPathFactory,
    commits: list[list[tuple[str, str, tuple[object, ...]]]],
) -> None:
    """One folder follows each commit, another takes them all at once."""
    place, base = Place(database.url, f"t{uuid4().hex}"), tmp_path_factory.mktemp("shared")
    files = [base / name / DATABASE for name in ("writer", "follower", "late")]
    for file in files:
        write_place(file.parent, place)
    held = Held(files[0].parent, files[0])
    assert held.database is not None
    with closing(held), closing(open_file(files[0])) as writer, closing(open_file(files[1])) as follower:
        for statements in commits:
            with writing(writer, files[0]) as execute:
                for _, statement, row in statements:
                    execute(statement, row)
            catch_up(held.database, follower, files[1])
            assert rows(files[1]) == rows(files[0])
        with closing(open_file(files[2])) as late:
            catch_up(held.database, late, files[2])
        assert rows(files[2]) == rows(files[0])
