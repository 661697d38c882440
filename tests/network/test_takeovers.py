"""A standby takes over a job whose server was killed, at a length for the slow tests; ``make chaos-ha`` does more."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from patience import PATIENCE_S, wait_until
from postgres import database, needs_postgres
from refusals import raises
from takeovers import TakeOvers

from fedspzo.broker.mqtt.mosquitto_program import installed
from fedspzo.broker.rounds.job import Job
from fedspzo.broker.server.progress import Waiting
from fedspzo.broker.server.server import Server
from fedspzo.device_runtime.errors import FedSPZOError
from fedspzo.device_runtime.files import lock_folder
from fedspzo.device_runtime.link.access import Access
from fedspzo.device_runtime.model.bundle import Bundle

__all__ = ["database"]


def test_a_standby_waits_for_the_folder_and_can_be_stopped(bundle: Bundle, tmp_path: Path) -> None:
    told: list[object] = []
    job, access = Job(rounds=1), Access("mqtt://127.0.0.1:1")
    standby = Server(bundle, job, access, tmp_path / "server", observe=told.append, standby=True)
    with lock_folder(tmp_path / "server"):
        with raises("state.in-use", "--standby"):
            Server(bundle, job, access, tmp_path / "server").start()
        ended: list[FedSPZOError] = []

        def start() -> None:
            try:
                standby.start()
            except FedSPZOError as error:
                ended.append(error)

        thread = threading.Thread(target=start)
        thread.start()
        wait_until(lambda: told)
        standby.stop()
        thread.join(PATIENCE_S)
    assert [error.kind for error in ended] == ["server.stopped"]
    assert set(told) == {Waiting(f"the server on {tmp_path / 'server'}")}


@pytest.mark.slow
@pytest.mark.skipif(not installed(), reason="mosquitto is not installed")
@pytest.mark.parametrize("store", ["sqlite", pytest.param("postgres", marks=needs_postgres)])
def test_nothing_is_lost_when_a_standby_takes_over(
    bundle_folder: Path,
    tmp_path: Path,
    write_examples: Callable[[Path, int], Path],
    store: str,
    request: pytest.FixtureRequest,
) -> None:
    url = request.getfixturevalue("database").url if store == "postgres" else ""
    run = TakeOvers(bundle_folder, tmp_path, write_examples, kills=3, database=url)
    run.run()
    print(run.check())
