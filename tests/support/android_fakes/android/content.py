"""Context, over a file with the phone's state, so that a test can change it while the app runs."""

from __future__ import annotations

import json
from pathlib import Path

from android.net import ConnectivityManager
from android.os import BatteryManager, PowerManager


class Intent:
    ACTION_BATTERY_CHANGED = "android.intent.action.BATTERY_CHANGED"

    def __init__(self, extras: dict[str, int]) -> None:
        self._extras = extras

    def getIntExtra(self, name: str, default: int) -> int:
        return self._extras.get(name, default)


class IntentFilter:
    def __init__(self, action: str) -> None:
        self.action = action


class Context:
    POWER_SERVICE = "power"
    CONNECTIVITY_SERVICE = "connectivity"
    BATTERY_SERVICE = "batterymanager"

    def __init__(self, file: Path) -> None:
        self._file = file

    def _state(self) -> dict[str, int]:
        known = {
            "level": 80,
            "scale": 100,
            "plugged": 1,
            "temperature": 301,
            "metered": 0,
            "thermal": 0,
            "voltage": 3900,
            "status": 3,
            "watts": 0,
        }
        return {**known, **(json.loads(self._file.read_text()) if self._file.exists() else {})}

    def registerReceiver(self, receiver: None, filter: IntentFilter) -> Intent | None:
        assert receiver is None
        assert filter.action == Intent.ACTION_BATTERY_CHANGED
        state = self._state()
        return Intent(state) if state["level"] >= 0 else None

    def getSystemService(self, name: str) -> object:
        managers = {
            self.POWER_SERVICE: PowerManager,
            self.CONNECTIVITY_SERVICE: ConnectivityManager,
            self.BATTERY_SERVICE: BatteryManager,
        }
        return managers[name](self._state)
