"""A server whose journal is damaged or too old, with real processes: found, named, and taken back from devices."""

from __future__ import annotations

import shutil
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from federation import Processes, assert_equal_replicas, broker, finish, processes, read_rounds
from patience import PATIENCE_S
from refusals import refused

from fedspzo.broker.mqtt.embedded import EmbeddedBroker
from fedspzo.broker.server.state_folder import DATABASE, read_journal
from fedspzo.broker.server.store import ServerStore
from fedspzo.device_runtime.model.bundle import Bundle

__all__ = ["broker", "processes"]

#: A job of two devices.
TWO = ("--devices", "2", "--evaluate-every", "100")


def flip_on_disk(file: Path, round: int, part: str, byte: int) -> None:
    """Flip a bit of a journal's row where it lies in the file."""
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        (blob,) = connection.execute(f"SELECT {part} FROM journal WHERE round = ?", (round,)).fetchone()
    data = bytearray(file.read_bytes())
    assert data.count(blob) == 1
    data[data.index(blob) + byte % len(blob)] ^= 4
    file.write_bytes(data)


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "fedspzo", *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE_S)


def test_a_flipped_bit_is_found_and_the_entry_is_taken_back_from_devices(
    processes: Processes, bundle: Bundle, tmp_path: Path
) -> None:
    state, options = tmp_path / "server", ("--rounds", "9", *TWO)
    for name in ("a", "b"):
        processes.device(name)
    server = processes.server("--rounds", "200", *TWO)
    read_rounds(server, 6)
    server.send_signal(signal.SIGKILL)
    server.wait()
    flip_on_disk(state / DATABASE, 3, "entry", -9)  # in a scalar: it is an entry like any other
    flip_on_disk(state / DATABASE, 4, "signature", 5)
    flip_on_disk(state / DATABASE, 5, "head", 0)
    broken = processes.server(*options)
    _, errors = broken.communicate(timeout=PATIENCE_S)
    assert broken.returncode == 78
    assert "round 3" in errors
    assert "fedspzo server repair" in errors
    assert "--afresh" not in errors
    assert '"kind": "journal.entry-damaged"' in errors
    nowhere = command("server repair", state)
    assert nowhere.returncode == 1
    assert "round 3" in nowhere.stderr
    assert "[journal.no-good-copy]" in nowhere.stderr
    repaired = command("server", "repair", state, "--broker", processes.url)
    assert repaired.returncode == 0, repaired.stderr
    *rounds, last = repaired.stdout.splitlines()
    assert [line.split(" was")[0] for line in rounds] == [
        "round 3: its entry",
        "round 4: its signature",
        "round 5: its hash",
    ]
    assert "taken from device" in rounds[0]
    assert "3 rounds were damaged" in last
    _, last, errors = finish(processes.server(*options))
    assert_equal_replicas(bundle, tmp_path, last, {"a", "b"})


def test_a_restored_server_signs_nothing_and_takes_the_rest_from_devices(
    processes: Processes, bundle: Bundle, tmp_path: Path
) -> None:
    state, backup = tmp_path / "server", tmp_path / "backup"
    devices = {name: processes.device(name) for name in ("a", "b")}
    server = processes.server("--rounds", "200", *TWO)
    read_rounds(server, 3)
    saved = command("server", "backup", state, backup)
    assert saved.returncode == 0, saved.stderr
    read_rounds(server, 6)
    server.send_signal(signal.SIGKILL)
    server.wait()
    before = read_journal(state)
    shutil.rmtree(state)
    backup.rename(state)
    kept = len(read_journal(state))
    restored = processes.server("--rounds", "200", *TWO)
    out, errors = restored.communicate(timeout=PATIENCE_S)
    assert restored.returncode == 78
    assert "results" not in out
    assert "no round is opened before 2 of 2 devices" in errors
    assert '"kind": "server.behind"' in errors
    assert f"has round {kept + 1}" in errors
    assert len(read_journal(state)) == kept
    adopted = command("server", "adopt", state, "--broker", processes.url)
    assert adopted.returncode == 0, adopted.stderr
    taken = read_journal(state)
    assert taken == before[: len(taken)]
    assert len(taken) >= len(before) - 1  # the last entry may have been written and not yet sent when the server died
    assert f"rounds {kept + 1} to {len(taken)} are from device" in adopted.stdout
    _, last, _ = finish(processes.server("--rounds", str(len(before) + 2), *TWO))
    assert_equal_replicas(bundle, tmp_path, last, {"a", "b"})
    said = "".join(device.communicate(timeout=PATIENCE_S)[1] for device in devices.values())
    # The server stops at the first device that proves it, and may not have asked the other one.
    assert f"the server lacks or doubts what it signed after round {kept}" in said


def test_where_nobody_is_asked_or_answers_nothing_is_said_to_be_whole(
    broker: EmbeddedBroker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ServerStore(tmp_path / "server", bytes(32)).close()
    assert "[option.no-source]" in refused(capsys, "server adopt", tmp_path / "server")
    for command in ("server adopt", "server repair"):
        said = refused(capsys, command, tmp_path / "server", "--broker", broker.url, "--wait", "0.1")
        assert "no device was heard" in said
        assert "[server.no-device-heard]" in said


def test_a_second_server_of_a_job_ends_before_it_signs(processes: Processes, bundle: Bundle, tmp_path: Path) -> None:
    """Also where an operator trusts its journal; the first one's is as it was."""
    copy = tmp_path / "copy"
    for name in ("a", "b"):
        processes.device(name)
    server = processes.server("--rounds", "60", *TWO)
    read_rounds(server, 3)
    saved = command("server", "backup", tmp_path / "server", copy)
    assert saved.returncode == 0, saved.stderr
    kept = len(read_journal(copy))
    read_rounds(server, 3)
    second = processes.server("--rounds", "60", *TWO, "--state", str(copy), "--trust-journal")
    out, errors = second.communicate(timeout=PATIENCE_S)
    assert second.returncode == 78
    assert "results" not in out
    assert '"kind": "server.behind"' in errors
    assert "another server runs this job" in errors
    assert len(read_journal(copy)) == kept
    server.kill()  # this broker leaves it without subscriptions: both had one login
    server.wait()
    _, last, _ = finish(processes.server("--rounds", "60", *TWO))
    assert_equal_replicas(bundle, tmp_path, last, {"a", "b"})
