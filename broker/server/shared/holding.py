"""Which of several servers has a job: the one that locks its folder, and has the lease where the state is shared."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import IO

from fedspzo.broker.server.schema import SHARED_VERSION, writing
from fedspzo.broker.server.shared.file import Place, catch_up, fill, open_file, read_place, write_place
from fedspzo.broker.server.shared.postgres import LEASE_S, Postgres
from fedspzo.broker.server.signing_key import share_key
from fedspzo.device_runtime.errors import StateError
from fedspzo.device_runtime.files import lock_folder

#: Seconds between two looks whether the job is free, and between two renewals of the lease.
LOOK_S, RENEW_S = 1.0, 2.0

#: Told who has the job, each time that one has looked; what it raises ends the waiting.
Wait = Callable[[str], None]


class Held:
    """A job that this process has, until :meth:`close`.

    Attributes:
        database: where its state is shared; None where the folder has it alone.
    """

    def __init__(self, folder: Path, file: Path, wait: Wait | None = None, place: Place | None = None) -> None:
        """Take the job, and bring the folder's file up to date.

        Args:
            place: where the state is shared from now on; by default as the folder says.
            wait: called once a second while another server has the job; without it, that is an error.

        Raises:
            StateError: another server has the job; the folder or the database cannot be used.
        """
        self.database: Postgres | None = None
        self._ended = threading.Event()
        self._lost = ""
        with ExitStack() as opened:
            opened.enter_context(_lock(folder, wait))
            if place := place or read_place(folder):
                self.database = opened.enter_context(closing(place.connect()))
                self.database.prepare()
                self._token = _take_lease(self.database, place, file, wait)
                opened.callback(self._release)
                renewing = threading.Thread(target=self._renew, args=(place,), name="lease", daemon=True)
                renewing.start()
                opened.callback(renewing.join)
                opened.callback(self._ended.set)
                self._begin(self.database, place, file)
            self._opened = opened.pop_all()

    def close(self) -> None:
        """Leave the job to others."""
        self._opened.close()

    def check(self) -> None:
        """Raise StateError where another server may have the job by now."""
        if self._lost:
            raise StateError(
                "state.lease-lost",
                f"another server may have the job by now, for this one {self._lost}; it ends, and may be started again"
                " with --standby",
            )

    def _begin(self, database: Postgres, place: Place, file: Path) -> None:
        """Bring file and database together; the token makes what this process writes count."""
        with closing(open_file(file, place)) as connection:
            catch_up(database, connection, file)
            write_place(file.parent, place)  # now that it can be used
            connection.execute(f"PRAGMA user_version = {SHARED_VERSION}")
            filling = database.commits == 0
            with writing(connection, file) as execute:
                execute("UPDATE shared SET token = ?", (self._token,))
            if filling:
                fill(connection, file)
            share_key(connection, file.parent)

    def _renew(self, place: Place) -> None:
        """Keep the lease, on a thread and a connection of its own."""
        renewed = time.monotonic()
        while not self._lost and not self._ended.wait(RENEW_S):
            with suppress(StateError), closing(place.connect()) as database:  # it may come back in time
                while not self._lost and not self._ended.is_set():
                    asked = time.monotonic()
                    if not database.renew_lease(self._token):
                        self._lost = "was replaced"
                    renewed = asked
                    self._ended.wait(RENEW_S)
            if not self._lost and time.monotonic() > renewed + LEASE_S:
                self._lost = f"has not reached the database for {LEASE_S:g} s"

    def _release(self) -> None:
        assert self.database is not None
        with suppress(StateError):
            self.database.end_lease(self._token)


def _lock(folder: Path, wait: Wait | None) -> IO[str]:
    while True:
        try:
            return lock_folder(folder)
        except StateError as error:
            if error.kind != "state.in-use":
                raise
        if wait is None:
            raise StateError(
                "state.in-use",
                f"{folder} is in use by another process; give each job its own folder, or start this server with"
                " --standby to have it wait",
            )
        wait(f"the server on {folder}")
        time.sleep(LOOK_S)


def _take_lease(database: Postgres, place: Place, file: Path, wait: Wait | None) -> int:
    """Wait for the lease, following the state meanwhile; returns its token."""
    with closing(open_file(file, place)) as connection:
        while (token := _try_lease(database, waits=wait is not None)) is None:
            if wait is None:
                raise StateError(
                    "state.runs-elsewhere",
                    f"the server on {database.host} has the job '{place.job}', or had it less than {LEASE_S:g} s ago;"
                    " start this one with --standby to have it wait",
                )
            try:
                catch_up(database, connection, file)
                wait(f"the server on {database.host}")
            except StateError as error:
                if error.kind != "state.database-refuses":
                    raise
                wait("a database that does not answer")
            time.sleep(LOOK_S)
    return token


def _try_lease(database: Postgres, waits: bool) -> int | None:
    """The lease's token, or None while another has it; also while the database is away, for one that waits."""
    try:
        return database.take_lease(socket.gethostname())
    except StateError:
        if not waits:
            raise
        with suppress(StateError):
            database.reconnect()
        return None
