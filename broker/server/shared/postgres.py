"""A job's state in PostgreSQL, where servers on several machines reach it; one of them at a time has the lease.

All code reads and writes the SQLite file of a state folder, which is a copy. A change is in the database before it is
in the file, and has the number that follows the last one's. A file with an older number is brought up to date before it
is used, and a server that another one has replaced can change nothing any more: the lease's token is the other's.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any

from fedspzo.broker.server.shared.changes import changed_rows, columns, forget_changes
from fedspzo.device_runtime.errors import StateError
from fedspzo.device_runtime.protocol.topics import Topics

#: Seconds that a lease lasts which nobody renews: this long nobody has the job after a server has died.
LEASE_S = 10.0
#: Seconds that the database may take to answer.
ANSWER_S = 10
#: Rows that are read at once.
PAGE = 500
#: Letters of a job's name that fit into PostgreSQL's names, of 63 bytes, behind ``fedspzo_``.
_LONGEST = 55
#: SQLite's types, as PostgreSQL calls them.
_TYPES = {"INTEGER": "BIGINT", "REAL": "DOUBLE PRECISION", "TEXT": "TEXT", "BLOB": "BYTEA"}
#: What a copy is compared by that was made of the database, or of its files.
_PLACE = (
    "SELECT concat_ws('/', (SELECT system_identifier FROM pg_control_system()),"
    " (SELECT timeline_id FROM pg_control_checkpoint()),"
    " (SELECT oid FROM pg_namespace WHERE nspname = current_schema()))"
)


class Postgres:
    """A connection to the database of one job. The tables are there after :meth:`prepare`.

    All methods raise StateError where the database does not answer, or refuses.
    """

    def __init__(self, url: str, job: str) -> None:
        """Connect.

        Args:
            url: ``postgresql://user@host/database``, or what else libpq takes.
            job: its name; its tables are in the schema ``fedspzo_NAME``.

        Raises:
            BrokerError: it cannot be a job's name.
        """
        try:
            import psycopg
        except ImportError:
            raise StateError(
                "state.no-postgres", "a state in PostgreSQL needs psycopg; install fedspzo[postgres]"
            ) from None
        Topics(job)  # or it would be no name of a schema either
        self._error, self._job, self._url = psycopg.Error, job, url
        self._schema = f"fedspzo_{job}" if len(job) <= _LONGEST else f"fedspzo_{job[:38]}_{_hash(job)}"
        try:
            told = psycopg.conninfo.conninfo_to_dict(url)
        except psycopg.Error:
            told = {}
        if not told:
            raise StateError(
                "state.database-url",
                "--database is not the URL of a PostgreSQL database; write postgresql://USER@HOST/DATABASE",
            )
        self._name = f"{told.get('host', 'this machine')}:{told.get('port', 5432)}/{told.get('dbname', '')}"
        self._connect()

    def reconnect(self) -> None:
        """Connect again."""
        self.close()
        self._connect()

    def _connect(self) -> None:
        import psycopg

        with self._asking():
            self._connection = psycopg.connect(
                self._url, autocommit=True, connect_timeout=ANSWER_S, keepalives_idle=5, keepalives_interval=2,
                keepalives_count=3, tcp_user_timeout=1000 * ANSWER_S,
            )  # fmt: skip
            self._execute(f"SET statement_timeout = '{6 * ANSWER_S}s'")
            self._execute(f'SET search_path TO "{self._schema}"')

    def close(self) -> None:
        """End the connection."""
        self._connection.close()

    def prepare(self) -> None:
        """Make what is missing: the schema, the lease, and the tables and columns of a server's file."""
        with self._asking():
            found = self._execute(
                "SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = %s",
                (self._schema,),
            ).fetchall()
            if {(name, column) for name, wanted in columns().items() for column in wanted} <= set(found):
                return  # tables that are changed are locked, also where nothing changes
            with self._connection.transaction():
                self._make()

    def _make(self) -> None:
        self._execute("SELECT pg_advisory_xact_lock(hashtext('fedspzo'))")
        self._execute(f'CREATE SCHEMA IF NOT EXISTS "{self._schema}"')
        self._execute(
            "CREATE TABLE IF NOT EXISTS lease (one BIGINT PRIMARY KEY CHECK (one = 1), token BIGINT NOT NULL,"
            " host TEXT NOT NULL, expires TIMESTAMPTZ NOT NULL, commits BIGINT NOT NULL, place TEXT)"
        )
        self._execute("INSERT INTO lease VALUES (1, 0, '', '-infinity', 0) ON CONFLICT DO NOTHING")
        self._execute("SELECT 1 FROM lease FOR UPDATE")  # as a change begins, or the two could wait for each other
        self._execute(
            "CREATE TABLE IF NOT EXISTS removed (name TEXT, at_row BIGINT, at_commit BIGINT NOT NULL,"
            " PRIMARY KEY (name, at_row))"
        )
        self._execute("CREATE TABLE IF NOT EXISTS snapshots (round BIGINT PRIMARY KEY, content BYTEA NOT NULL)")
        for name, wanted in columns().items():
            self._execute(f'CREATE TABLE IF NOT EXISTS "{name}" (at_row BIGINT PRIMARY KEY, at_commit BIGINT NOT NULL)')
            for column, kind in wanted.items():
                self._execute(f'ALTER TABLE "{name}" ADD COLUMN IF NOT EXISTS "{column}" {_TYPES[kind]}')

    def take_lease(self, host: str) -> int | None:
        """Become the one that has the job; returns the lease's token, or None while another has it."""
        return self._one(
            "UPDATE lease SET token = token + 1, host = %s, expires = clock_timestamp() + make_interval(secs => %s)"
            " WHERE expires < clock_timestamp() RETURNING token",
            (host, LEASE_S),
        )

    def renew_lease(self, token: int) -> bool:
        """Keep the job; False where another has it by now."""
        return bool(
            self._one(
                "UPDATE lease SET expires = clock_timestamp() + make_interval(secs => %s) WHERE token = %s RETURNING 1",
                (LEASE_S, token),
            )
        )

    def end_lease(self, token: int) -> None:
        """Leave the job to others."""
        self._one("UPDATE lease SET expires = '-infinity' WHERE token = %s RETURNING 1", (token,))

    @property
    def host(self) -> str:
        """Where the server is that has the job, or had it last; "" for none so far."""
        return str(self._one("SELECT host FROM lease"))

    @property
    def commits(self) -> int:
        """Number of the last change; 0 before the first."""
        return int(self._one("SELECT commits FROM lease"))

    @property
    def moved(self) -> bool:
        """Whether the database is another than where its journal was settled: restored, copied, or a former standby."""
        return bool(self._one(f"SELECT place <> ({_PLACE}) FROM lease"))

    def settle(self) -> None:
        """Note that this database has the newest journal."""
        self._one(f"UPDATE lease SET place = ({_PLACE}) RETURNING 1")

    def push(self, file: sqlite3.Connection) -> None:
        """Write what a transaction in a file has changed, before the file has it for good.

        Raises:
            StateError: another server has the job.
        """
        rows = changed_rows(file)
        if not rows:
            return
        commits, token = file.execute("SELECT commits, token FROM shared").fetchone()
        with self._asking(), self._connection.transaction():
            number = self._one(
                "UPDATE lease SET commits = commits + 1 WHERE commits = %s AND (token = %s OR expires <"
                " clock_timestamp()) RETURNING commits",
                (commits, token),
            )
            if number is None:
                raise StateError(
                    "state.lease-lost",
                    f"the server on {self.host} has the job '{self._job}' now, so nothing is changed from here; run"
                    " commands there, and start a server beside it with --standby",
                )
            for name, group in groupby(rows, lambda row: row[0]):
                numbers = [row[1] for row in group]
                for start in range(0, len(numbers), PAGE):
                    self._push(file, name, numbers[start : start + PAGE], number)
        file.execute("UPDATE shared SET commits = ?", (number,))
        forget_changes(file)

    def _push(self, file: sqlite3.Connection, name: str, numbers: Sequence[int], commit: int) -> None:
        """Write some rows of a table as they are in the file: there, or not."""
        names = list(columns()[name])
        quoted = ", ".join(f'"{each}"' for each in names)
        found = file.execute(
            f"SELECT rowid, {quoted} FROM {name} WHERE rowid IN ({', '.join(map(str, numbers))})"
        ).fetchall()
        new = ", ".join(f'"{each}" = excluded."{each}"' for each in ("at_commit", *names))
        places = ", ".join(["%s"] * (len(names) + 2))
        with self._connection.cursor() as cursor:
            cursor.executemany(
                f'INSERT INTO "{name}" (at_row, at_commit, {quoted}) VALUES ({places})'
                f" ON CONFLICT (at_row) DO UPDATE SET {new}",
                [(row[0], commit, *row[1:]) for row in found],
            )
            gone = sorted(set(numbers) - {row[0] for row in found})
            cursor.execute(f'DELETE FROM "{name}" WHERE at_row = ANY(%s)', (gone,))
            cursor.execute("DELETE FROM removed WHERE name = %s AND at_row = ANY(%s)", (name, list(numbers)))
            cursor.execute("INSERT INTO removed SELECT %s, unnest(%s::bigint[]), %s", (name, gone, commit))

    def pull(self, file: sqlite3.Connection) -> None:
        """Bring a file up to date, inside a transaction there."""
        row = file.execute("SELECT commits FROM shared").fetchone()
        since = row[0] if row else 0
        with self._asking(), self._connection.transaction():
            self._execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            commits = self.commits
            for name, number in self._execute("SELECT name, at_row FROM removed WHERE at_commit > %s", (since,)):
                file.execute(f"DELETE FROM {name} WHERE rowid = ?", (number,))
            for name, found in columns().items():
                quoted = ", ".join(f'"{each}"' for each in found)
                with self._connection.cursor("rows") as cursor:  # the server's own: a journal may be large
                    cursor.execute(f'SELECT at_row, {quoted} FROM "{name}" WHERE at_commit > %s', (since,))
                    file.executemany(
                        f"INSERT OR REPLACE INTO {name} (rowid, {quoted}) VALUES ({', '.join('?' * (len(found) + 1))})",
                        cursor,
                    )
        file.execute("INSERT OR REPLACE INTO shared VALUES (1, ?, 0)", (commits,))
        forget_changes(file)

    def save_snapshot(self, round: int, content: bytes) -> None:
        """Keep a snapshot in place of earlier ones."""
        with self._asking(), self._connection.transaction():
            self._execute("DELETE FROM snapshots WHERE round < %s", (round,))
            self._execute("INSERT INTO snapshots VALUES (%s, %s) ON CONFLICT DO NOTHING", (round, content))

    def load_snapshot(self, after: int) -> tuple[int, bytes] | None:
        """The newest snapshot and its round; None where none is of a round after one."""
        with self._asking():
            return self._execute(
                "SELECT round, content FROM snapshots WHERE round > %s ORDER BY round DESC LIMIT 1", (after,)
            ).fetchone()

    def _one(self, statement: str, values: Sequence[object] = ()) -> Any:
        """The first column of the first row; None where there is no row."""
        with self._asking():
            row = self._execute(statement, values).fetchone()
        return row[0] if row else None

    def _execute(self, statement: str, values: Sequence[object] = ()) -> Any:
        return self._connection.execute(statement, values)

    @contextmanager
    def _asking(self) -> Iterator[None]:
        try:
            yield
        except self._error as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise StateError(
                "state.database-refuses",
                f"PostgreSQL at {self._name} cannot be used ({reason}); check that it runs, and the URL, the password"
                " and the rights of its user",
            ) from None


def _hash(job: str) -> str:
    return hashlib.blake2b(job.encode(), digest_size=8).hexdigest()
