"""Memory of this process."""

from __future__ import annotations

import resource
from pathlib import Path


def available_bytes() -> int | None:
    """Memory that programs can have without others being swapped out; None where the system does not say."""
    try:
        return int(Path("/proc/meminfo").read_text(encoding="utf-8").split("MemAvailable:")[1].split()[0]) * 1024
    except (OSError, IndexError):
        return None


def peak_rss_bytes() -> int:
    """Largest resident memory that this process has had.

    Linux's own count is asked for: ``getrusage`` also remembers what the parent held when it forked.
    """
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    except (OSError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
