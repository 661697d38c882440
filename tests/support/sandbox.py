"""A service's sandbox without systemd as the first process: what a unit's lines say, done by bubblewrap and seccomp.

Done are the read-only system, the private /tmp, /dev and homes, no capabilities, another user, the filter of system
calls (as systemd-analyze spells it out), of address families, and memory that is never both written and executed.
Left out are limits of memory, time and tasks, which want cgroups.
"""

from __future__ import annotations

import ctypes
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

#: seccomp.h of libseccomp.
_ALLOW, _ERRNO_EPERM, _EQUAL = 0x7FFF0000, 0x00050001, 4
#: prctl(PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN), which lasts beyond an exec.
_FORBID_AND_RUN = """
import ctypes, os, sys
assert ctypes.CDLL(None).prctl(65, 1, 0, 0, 0) == 0
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


class _Comparison(ctypes.Structure):
    _fields_ = [("argument", ctypes.c_uint), ("how", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64)]


def missing() -> str:
    """Why there can be no sandbox here, in a sentence; empty if there can."""
    absent = [tool for tool in ("bwrap", "systemd-analyze") if not shutil.which(tool)]
    if absent:
        return f"a unit's sandbox needs {' and '.join(absent)}"
    tried = ("bwrap", "--ro-bind", "/", "/", "--unshare-user", sys.executable, "-c", _FORBID_AND_RUN, "-c", "")
    usable = subprocess.run(tried, capture_output=True).returncode == 0
    return "" if usable else "this system lets nobody make namespaces, or its kernel is older than 6.3"


def read_unit(unit: Path) -> dict[str, list[str]]:
    """A unit's settings, each with its values in order."""
    settings: dict[str, list[str]] = {}
    for line in unit.read_text(encoding="utf-8").splitlines():
        if "=" in line and not line.startswith("#"):
            name, _, value = line.partition("=")
            settings.setdefault(name, []).append(value)
    return settings


def expand(group: str) -> Iterator[str]:
    """The system calls of a group such as @system-service."""
    listed = subprocess.run(["systemd-analyze", "syscall-filter", group], check=True, capture_output=True, text=True)
    for line in listed.stdout.splitlines()[1:]:
        name = line.strip()
        if name.startswith("@"):
            yield from expand(name)
        elif name and not name.startswith("#"):
            yield name


def write_filter(unit: Mapping[str, Sequence[str]], file: Path) -> None:
    """The unit's filter of system calls and address families, as bubblewrap takes it."""
    calls: set[str] = set()
    for line in unit["SystemCallFilter"]:
        listed = {call for group in line.lstrip("~").split() for call in expand(group)}
        calls = calls - listed if line.startswith("~") else calls | listed
    families = [getattr(socket, name) for name in unit["RestrictAddressFamilies"][-1].split()]
    library = ctypes.CDLL("libseccomp.so.2")
    library.seccomp_init.restype = ctypes.c_void_p
    context = ctypes.c_void_p(library.seccomp_init(_ERRNO_EPERM))
    for call in sorted(calls - {"socket"}):
        number = library.seccomp_syscall_resolve_name(call.encode())
        if number >= 0:  # others are not this processor's
            assert library.seccomp_rule_add_array(context, ctypes.c_uint32(_ALLOW), number, 0, None) == 0, call
    number = library.seccomp_syscall_resolve_name(b"socket")
    for family in families:
        equal = _Comparison(0, _EQUAL, family, 0)
        assert library.seccomp_rule_add_array(context, ctypes.c_uint32(_ALLOW), number, 1, ctypes.byref(equal)) == 0
    with file.open("wb") as out:
        assert library.seccomp_export_bpf(context, out.fileno()) == 0


def write_sandbox(script: Path, unit: Mapping[str, Sequence[str]], state: Path, readable: Sequence[Path]) -> Path:
    """A program that runs this Python in the unit's sandbox.

    Args:
        state: the one folder that it may write to.
        readable: what it may read besides the system, this Python and the working folder.
    """
    write_filter(unit, script.with_suffix(".bpf"))
    shown = [Path.cwd(), Path(sys.prefix), Path(sys.base_prefix), *readable]
    options = [
        *("--ro-bind / /", "--dev /dev", "--proc /proc", "--tmpfs /tmp", "--tmpfs /root", "--tmpfs /home"),
        *(f"--ro-bind {path} {path}" for path in shown),
        f"--bind {state} {state}",
        "--unshare-user --uid 12345 --gid 12345 --unshare-ipc --cap-drop ALL --die-with-parent --seccomp 9",
        f"--setenv XDG_CACHE_HOME {state / 'cache'}",
    ]
    script.write_text(
        f"#!/bin/sh\nexec 9<{script.with_suffix('.bpf')}\n"
        f"exec bwrap {' '.join(options)} {sys.executable} -c '{_FORBID_AND_RUN}' \"$@\"\n"
    )
    script.chmod(0o755)
    return script
