"""Peak memory of a command and of the processes that it starts."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_PROCESSES = Path("/proc")
_EVERY_SECONDS = 0.02


def run_watched(command: list[str]) -> tuple[int, str, str, int]:
    """Run a command to its end.

    Returns:
        Its status, output and errors, and the most bytes that it and the processes under it had at a time: the peak of
        each one's resident memory, what is swapped out of it, and the pages of its files in memory (memfd).
    """
    peak = 0
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, stdout=output, stderr=errors)
        while process.poll() is None:
            peak = max(peak, sum(map(process_bytes, _family(process.pid))))
            time.sleep(_EVERY_SECONDS)
        output.seek(0)
        errors.seek(0)
        return process.returncode, output.read(), errors.read(), peak


def process_bytes(process: int) -> int:
    """Peak of a process's resident memory, with what is swapped out and its files in memory; 0 where it is gone."""
    with suppress(OSError):
        status = dict(line.split(":", 1) for line in _read(process, "status").splitlines())
        found = sum(int(status[name].split()[0]) * 1024 for name in ("VmHWM", "VmSwap") if name in status)
        return found + _memory_files(process)
    return 0


def _memory_files(process: int) -> int:
    """Bytes of files in memory that a process has open, each once."""
    found = {}
    for descriptor in (_PROCESSES / str(process) / "fd").iterdir():
        with suppress(OSError):  # it was closed
            if os.readlink(descriptor).startswith("/memfd:"):
                status = descriptor.stat()
                found[status.st_ino] = status.st_blocks * 512
    return sum(found.values())


def _family(process: int) -> Iterator[int]:
    """A process, and those under it."""
    yield process
    with suppress(OSError):
        for task in (_PROCESSES / str(process) / "task").iterdir():
            for child in (task / "children").read_text().split():
                yield from _family(int(child))


def _read(process: int, name: str) -> str:
    return (_PROCESSES / str(process) / name).read_text(errors="replace")
