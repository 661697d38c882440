"""A machine that a real systemd has booted, in a container of systemd-nspawn.

It has this machine's /usr, network and clock, and FedSPZO where the pages install it. What it writes is in memory, and
gone at its end.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from patience import PATIENCE_S, wait_until

from fedspzo.device_runtime.files import locked_file

_REPOSITORY = Path(__file__).resolve().parents[2]
#: /usr alone, the rest in memory; no daemon has to know of it. Its clock may be read, as on any machine, but not set.
#: It halts where this process is killed.
_CONTAINER = (
    *("setpriv", "--pdeathsig=TERM"),
    *("systemd-nspawn", "--quiet", "--directory=/", "--volatile=yes", "--register=no", "--keep-unit"),
    "--system-call-filter=adjtimex clock_adjtime",
)
#: Home of who sets the machine up.
_HOME = "/home/pi"
#: Root may do all without it; with -u it makes a command another user's.
_SUDO = """\
sudo() {
    [ "$1" != -u ] || { as=$2; shift 2; set -- setpriv --reuid="$as" --regid="$as" --clear-groups "$@"; }
    "$@"
}
"""
_PROGRAM = """#!/bin/sh
export LD_LIBRARY_PATH=/opt/python/lib PYTHONPATH=/opt/source:/opt/packages
exec /opt/python/bin/python3 -m fedspzo "$@"
"""


def missing() -> str:
    """Why no machine can be booted here, in a sentence; empty if one can."""
    if absent := [tool for tool in ("systemd-nspawn", "nsenter", "setpriv") if not shutil.which(tool)]:
        return f"a booted systemd needs {' and '.join(absent)}"
    if os.geteuid():
        return "only root can boot a systemd in a container"
    tried = subprocess.run([*_CONTAINER, "--pipe", "true"], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    return f"this system starts no containers: {tried.stderr.strip()}" if tried.returncode else ""


def read_commands(page: str) -> dict[str, str]:
    """Commands of a page in docs, by the name of their block."""
    text = (_REPOSITORY / "docs" / page).read_text(encoding="utf-8")
    blocks = re.findall(r"```sh (\w+)\n(.*?)\n *```", text, re.DOTALL)
    return {name: textwrap.dedent(commands) for name, commands in blocks}


class Booted:
    """The machine while it runs."""

    def __init__(self, first: int) -> None:
        """``first``: number of its first process, on this machine."""
        self._enter = ["nsenter", "--all", f"--target={first}", f"--wdns={_HOME}"]

    def try_to(self, script: str) -> subprocess.CompletedProcess[str]:
        """What root's shell does there, in the home of who sets the machine up."""
        shell = ("env", "-i", f"PATH={os.defpath}:/usr/sbin", "sh", "-ec", _SUDO + script)
        return subprocess.run(
            [*self._enter, *shell],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, script: str) -> str:
        """As :meth:`try_to`, where nothing may fail; what was said."""
        done = self.try_to(script)
        assert done.returncode == 0, f"{script}: {done.stdout}\n{self.try_to('journalctl').stdout}"
        return done.stdout.strip()

    def wait_until(self, condition: str) -> None:
        """Wait until a command of the shell succeeds there, which is tried too seldom to keep a processor busy."""
        self.run(f"timeout {PATIENCE_S:g} sh -c {shlex.quote(f'until {condition}; do sleep 0.3; done')}")

    def show(self, unit: str, *properties: str) -> dict[str, str]:
        """Values of a unit's properties."""
        shown = self.run(f"systemctl show --property={','.join(properties)} {unit}")
        return dict(line.split("=", 1) for line in shown.splitlines())


@contextmanager
def booted(home: Path) -> Iterator[Booted]:
    """A machine, for as long as the context lasts.

    Args:
        home: what is in the folder in which all commands run there; the folder ``opt`` beside it is written.
    """
    program = home.parent / "opt" / "bin" / "fedspzo"
    program.parent.mkdir(parents=True)
    program.write_text(_PROGRAM)
    program.chmod(0o755)
    seen = {
        program.parents[1]: "/opt/fedspzo",
        _REPOSITORY: "/opt/source",
        sysconfig.get_path("platlib"): "/opt/packages",
        sys.base_prefix: "/opt/python",
    }
    binds = [*(f"--bind-ro={inside}:{outside}" for inside, outside in seen.items()), f"--bind={home}:{_HOME}"]
    # Its control groups have the same names each time, so that a second one would be in the first one's way.
    with locked_file(Path("/run/fedspzo-booted.lock")), (home.parent / "console").open("w+") as console:
        # Nothing is set up or enabled by itself, as it would be at a system's first boot.
        words = ("systemd.unit=basic.target", "systemd.condition-first-boot=no")
        command = [*_CONTAINER, "--console=read-only", *binds, "--boot", *words]
        container = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=console, stderr=subprocess.STDOUT)
        try:
            yield _wait_until_it_is_up(container, home.parent / "console")
        finally:
            if container.poll() is None:
                for process in psutil.Process(container.pid).children():
                    process.kill()  # its first process, and so all that runs there; the container ends with it
                container.wait(PATIENCE_S)


def _wait_until_it_is_up(container: subprocess.Popen[bytes], console: Path) -> Booted:
    def shown() -> str:
        return console.read_text(errors="replace")

    def first() -> int:
        assert container.poll() is None, shown()
        return next((child.pid for child in psutil.Process(container.pid).children() if child.name() == "systemd"), 0)

    wait_until(first, shown)
    machine = Booted(first())
    wait_until(lambda: machine.try_to("systemctl is-active basic.target").returncode == 0, shown)
    # Every system that was installed has them.
    machine.run("mkdir --parents /etc/systemd/system; echo 127.0.0.1 localhost >/etc/hosts")
    return machine
