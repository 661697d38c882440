"""The keys of devices that have changed them: a former key is of no use any more, but whoever let it in has let its
successor in.
"""

from __future__ import annotations

from collections.abc import Sequence

from fedspzo.broker.server.store import ServerStore


class DeviceKeys:
    """The former keys of a job's devices, which the server's file keeps."""

    def __init__(self, store: ServerStore) -> None:
        self._store = store
        self._devices = store.load_former_keys()
        self._former: dict[str, tuple[bytes, ...]] = {}
        for key, device in self._devices.items():
            self._former[device] = (*self.former(device), key)

    def former(self, device: str) -> tuple[bytes, ...]:
        """The keys that a device has replaced by others."""
        return self._former.get(device, ())

    def replaced(self, keys: Sequence[bytes]) -> bool:
        """Whether a device has replaced one of these keys by another."""
        return not self._devices.keys().isdisjoint(keys)

    def keep(self, device: str, former: Sequence[bytes]) -> None:
        """Take no device by these keys any more."""
        fresh = [key for key in former if key not in self._devices]
        if fresh:
            self._store.save_former_keys(device, fresh)
            self._devices.update(dict.fromkeys(fresh, device))
            self._former[device] = (*self.former(device), *fresh)
