"""A PostgreSQL of the tests' own, from Debian's package. PostgreSQL refuses to run as root, so it runs as its own user.

The fixtures are for tests to import: ``database``, and ``tmp_path`` where a test is of both stores.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4

import psycopg
import pytest
from patience import wait_until
from ports import free_port

from fedspzo.broker.server.shared.file import Place, write_place

#: Where Debian has the programs; the newest version is the last.
PROGRAMS = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
needs_postgres = pytest.mark.skipif(not PROGRAMS, reason="postgresql is not installed")


class Database:
    """A server that listens on this machine.

    Attributes:
        folder: its files.
        port: where it listens.
    """

    def __init__(self, folder: Path) -> None:
        """Make a new one, and start it."""
        self.folder, self.port = folder, free_port()
        self._user = {"user": "postgres", "group": "postgres"} if os.getuid() == 0 else {}
        if self._user:
            shutil.chown(folder, **self._user)
        self._run("initdb", "-D", str(folder / "data"), "-A", "trust", "-U", "postgres", "--no-sync")
        self.start()

    def start(self) -> None:
        """Start it, and wait until it answers."""
        more = ("-p", str(self.port), "-k", str(self.folder), "-c", "listen_addresses=127.0.0.1")
        command = [str(PROGRAMS[-1] / "postgres"), "-D", str(self.folder / "data"), *more]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, cwd=self.folder, extra_groups=[] if self._user else None, **self._user
            )
        wait_until(self._answers)

    def stop(self) -> None:
        """Stop it at once; it recovers at its next start."""
        self._process.send_signal(signal.SIGQUIT)
        self._process.wait()

    @property
    def url(self) -> str:
        """Of its database."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    def run(self, program: str, *arguments: str) -> str:
        """Run one of PostgreSQL's programs; returns what it prints."""
        return self._run(program, "-d", self.url, *arguments)

    def _answers(self) -> bool:
        assert self._process.poll() is None, (self.folder / "log").read_text()
        try:
            psycopg.connect(self.url).close()
        except psycopg.OperationalError:
            return False
        return True

    def _run(self, program: str, *arguments: str) -> str:
        return subprocess.run(
            [str(PROGRAMS[-1] / program), *arguments], check=True, stdout=subprocess.PIPE, text=True, cwd=self.folder,
            extra_groups=[] if self._user else None, **self._user,
        ).stdout  # fmt: skip


@contextmanager
def running(wanted: bool = True) -> Iterator[Database | None]:
    """A database server for as long as the context lasts, if one is wanted."""
    if not wanted:
        yield None
        return
    with TemporaryDirectory(prefix="postgres-", dir="/tmp") as folder:
        database = Database(Path(folder))
        try:
            yield database
        finally:
            database.stop()


@pytest.fixture(scope="module")
def database() -> Iterator[Database]:
    if not PROGRAMS:
        pytest.skip("postgresql is not installed")
    with running() as found:
        assert found is not None
        yield found


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=needs_postgres)])
def tmp_path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder for a state of its own, and one whose state is shared."""
    if request.param == "postgres":
        write_place(tmp_path, Place(request.getfixturevalue("database").url, f"t{uuid4().hex}"))
    return tmp_path
