"""What the phone is, and its battery and heat."""

from __future__ import annotations

import time
from collections.abc import Callable


class BatteryManager:
    EXTRA_LEVEL = "level"
    EXTRA_SCALE = "scale"
    EXTRA_PLUGGED = "plugged"
    EXTRA_TEMPERATURE = "temperature"

    def __init__(self, state: Callable[[], dict[str, int]]) -> None:
        self._state = state

    def getIntProperty(self, number: int) -> int:
        return -(1 << 31)  # what is not supported

    def getLongProperty(self, number: int) -> int:
        """The energy counter, in nWh, which falls by the phone's watts, twice as fast while it works."""
        assert number == 5
        watts = self._state()["watts"]
        return int((1e9 - watts * (time.monotonic() + time.process_time())) / 3.6e-6) if watts else -(1 << 63)


class Build:
    class VERSION:
        SDK_INT = 33


class PowerManager:
    THERMAL_STATUS_NONE = 0

    def __init__(self, state: Callable[[], dict[str, int]]) -> None:
        self._state = state

    def getCurrentThermalStatus(self) -> int:
        return self._state()["thermal"]
