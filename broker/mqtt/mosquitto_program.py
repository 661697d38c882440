"""mosquitto's programs: where they are, hashing passwords with its tool, and starting its process."""

from __future__ import annotations

import ctypes
import os
import resource
import shutil
import signal
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from fedspzo.device_runtime.errors import BrokerError
from fedspzo.device_runtime.files import write_atomically

#: Connections are limited by open files alone; this many are asked for, or what the system grants at most.
OPEN_FILES = 65536
_PR_SET_PDEATHSIG = 1


def installed() -> bool:
    """Whether mosquitto is on this machine."""
    return _which("mosquitto") is not None


def find(program: str) -> str:
    """Path of one of mosquitto's programs. Raises BrokerError when it is not installed."""
    path = _which(program)
    if path is None:
        raise BrokerError(
            "broker.mosquitto-missing", f"{program} is not installed; install the system package mosquitto"
        )
    return path


def _which(program: str) -> str | None:
    """Daemons lie where not every user's PATH leads."""
    return shutil.which(program, path=os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin")))


def hash_passwords(passwords: Mapping[str, str]) -> dict[str, str]:
    """Name → line of a password file, made by mosquitto's own tool, which takes passwords in a file."""
    with TemporaryDirectory() as folder:
        path = Path(folder, "passwords")
        write_atomically(
            path, "".join(f"{name}:{password}\n" for name, password in passwords.items()).encode(), mode=0o600
        )
        answer = subprocess.run([find("mosquitto_passwd"), "-U", path], capture_output=True, text=True)
        if answer.returncode:
            raise BrokerError(
                "broker.mosquitto-passwd-failed",
                f"mosquitto_passwd failed: {answer.stderr.strip() or answer.stdout.strip()}; check the state folder of"
                " the broker",
            )
        return by_name(path.read_text())


def by_name(text: str) -> dict[str, str]:
    """Name → line of a password file."""
    return {line.partition(":")[0]: line for line in text.splitlines()}


def prepare_child() -> Callable[[], None]:
    """What the child does before it becomes mosquitto: end with its parent, and ask for many open files."""
    prctl = ctypes.CDLL(None).prctl
    parent = os.getpid()
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]

    def prepare() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it ended before the child could ask to be told
            os._exit(1)
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(limit, OPEN_FILES), limit))

    return prepare
