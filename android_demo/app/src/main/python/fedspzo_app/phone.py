"""How the phone fares, through Android's classes: battery, charging, temperature, heat, network."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, cast

from fedspzo.device_runtime.energy.android import find_android, open_phone
from fedspzo.device_runtime.energy.source import Source
from fedspzo.device_runtime.platform.conditions import Conditions

if TYPE_CHECKING:
    from android.content import BroadcastReceiver, Context

#: The first version of Android that tells how hot it is (PowerManager.getCurrentThermalStatus).
_TELLS_HEAT = 29


class Phone:
    """Reads from an ``android.content.Context``."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def read(self) -> Conditions:
        """The phone now; what it does not say is taken for good.

        The temperature is the battery's, which all phones tell. The battery is asked for by its sticky broadcast, which
        costs no wake-up.
        """
        from android.content import Context, Intent, IntentFilter
        from android.net import ConnectivityManager
        from android.os import BatteryManager, Build, PowerManager

        context = self._context
        nobody = cast("BroadcastReceiver", None)
        state = context.registerReceiver(nobody, IntentFilter(Intent.ACTION_BATTERY_CHANGED))
        level, scale, plugged, tenths = (
            -1 if state is None else state.getIntExtra(name, -1)
            for name in (
                BatteryManager.EXTRA_LEVEL,
                BatteryManager.EXTRA_SCALE,
                BatteryManager.EXTRA_PLUGGED,
                BatteryManager.EXTRA_TEMPERATURE,
            )
        )
        throttled = False
        if Build.VERSION.SDK_INT >= _TELLS_HEAT:
            power = cast(PowerManager, context.getSystemService(Context.POWER_SERVICE))
            throttled = power.getCurrentThermalStatus() != PowerManager.THERMAL_STATUS_NONE
        network = cast(ConnectivityManager, context.getSystemService(Context.CONNECTIVITY_SERVICE))
        return Conditions(
            battery=level / scale if level >= 0 and scale > 0 else 1.0,
            charging=plugged > 0,
            temperature_c=tenths / 10 if tenths > 0 else math.nan,
            throttled=throttled,
            metered=network.isActiveNetworkMetered(),
        )

    def energy_source(self) -> Source | None:
        """What best tells joules, on this phone and while it lives on its battery; None where nothing does."""
        found, _ = find_android(open_phone(self._context))
        return found[0] if found else None
