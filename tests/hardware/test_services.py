"""docs/operations.md under a systemd that has booted: its units for broker and server, and its commands."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from booted import Booted, booted, missing, read_commands
from ports import free_port

from fedspzo.broker.mqtt.mosquitto_program import installed
from fedspzo.broker.server.state_folder import read_journal
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.protocol.signing import PIN
from fedspzo.device_runtime.replica.weights import Replica

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = read_commands("operations.md")
BROKER, SERVER = "fedspzo-broker", "fedspzo-server@default"
STATE = "/var/lib/fedspzo/server-default"
OPTIONS = "/etc/fedspzo/server-default.env"
UNITS = ("fedspzo-broker.service", "fedspzo-server@.service")

pytestmark = pytest.mark.slow


@pytest.fixture
def home(tmp_path: Path, bundle_folder: Path, write_examples: Callable[[Path, int], Path]) -> Path:
    """What the page has brought to the operator's machine."""
    if reason := missing():
        pytest.skip(reason)
    if not installed():
        pytest.skip("mosquitto is not installed")
    folder = tmp_path / "home"
    shutil.copytree(bundle_folder, folder / "bundle", ignore=shutil.ignore_patterns(PIN))
    for unit in UNITS:
        shutil.copy(ROOT / "deploy" / unit, folder)
    write_examples(folder / "held-out.jsonl", 10)
    return folder


@contextmanager
def device(name: str, home: Path, invitation: Path, data: Path) -> Iterator[subprocess.Popen[str]]:
    """A device on another machine, as far as the services can tell; its bundle is fetched from the server."""
    folder = home.parent / name
    fedspzo = (sys.executable, "-m", "fedspzo")
    subprocess.run([*fedspzo, "fetch", invitation, "--out", folder / "bundle"], check=True)
    options = ("--invitation", invitation, "--state", folder / "state", "--data", data, "--id", name)
    process = subprocess.Popen(
        [*map(str, (*fedspzo, "device", folder / "bundle", *options))], stderr=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_for_rounds(machine: Booted, more: int) -> None:
    """Wait until the server has closed some more rounds."""
    words = machine.show(SERVER, "StatusText")["StatusText"]
    last = int(words.split()[1]) if words else 0
    show = f"systemctl show --property=StatusText {SERVER} | sed -n 's/StatusText=round \\([0-9]*\\) of .*/\\1/p'"
    machine.wait_until(f'last=$({show}) && test "${{last:-0}}" -ge {last + more}')


def test_the_commands_of_the_page(home: Path, write_examples: Callable[[Path, int], Path]) -> None:
    """Two devices train, broker and server are killed and come back, and the job continues to its end."""
    ports = {"8883": free_port(), "8443": free_port()}

    def as_written(name: str) -> str:
        """The page's commands, on ports that are free here."""
        commands = COMMANDS[name].replace("0.0.0.0", "127.0.0.1")
        return "HOST=localhost\n" + re.sub("8883|8443", lambda port: str(ports[port[0]]), commands)

    with booted(home) as machine:
        # With more rounds, so that the job is not over before all has been tried.
        machine.run(as_written("services").replace("--rounds 40", "--rounds 100000"))
        machine.run(as_written("invite"))
        machine.run("cp /srv/fedspzo/access/hall .")
        data = [write_examples(home.parent / f"{name}.jsonl", 12) for name in "ab"]
        with device("a", home, home / "hall", data[0]) as a, device("b", home, home / "hall", data[1]) as b:
            wait_for_rounds(machine, 2)
            for unit in (BROKER, SERVER):
                machine.run(f"systemctl kill --signal=KILL {unit}")
                machine.wait_until(f"systemctl show {unit} | grep -x NRestarts=1 && systemctl is-active {unit}")
                wait_for_rounds(machine, 2)
            assert machine.show(SERVER, "NRestarts") == {"NRestarts": "1"}, "the broker's end is no reason for its own"

            machine.run(f"systemctl stop {SERVER}")
            assert machine.show(SERVER, "ActiveState", "Result") == {"ActiveState": "inactive", "Result": "success"}
            last = len(read_journal(copy(machine, home, "stopped"))) + 3
            machine.run(f"sed -i 's/--rounds 100000/--rounds {last}/' {OPTIONS}; systemctl start {SERVER}")
            machine.wait_until(f"systemctl show {SERVER} | grep -x 'StatusText=finished at round {last}'")
            a.wait()
            b.wait()
        log = machine.run(f"journalctl --unit={SERVER}")
        machine.run(f"systemctl stop {SERVER} {BROKER}")
        assert machine.show(BROKER, "ActiveState", "Result") == {"ActiveState": "inactive", "Result": "success"}
        entries = read_journal(copy(machine, home, "finished"))
    assert len(entries) == last
    replica = Replica(Bundle(home / "bundle"))
    for entry in entries:
        replica.apply(entry)
    assert f"the model's digest is {replica.digest().hex()}" in log
    assert set(re.findall(r"device '(\w+)': .*its model equals the server's", log)) == {"a", "b"}


def copy(machine: Booted, home: Path, name: str) -> Path:
    """The server's state folder, outside."""
    machine.run(f"cp -r {STATE} {name}")
    return home / name


def test_a_server_that_only_a_person_can_help_stays_stopped(home: Path) -> None:
    """Here its files are missing."""
    with booted(home) as machine:
        make_user, *_ = COMMANDS["services"].splitlines()
        machine.run(f"{make_user}\ncp *.service /etc/systemd/system/; systemctl daemon-reload")
        assert machine.try_to("systemctl start fedspzo-server@other").returncode != 0
        refused = {"ActiveState": "failed", "ExecMainStatus": "78", "NRestarts": "0"}
        assert machine.show("fedspzo-server@other", *refused) == refused
        assert "/srv/fedspzo/other/bundle" in machine.try_to("systemctl status fedspzo-server@other").stdout
