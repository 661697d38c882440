"""How a job's devices are spread: over versions, over the operator's groups, and by when they were last heard."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from fedspzo.broker.server.devices import Member, askable

#: Versions that are told apart: devices say theirs themselves. The rest counts as one.
MOST_VERSIONS = 20
#: What devices without a group, of a version that they do not say, and of one beyond those are counted as.
NO_GROUP, UNKNOWN, OTHERS = "none", "unknown", "others"


@dataclass(frozen=True)
class Group:
    """The devices of a group.

    Attributes:
        known, ready: devices, and those of them that can be asked.
        results: that counted.
        bytes_up, bytes_down: payload received from and sent to them.
    """

    known: int = 0
    ready: int = 0
    results: int = 0
    bytes_up: int = 0
    bytes_down: int = 0


@dataclass(frozen=True)
class Census:
    """The devices at one moment.

    Attributes:
        versions: version → devices that say so.
        groups: group → its devices; empty where the operator has made none.
        unheard: seconds since each device was last heard.
    """

    versions: Mapping[str, int] = field(default_factory=dict)
    groups: Mapping[str, Group] = field(default_factory=dict)
    unheard: tuple[float, ...] = ()


def count(members: Iterable[Member], now: float, group_of: Callable[[str], str] | None = None) -> Census:
    """Count devices.

    Args:
        now: by the monotonic clock.
        group_of: a device's name → its group, "" for none; None where there are no groups.
    """
    versions: dict[str, int] = {}
    groups: dict[str, Group] = {}
    unheard = []
    for member in members:
        unheard.append(max(now - member.seen, 0.0))
        version = member.version or UNKNOWN
        if version not in versions and len(versions) >= MOST_VERSIONS:
            version = OTHERS
        versions[version] = versions.get(version, 0) + 1
        if group_of is not None:
            name = group_of(member.name) or NO_GROUP
            groups[name] = _with(groups.get(name, Group()), member, now)
    return Census(versions, groups, tuple(unheard))


def _with(group: Group, member: Member, now: float) -> Group:
    return Group(
        group.known + 1,
        group.ready + askable(member, now),
        group.results + member.results,
        group.bytes_up + member.bytes_up,
        group.bytes_down + member.bytes_down,
    )
