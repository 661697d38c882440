"""The state folder of a server: what lies in it, and reading that whether or not the server runs."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from fedspzo.broker.rounds.aggregate import ClosedRound, Spending
from fedspzo.broker.server.schema import Execute, check_version, lacking_tables, writing
from fedspzo.broker.server.shared.file import open_file, update
from fedspzo.broker.server.signing_key import KEY, read_first_key, read_keys
from fedspzo.device_runtime.errors import StateError
from fedspzo.device_runtime.files import make_folder, write_atomically
from fedspzo.device_runtime.log import printable
from fedspzo.device_runtime.protocol.codec import decode
from fedspzo.device_runtime.protocol.entry import Entry
from fedspzo.device_runtime.protocol.plan import Plan
from fedspzo.device_runtime.protocol.signing import Signer, write_pin
from fedspzo.device_runtime.replica.chain import Check
from fedspzo.device_runtime.replica.journal import Journal, connect

DATABASE, SNAPSHOTS = "server.sqlite", "snapshots"
#: File with the last round that was closed here: a database that ends earlier is an old copy.
LAST_ROUND = "last-round"
#: File with the URL of the console, while a server runs that has one.
ADDRESS = "console-url"
#: Link to the job's bundle, so that the folder stands for a model.
BUNDLE = "bundle"


def pin_bundle(bundle: Path, folder: Path) -> None:
    """Say in a bundle that it belongs to the server with this state folder, as the server itself does when it starts.

    Raises:
        BundleError: it belongs to another.
        StateError: the folder cannot be used.
    """
    make_folder(folder, 0o700)
    if (folder / DATABASE).is_file():
        with open_database(folder) as connection:
            first = read_first_key(connection, folder)
    else:
        first = Signer(folder / KEY).public
    write_pin(bundle, first)


def link_bundle(state: Path, bundle: Path) -> None:
    """Make the link from a server's or simulation's state folder to its bundle."""
    link = state / BUNDLE
    if not link.exists() or not link.samefile(bundle):
        link.unlink(missing_ok=True)
        link.symlink_to(bundle.resolve())


@contextmanager
def told_address(folder: Path, url: str) -> Iterator[None]:
    """Say in a state folder where its server's console is, while the context lasts; nothing where it has none."""
    file = folder / ADDRESS
    file.unlink(missing_ok=True)  # of a server that was killed
    if url:
        write_atomically(file, url.encode())
    try:
        yield
    finally:
        file.unlink(missing_ok=True)


def newest_snapshot(folder: Path, up_to: int | None = None) -> Path | None:
    """The newest snapshot in a server's state folder, or the newest of rounds up to one."""
    found = list_snapshots(folder / SNAPSHOTS)
    return max((path for path in found if up_to is None or int(path.stem) <= up_to), default=None)


def snapshot_rounds(folder: Path) -> list[int]:
    """Rounds that a server's state folder has snapshots of, in order."""
    return [int(path.stem) for path in list_snapshots(folder / SNAPSHOTS)]


def list_snapshots(folder: Path) -> list[Path]:
    """Snapshots, the newest last."""
    return sorted(path for path in folder.glob("*.safetensors") if path.stem.isdecimal())


def unreadable(file: Path, error: Exception) -> StateError:
    """What to raise where a server's file cannot be read."""
    return StateError(
        "state.unreadable",
        f"{file} cannot be read ({error}); restore the folder from a backup, or check that a server of this version"
        " wrote it",
    )


@contextmanager
def open_journal(folder: Path) -> Iterator[Journal]:
    """The journal of a server, running or not, given its state folder. Raises StateError for any other folder."""
    with open_database(folder) as connection:
        yield Journal(connection, read_checker(connection, folder))


def read_checker(connection: sqlite3.Connection, folder: Path) -> Check | None:
    """Checks the entries of a server's file by its keys; None where there is no key, or no job yet."""
    job = connection.execute("SELECT CAST(bundle AS BLOB), name FROM job").fetchone()
    return read_keys(connection, folder, job[0], job[1]).check_entry if job and (folder / KEY).is_file() else None


def has_moved(connection: sqlite3.Connection, folder: Path) -> bool:
    """Whether a server's file is another than the one in which its journal was settled, or lacks rounds: a copy."""
    place = connection.execute("SELECT inode FROM place").fetchone()
    (last,) = connection.execute("SELECT COALESCE(MAX(round), 0) FROM journal").fetchone()
    file = folder / LAST_ROUND
    noted = file.read_text(encoding="ascii", errors="replace") if file.exists() else ""
    if noted.isdecimal() and int(noted) > last:
        return True
    return place is not None and last > 0 and place[0] != (folder / DATABASE).stat().st_ino


