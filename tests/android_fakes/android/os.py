"""What the phone is, and its battery and heat."""

from __future__ import annotations


class BatteryManager:
    EXTRA_LEVEL = "level"
    EXTRA_SCALE = "scale"
    EXTRA_PLUGGED = "plugged"
    EXTRA_TEMPERATURE = "temperature"


class Build:
    class VERSION:
        SDK_INT = 33


class PowerManager:
    THERMAL_STATUS_NONE = 0

    def __init__(self, state: dict[str, int]) -> None:
        self._state = state

    def getCurrentThermalStatus(self) -> int:
        return self._state["thermal"]
