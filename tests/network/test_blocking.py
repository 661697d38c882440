"""A device that is blocked takes no further part, by whatever login, name or key, and no round waits for it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import pytest
from federation import read_rounds
from patience import wait_until
from ports import free_port
from refusals import raises, refused

from fedspzo.broker.mqtt.mosquitto import ManagedBroker
from fedspzo.broker.mqtt.mosquitto_program import installed
from fedspzo.broker.server.blocking import block, unblock
from fedspzo.broker.server.devices import Member
from fedspzo.broker.server.forgetting import forget_devices
from fedspzo.broker.server.labels import put_on, take_off
from fedspzo.broker.server.state_folder import read_history
from fedspzo.broker.server.status import read_status
from fedspzo.broker.server.store import ServerStore
from fedspzo.cli import main
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.protocol.signing import PIN

SWARM = Path(__file__).resolve().parents[2] / "benchmarks" / "swarm.py"
DEVICES, REVOKED, DEADLINE_S = 120, 100, 60


def test_a_list_that_cannot_be_changed_stays_as_it_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with raises("state.no-journal", "nowhere"):
        block(tmp_path / "nowhere", ["a"])
    store = ServerStore(tmp_path, bytes(32))
    with raises("device.unknown", "'b' is not a device of this job"):
        block(tmp_path, ["a", "b"], known={"a"})
    assert store.load_blocked() == {}
    block(tmp_path, ["a", "b"], known={"a", "b"})
    assert "'c' is not blocked" in refused(capsys, "block", tmp_path, "a", "c", "--undo")
    assert store.load_blocked().keys() == {"a", "b"} == set(read_status(tmp_path)["blocked"])
    unblock(tmp_path, ["a"])
    assert main(["status", str(tmp_path)]) == 0
    assert "blocked: b\n" in capsys.readouterr().out
    assert store.load_blocked().keys() == {"b"}


def test_a_key_stays_blocked_though_its_name_was_forgotten(tmp_path: Path) -> None:
    with ServerStore(tmp_path, bytes(32)) as store:
        store.save_members([Member("a", b"k" * 32)])
    block(tmp_path, ["a"])
    forget_devices(tmp_path, ["a"])
    assert block(tmp_path, ["a"], known=["a"]) == 0
    with ServerStore(tmp_path, bytes(32)) as store:
        assert store.load_blocked() == {"a": b"k" * 32}


def test_labels_go_with_the_device_that_is_forgotten(tmp_path: Path) -> None:
    with ServerStore(tmp_path, bytes(32)) as store:
        store.save_members([Member("a", b"k" * 32), Member("b", b"l" * 32)])
    put_on(tmp_path, ["a", "b"], "lab", "me")
    forget_devices(tmp_path, ["a"])
    assert take_off(tmp_path, ["a", "b"], "lab", "me") == 1, "whoever has the name next has no label"


@pytest.mark.slow
@pytest.mark.skipif(not installed(), reason="mosquitto is not installed")
def test_a_hundred_at_once_leave_no_round_waiting(bundle_folder: Path, tmp_path: Path) -> None:
    """In the middle of rounds of half a second each: the server goes on with those that are left."""
    bundle = Path(shutil.copytree(bundle_folder, tmp_path / "bundle", ignore=shutil.ignore_patterns(PIN)))
    names = [f"device-{number:03d}" for number in range(DEVICES)]
    gone, state, folder = names[:REVOKED], tmp_path / "server", tmp_path / "broker"
    with ManagedBroker(folder, port=free_port()) as broker:
        broker.server_access()
        (tmp_path / "accesses").write_text(json.dumps([asdict(access) for access in broker.add_users(names)]))
        with (
            running("-m", "fedspzo", "server", bundle, "--access", folder / "server.json", "--state", state, "--json",
                    "--rounds", 100_000, "--devices", DEVICES, "--cohort", 40, "--quorum", 10, "--deadline", DEADLINE_S,
                    "--split", 3, "--fanouts", "1,4") as server,
            running(SWARM, "--accesses", tmp_path / "accesses", "--job", "default", "--step-seconds", 0.5,
                    "--bundle-identity", Bundle(bundle).identity.hex()) as swarm,
        ):  # fmt: skip
            print(file=swarm.stdin, flush=True)
            read_rounds(server, 3)
            assert main(["block", str(state), *gone, "--broker", str(folder)]) == 0
            blocked_at = read_status(state)["round"]
            read_rounds(server, 10)
            wait_until(lambda: all(row["heard"] > 1 for row in read_status(state)["devices"] if row["name"] in gone))
        rounds = read_history(state)
        assert max(closed.seconds for closed in rounds) < DEADLINE_S, "a round waited for who is blocked"
        assert {name for closed in rounds if closed.round > blocked_at + 1 for name in closed.devices} <= set(
            names[REVOKED:]
        )
        assert rounds[-1].round > blocked_at + 2
        assert broker.users().isdisjoint(gone)
        assert read_status(state)["blocked"] == gone


@contextmanager
def running(*command: object) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, *map(str, command)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        text=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.communicate()
