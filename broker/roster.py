"""Who is there: the devices that have announced themselves, and whether they can take part."""

from __future__ import annotations

from dataclasses import dataclass

from device_runtime.wire import Presence


@dataclass
class _Device:
    """``session`` is 0 while it is away; ``synced`` once it said where it stands and its bundle was accepted."""

    session: int = 0
    synced: bool = False


class Roster:
    """Presence of devices, as their birth messages, wills and syncs tell it."""

    def __init__(self) -> None:
        self._devices: dict[str, _Device] = {}

    def announce(self, name: str, presence: Presence) -> None:
        """Take in a birth message or a will; the will of an earlier session changes nothing."""
        device = self._devices.setdefault(name, _Device())
        if presence.online:
            device.session = presence.session
        elif device.session == presence.session:
            device.session, device.synced = 0, False

    def accept(self, name: str) -> None:
        """Note that a device has synced."""
        self._devices.setdefault(name, _Device()).synced = True

    def online(self, name: str) -> bool:
        """Whether a device is connected, as far as is known."""
        return name in self._devices and bool(self._devices[name].session)

    def ready(self) -> list[str]:
        """Devices that can be asked: connected and synced."""
        return [name for name, device in self._devices.items() if device.session and device.synced]
