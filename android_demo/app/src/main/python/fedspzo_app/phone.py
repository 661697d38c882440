"""What the phone says of itself, through Android's classes: battery, charging, temperature, network, heat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

#: The first version of Android that tells how hot it is (PowerManager.getCurrentThermalStatus).
_TELLS_HEAT = 29
#: Names of PowerManager.THERMAL_STATUS_*, in their order.
HEAT = ("none", "light", "moderate", "severe", "critical", "emergency", "shutdown")


@dataclass(frozen=True)
class Reading:
    """The phone at one moment.

    Attributes:
        battery: charge between 0 and 1.
        charging: whether it is connected to power.
        temperature: of the battery, in °C; None where it is not told.
        metered: whether the network in use costs by volume, or there is none.
        heat: how far the system throttles, one of :data:`HEAT`.
    """

    battery: float
    charging: bool
    temperature: float | None
    metered: bool
    heat: str


class Phone:
    """Reads from an ``android.content.Context``."""

    def __init__(self, context: Any) -> None:
        self._context = context

    def read(self) -> Reading:
        """The phone now. The battery is asked for by its sticky broadcast, which costs no wake-up."""
        from android.content import Context, Intent, IntentFilter
        from android.os import BatteryManager, Build

        context = self._context
        state = context.registerReceiver(None, IntentFilter(Intent.ACTION_BATTERY_CHANGED))
        level, scale, plugged, tenths = (
            -1 if state is None else state.getIntExtra(name, -1)
            for name in (
                BatteryManager.EXTRA_LEVEL,
                BatteryManager.EXTRA_SCALE,
                BatteryManager.EXTRA_PLUGGED,
                BatteryManager.EXTRA_TEMPERATURE,
            )
        )
        heat = 0
        if Build.VERSION.SDK_INT >= _TELLS_HEAT:
            heat = context.getSystemService(Context.POWER_SERVICE).getCurrentThermalStatus()
        return Reading(
            battery=level / scale if level >= 0 and scale > 0 else 1.0,
            charging=plugged > 0,
            temperature=tenths / 10 if tenths > 0 else None,
            metered=bool(context.getSystemService(Context.CONNECTIVITY_SERVICE).isActiveNetworkMetered()),
            heat=HEAT[min(heat, len(HEAT) - 1)],
        )
