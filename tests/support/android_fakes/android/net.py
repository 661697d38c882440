"""The network in use."""

from __future__ import annotations

from collections.abc import Callable


class ConnectivityManager:
    def __init__(self, state: Callable[[], dict[str, int]]) -> None:
        self._state = state

    def isActiveNetworkMetered(self) -> bool:
        return bool(self._state()["metered"])
