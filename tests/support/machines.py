"""Machines in network namespaces of their own, each with a cable to one switch. It takes no rights.

The switch's namespaces, of users and of the network, belong to a process that sleeps; the machines' are inside them. A
machine sees its own loopback and the cable, and no other network.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

_NEEDED = ("unshare", "nsenter", "ip")


class Network:
    """A switch and what is connected to it; a context manager.

    Attributes:
        addresses: of each machine.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._running: list[subprocess.Popen[str]] = []
        self.addresses = {name: f"10.77.0.{number}" for number, name in enumerate(names, 1)}
        self._holders = {"": _hold(["unshare", "--user", "--map-root-user", "--net"])}
        self._in("", "ip link add name switch type bridge")
        self._in("", "ip link set dev switch up")
        for name, address in self.addresses.items():
            self._holders[name] = _hold([*self._enter(""), "unshare", "--net"])
            peer = f"peer name eth0 netns {self._holders[name].pid}"
            self._in("", f"ip link add name to-{name} type veth {peer}")
            self._in("", f"ip link set dev to-{name} master switch up")
            self._in(name, "ip link set dev lo up")
            self._in(name, f"ip addr add {address}/24 dev eth0")
            self._in(name, "ip link set dev eth0 up")

    def start(
        self, name: str, command: Sequence[str], folder: Path, environment: Mapping[str, str]
    ) -> subprocess.Popen[str]:
        """Run a program on a machine; it and what it has left in its session end with the network."""
        whole = [*self._enter(name), *command]
        self._running.append(subprocess.Popen(whole, cwd=folder, env=environment, text=True, start_new_session=True))
        return self._running[-1]

    def cut(self, name: str) -> None:
        """Pull a machine's cable out."""
        self._in("", f"ip link set dev to-{name} down")

    def mend(self, name: str) -> None:
        """Plug it in again."""
        self._in("", f"ip link set dev to-{name} up")

    def close(self) -> None:
        """Kill all that runs."""
        for process in self._running:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        for holder in self._holders.values():
            holder.kill()
            holder.wait()

    def __enter__(self) -> Network:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _enter(self, name: str) -> list[str]:
        return ["nsenter", f"--target={self._holders[name].pid}", "--user", "--net", "--preserve-credentials"]

    def _in(self, name: str, command: str) -> None:
        subprocess.run([*self._enter(name), *command.split()], check=True, capture_output=True)


def _hold(prefix: Sequence[str]) -> subprocess.Popen[bytes]:
    """A process that keeps namespaces: it says that it has come there, and sleeps."""
    holder = subprocess.Popen([*prefix, "sh", "-c", "echo here; exec sleep infinity"], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    if not holder.stdout.readline():
        holder.wait()
        raise OSError("a network namespace cannot be made")
    return holder


def missing() -> str:
    """Why there can be no network of machines here, in a sentence; empty if there can."""
    absent = [tool for tool in _NEEDED if not shutil.which(tool)]
    if absent:
        return f"machines in network namespaces need {', '.join(absent)}"
    with suppress(OSError, subprocess.CalledProcessError):
        Network(["one"]).close()
        return ""
    return "this system lets nobody make network namespaces"
