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

    def refusal(self, key: bytes, former: Sequence[bytes], known: bytes | None) -> str | None:
        """Why a device may not take part by a key, or None when its former keys are nothing against it.

        Args:
            key: that it has shown to be its own.
            former: the keys before it, which have signed so.
            known: the key that the server knows for the name, if it knows the name.
        """
        if known in (key, *former) or self._devices.keys().isdisjoint((key, *former)):
            return None
        return "its key was replaced by another one; bring back its newest device.key and former-keys"

    def keep(self, device: str, former: Sequence[bytes]) -> None:
        """Take no device by these keys any more."""
        fresh = [key for key in former if key not in self._devices]
        if fresh:
            self._store.save_former_keys(device, fresh)
            self._devices.update(dict.fromkeys(fresh, device))
            self._former[device] = (*self.former(device), *fresh)
