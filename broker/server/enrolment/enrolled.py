"""The devices that invitations for many have let in, as a running server's thread reads them: their keys and groups.

They come while the server runs: a name that is not known yet is looked up in the server's file. Nobody is struck from
there while it runs; who must go is blocked.
"""

from __future__ import annotations

from fedspzo.broker.server.store import ServerStore


class Enrolled:
    """The keys and groups by name; false while there are none."""

    def __init__(self, store: ServerStore) -> None:
        self._store = store
        self._known = store.load_enrolled()

    def key(self, name: str) -> bytes | None:
        """The public key of a device's name; None where no invitation has let it in."""
        if name not in self._known:
            self._known.update(self._store.load_enrolled(name))
        found = self._known.get(name)
        return found[0] if found else None

    def group(self, name: str) -> str:
        """The group that a device was invited to, "" for none. Any thread may ask."""
        return self._known.get(name, (b"", ""))[1]

    def __bool__(self) -> bool:
        return bool(self._known)
