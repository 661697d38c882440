"""docs/embedded-linux.md under a systemd that has booted: its unit, and its commands as they stand there."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from booted import Booted, booted, missing, read_commands
from federation import assert_equal_replicas, read_end, read_rounds
from ports import free_port

from fedspzo.broker.mqtt.mosquitto import ManagedBroker
from fedspzo.broker.mqtt.mosquitto_program import installed
from fedspzo.broker.server.state_folder import pin_bundle
from fedspzo.cli import main
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.protocol.signing import PIN
from fedspzo.device_runtime.replica.device_key import KEY

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "embedded-linux.md").read_text(encoding="utf-8")
COMMANDS = read_commands("embedded-linux.md")
DEVICE, ROUNDS = "fedspzo-device@pi-1", 12
STATE = "/var/lib/fedspzo/pi-1/state"
#: What systemctl calls a unit that it does not start again.
ENDED = {"ActiveState": "inactive", "SubState": "dead", "Result": "success", "ExecMainStatus": "0"}
REFUSED = {"ActiveState": "failed", "SubState": "failed", "Result": "exit-code", "ExecMainStatus": "78"}
#: What adjtimex(2) returns for a clock that no time server has set.
TIME_ERROR = 5

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def bootable() -> None:
    if reason := missing():
        pytest.skip(reason)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """What the page has brought to the board, but for login, bundle and examples."""
    folder = tmp_path / "pi"
    folder.mkdir()
    shutil.copy(ROOT / "deploy" / "fedspzo-device@.service", folder)
    return folder


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[ManagedBroker]:
    if not installed():
        pytest.skip("mosquitto is not installed")
    with ManagedBroker(tmp_path / "broker", ["127.0.0.1"], free_port()) as running:
        running.server_access()
        yield running


def enroll(broker: ManagedBroker, home: Path, job: str) -> None:
    assert main(["enroll", "pi-1", "--broker", str(broker.folder), "--job", job, "--out", str(home)]) == 0


def bring(bundle: Path, folder: Path, state: Path) -> Path:
    """A bundle of its own for a server with this state folder."""
    shutil.copytree(bundle, folder, ignore=shutil.ignore_patterns(PIN))
    pin_bundle(folder, state)
    return folder


@contextmanager
def server(
    broker: ManagedBroker, bundle: Path, state: Path, job: str, *options: object
) -> Iterator[subprocess.Popen[str]]:
    command = [
        *("server", bundle, "--access", broker.folder / "server.json", "--state", state, "--job", job),
        *("--json", "--devices", 1, "--cohort", 1, *options),
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "fedspzo", *map(str, command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def result(board: Booted) -> dict[str, str]:
    return board.show(DEVICE, *ENDED)


def is_clock_set() -> bool:
    adjust: int = ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(1024))
    return adjust != TIME_ERROR


def test_the_commands_of_the_page(
    home: Path,
    broker: ManagedBroker,
    bundle_folder: Path,
    tmp_path: Path,
    write_examples: Callable[[Path, int], Path],
) -> None:
    """A device is set up, killed, refused for a bundle that has changed, and gets it by the page's commands."""
    old = bring(bundle_folder, home / "bundle", tmp_path / "old-server")
    new = bring(bundle_folder, home / "bundle-2", tmp_path / "server")
    manifest = Bundle(new).manifest
    replace(manifest, task=replace(manifest.task, labels=manifest.task.labels[::-1])).write(new)
    write_examples(home / "examples.jsonl", 12)
    enroll(broker, home, "default")

    with booted(home) as board:
        with server(broker, old, tmp_path / "old-server", "default", "--rounds", 100_000) as running:
            board.run(COMMANDS["service"])
            read_rounds(running, 2)
            board.wait_until(f"systemctl status {DEVICE} | grep -E 'Status: \"round [0-9]+ of 100000: counted\"'")

            board.run(f"systemctl kill --signal=KILL {DEVICE}")
            board.wait_until(f"systemctl show {DEVICE} | grep -x NRestarts=1 && systemctl is-active {DEVICE}")

            board.run("mv /srv/fedspzo/bundle /srv/fedspzo/gone; cp -r bundle-2 /srv/fedspzo/bundle")
            board.wait_until(f"journalctl --unit={DEVICE} -p warning | grep 'has another bundle by now'")
            read_rounds(running, 2)

        assert board.try_to(f"systemctl restart {DEVICE}").returncode != 0
        assert result(board) == REFUSED
        assert "start the device once with --afresh" in board.try_to(f"systemctl status {DEVICE}").stdout
        key = board.run(f"sha256sum {STATE}/{KEY}")

        enroll(broker, home, "mine-2")
        with server(broker, new, tmp_path / "server", "mine-2", "--rounds", ROUNDS, "--serve-after", 600) as running:
            board.run(COMMANDS["bundle"])
            assert_equal_replicas(Bundle(new), tmp_path, read_end(running), {"pi-1"})
            assert board.run(f"sha256sum {STATE}/{KEY}") == key
            for start in ("", f"systemctl start {DEVICE}"):  # the second as after a power cut
                board.run(start)
                board.wait_until(f"systemctl show {DEVICE} | grep -x ActiveState=inactive")
                assert result(board) == ENDED
                assert board.show(DEVICE, "StatusText") == {"StatusText": f"finished at round {ROUNDS}"}
        assert f"12 examples, round {ROUNDS}" in board.run(f"journalctl --unit={DEVICE}")


