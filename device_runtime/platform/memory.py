"""Memory of this process."""

from __future__ import annotations

import resource
from contextlib import suppress
from pathlib import Path

_GROUPS = Path("/sys/fs/cgroup")


def available_bytes() -> int | None:
    """Memory that programs can have without others being swapped out; None where the system does not say.

    What this process's group (cgroup v2) may take counts as well: a container's limit, or a service's.
    """
    try:
        free = int(Path("/proc/meminfo").read_text(encoding="utf-8").split("MemAvailable:")[1].split()[0]) * 1024
    except (OSError, IndexError):
        return None
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return free
    limits = [free_in_group(_GROUPS, line[3:]) for line in lines if line.startswith("0::")]
    return min([free, *(limit for limit in limits if limit is not None)])


def free_in_group(mount: Path, group: str) -> int | None:
    """Bytes that a group of processes (cgroup v2) may still take; None where it has no limit.

    Args:
        mount: where the groups are mounted.
        group: its name, as ``/proc/self/cgroup`` says it. Limits of the groups that it is in hold too.
    """
    own = mount / group.lstrip("/")
    found = [_free(folder) for folder in (own, *own.parents) if folder.is_relative_to(mount)]
    return min((free for free in found if free is not None), default=None)


def _free(folder: Path) -> int | None:
    try:
        limit, current = (int((folder / f"memory.{name}").read_text()) for name in ("max", "current"))
    except (OSError, ValueError):  # "max" stands for no limit
        return None
    read = 0  # of files that were read: the system lets go of it
    with suppress(OSError, ValueError, IndexError):
        read = int((folder / "memory.stat").read_text().split("inactive_file ")[1].split()[0])
    return max(0, limit - max(0, current - read))


def peak_rss_bytes() -> int:
    """Largest resident memory that this process has had.

    Linux's own count is asked for: ``getrusage`` also remembers what the parent held when it forked.
    """
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    except (OSError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
