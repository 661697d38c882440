"""Who is there: the devices that have announced themselves, and whether they can take part."""

from __future__ import annotations

from dataclasses import dataclass

from device_runtime.wire import Presence


@dataclass
class _Device:
    """``synced``: it said where it stands, and was accepted."""

    session: int = 0
    online: bool = False
    synced: bool = False


class Roster:
    """Presence of devices, as their birth messages, wills and syncs tell it."""

    def __init__(self) -> None:
        self._devices: dict[str, _Device] = {}

    def announce(self, name: str, presence: Presence) -> None:
        """Take in a birth message or a will; the will of an earlier session changes nothing."""
        device = self._devices.setdefault(name, _Device())
        if presence.online:
            device.session, device.online = presence.session, True
        elif device.session == presence.session:
            device.online = device.synced = False

    def accept(self, name: str) -> None:
        """Note that a device has synced, so it is there: a will that came late is undone."""
        device = self._devices.setdefault(name, _Device())
        device.online = device.synced = True

    def left(self, name: str) -> bool:
        """Whether a device was there and has gone; one that was never seen may yet come."""
        return name in self._devices and not self._devices[name].online

    def ready(self) -> list[str]:
        """Devices that can be asked: connected and synced."""
        return [name for name, device in self._devices.items() if device.online and device.synced]