def read_journal(folder: Path) -> list[Entry]:
    """All entries of a server's journal. Raises StateError when the folder has no journal, or a damaged one."""
    with open_journal(folder) as journal:
        return list(journal.entries())


def read_open_plan(folder: Path) -> Plan | None:
    """The plan of the round that is open, or that was given up, given a server's state folder.

    Raises:
        StateError: any other folder.
    """
    with open_database(folder) as connection:
        row = connection.execute("SELECT CAST(plan AS BLOB) FROM open_round").fetchone()
    plan = decode(row[0]) if row else None
    return plan if isinstance(plan, Plan) else None


def read_history(folder: Path) -> list[ClosedRound]:
    """All closed rounds in order, given a server's state folder. Raises StateError for any other folder."""
    with open_database(folder) as connection:
        return history(connection)


@contextmanager
def reading(folder: Path) -> Iterator[sqlite3.Connection]:
    """:func:`open_to_read` for as long as the context lasts. Raises StateError also where the file cannot be read."""
    try:
        with closing(open_to_read(folder)) as connection:
            yield connection
    except sqlite3.Error as error:
        raise unreadable(folder / DATABASE, error) from None


def open_to_read(folder: Path) -> sqlite3.Connection:
    """A connection that only reads a server's file, with rows by name; tables of later versions are there, empty.

    Any thread may use it, one at a time.

    Raises:
        StateError: the folder is not a server's, or of another version.
        sqlite3.Error: the file cannot be read.
    """
    file = folder / DATABASE
    if not file.is_file():
        raise StateError(
            "state.not-a-servers",
            f"{folder} is not the state folder of a server; give the folder that fedspzo server had as --state",
        )
    update(file)
    uri = f"{file.resolve().as_uri()}?mode=ro"
    connection = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False)
    try:
        check_version(connection, file)
        connection.executescript(lacking_tables(connection))
    except UnicodeError:  # SQLite quotes a damaged table's name as it is
        connection.close()
        raise sqlite3.DatabaseError("its list of tables is damaged") from None
    except BaseException:
        connection.close()
        raise
    connection.row_factory = sqlite3.Row
    return connection


@contextmanager
def open_database(folder: Path, as_it_is: bool = False) -> Iterator[sqlite3.Connection]:
    """A connection to a server's file, which is brought up to date if its state is shared and it is not left as it is.

    Raises:
        StateError: the folder has none, it is of another version or damaged, or it cannot be brought up to date.
    """
    file = folder / DATABASE
    if not file.is_file():
        raise StateError("state.no-journal", f"{folder} has no journal; give the state folder of a server")
    if not as_it_is:
        update(file)
    with closing(connect(file)) as connection:
        try:
            check_version(connection, file)
            yield connection
        except (sqlite3.Error, UnicodeError) as error:
            raise unreadable(file, error) from None


def check_servers(folder: Path, as_it_is: bool = False) -> None:
    """Raise StateError as :func:`open_database` does, and for a file that has no tables of a server."""
    with open_database(folder, as_it_is) as connection:
        connection.execute("SELECT 1 FROM job")


@contextmanager
def changing(folder: Path) -> Iterator[Execute]:
    """A transaction in a server's file, with all of its tables, whether or not the server runs.

    Raises:
        StateError: the folder is not a server's, or cannot be written; or a name is not in UTF-8.
    """
    check_servers(folder)
    try:
        with closing(open_file(folder / DATABASE)) as connection, writing(connection, folder / DATABASE) as execute:
            yield execute
    except UnicodeEncodeError as error:
        raise StateError(
            "state.no-text", f"'{printable(error.object, 64)}' is not in UTF-8; give a name that is"
        ) from None


def history(connection: sqlite3.Connection) -> list[ClosedRound]:
    """All closed rounds in order."""
    rows = connection.execute("SELECT * FROM history ORDER BY round").fetchall()
    return [
        ClosedRound(
            number, loss, tuple(devices.split()), seconds, step, None if joules[0] is None else Spending(*joules)
        )
        for number, loss, devices, seconds, step, _, *joules in rows
    ]