def test_a_device_that_the_server_refuses_stays_stopped(
    home: Path,
    broker: ManagedBroker,
    bundle_folder: Path,
    tmp_path: Path,
    write_examples: Callable[[Path, int], Path],
) -> None:
    """Until a person has helped, and has it started again."""
    bundle = bring(bundle_folder, home / "bundle", tmp_path / "server")
    write_examples(home / "examples.jsonl", 12)
    enroll(broker, home, "default")
    admitted = tmp_path / "admitted"
    admitted.write_text(f"other {bytes(32).hex()}\n")
    options = (broker, bundle, tmp_path / "server", "default", "--rounds", ROUNDS, "--admit", admitted)
    with booted(home) as board:
        with server(*options):
            board.try_to(COMMANDS["service"])  # it may be refused before or after systemd calls it started
            board.wait_until(f"systemctl show {DEVICE} | grep -x ActiveState=failed")
            assert result(board) == REFUSED
            assert "it is not on the list of admitted devices" in board.try_to(f"systemctl status {DEVICE}").stdout
        (row,) = re.findall(r"\| its key, for `--admit` \|.*", PAGE)
        show, give_back = re.findall("`(sudo .*?)`", row)
        admitted.write_text(board.run(show))
        board.run(give_back)
        with server(*options) as running:
            board.run(f"systemctl start {DEVICE}")
            assert read_end(running)["devices"].keys() == {"pi-1"}


@pytest.mark.skipif(is_clock_set(), reason="this machine's clock is set by a time server, as the container's would be")
def test_a_device_waits_for_the_time(home: Path) -> None:
    """As the page has it; this device has nothing else, and ends when it starts."""
    (home / "here.conf").write_text("[Unit]\nConditionVirtualization=\nConditionCapability=\n")
    (home / "pi-1.json").write_text("{}")
    (home / "examples.jsonl").touch()
    (home / "bundle").mkdir()
    with booted(home) as board:
        # Otherwise it leaves the time to the machine that the container is on.
        board.run("install -D -m 644 here.conf /etc/systemd/system/systemd-time-wait-sync.service.d/here.conf")
        # timesyncd makes the folder when it starts; who waits misses a file that comes at once with its folder.
        board.run("mkdir -p /run/systemd/timesync")
        board.run(f"systemctl daemon-reload; {COMMANDS['clock']} --now --no-block")
        board.run(COMMANDS["service"].replace("--now", "--now --no-block"))
        board.wait_until("systemctl list-jobs | grep 'systemd-time-wait-sync.service *start *running'")
        assert re.search(f"{DEVICE}.service *start *waiting", board.run("systemctl list-jobs"))
        board.run("touch /run/systemd/timesync/synchronized")  # as timesyncd does
        board.wait_until(f"systemctl show {DEVICE} | grep -x ActiveState=failed")
        assert result(board) == REFUSED
