"""The network in use."""

from __future__ import annotations


class ConnectivityManager:
    def __init__(self, state: dict[str, int]) -> None:
        self._state = state

    def isActiveNetworkMetered(self) -> bool:
        return bool(self._state["metered"])
