"""Android's BatteryManager. It takes the app's context, a Java object, which Chaquopy hands to Python.

Contract (developer.android.com, BatteryManager): charge in µAh and energy in nWh fall while the battery is used;
currents in µA are negative then; the least integer stands for what a phone does not support (0, for apps of old
targets). The voltage, in mV, is in the sticky broadcast ACTION_BATTERY_CHANGED. Phones break most of this.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from fedspzo.device_runtime.energy.battery import (
    Flow,
    Stored,
    battery_facts,
    infer_amperes,
    infer_coulombs,
    infer_volts,
)
from fedspzo.device_runtime.energy.source import COUNTER, POWER, Gap, Source

#: ``BatteryManager.BATTERY_PROPERTY_…``
CHARGE_COUNTER, CURRENT_NOW, CURRENT_AVERAGE, CAPACITY, ENERGY_COUNTER = 1, 2, 3, 4, 5
UNSUPPORTED_INT, UNSUPPORTED_LONG = -(1 << 31), -(1 << 63)
BATTERY_CHANGED = "android.intent.action.BATTERY_CHANGED"
#: ``BatteryManager.BATTERY_STATUS_CHARGING``
_STATUS_CHARGING = 2
#: J in a nWh.
NANOWATTHOUR = 3.6e-6


class Phone:
    """A phone's battery, through its BatteryManager."""

    def __init__(self, context: Any, jclass: Callable[[str], Any]) -> None:
        """Find the service.

        Args:
            context: an ``android.content.Context``.
            jclass: gives a Java class by its name, as Chaquopy's ``java.jclass`` does.
        """
        self._context = context
        self._manager = context.getSystemService("batterymanager")
        self._filter = jclass("android.content.IntentFilter")(BATTERY_CHANGED)

    def property(self, number: int) -> int:
        """A number of the manager's. Raises Gap when the phone does not support it."""
        if number == ENERGY_COUNTER:
            value, unsupported = int(self._manager.getLongProperty(number)), UNSUPPORTED_LONG
        else:
            value, unsupported = int(self._manager.getIntProperty(number)), UNSUPPORTED_INT
        if value == unsupported:
            raise Gap(f"the phone does not support BatteryManager's property {number}")
        return value

    def extra(self, name: str) -> int:
        """A number of the sticky broadcast. Raises Gap when it lacks it."""
        intent = self._context.registerReceiver(None, self._filter)
        value = -1 if intent is None else int(intent.getIntExtra(name, -1))
        if value == -1:
            raise Gap(f"the phone's battery broadcast has no '{name}'")
        return value

    def discharging(self) -> bool:
        """Whether it lives on its battery alone."""
        return self.extra("plugged") == 0 and self.extra("status") != _STATUS_CHARGING


def find_android(phone: Phone) -> tuple[list[Source], str]:
    """The sources that a phone gives, and why there are no more of them."""
    found: list[Source] = []
    reasons: list[str] = []
    for make in (_energy, _charge, _average, _current):
        try:
            found.append(make(phone))
        except Gap as gap:
            reasons.append(str(gap))
    return found, "; ".join(reasons)


def open_phone(context: Any) -> Phone:
    """The phone that an app runs on, given its context; under Chaquopy."""
    from java import jclass

    return Phone(context, jclass)


def _energy(phone: Phone) -> Source:
    if phone.property(ENERGY_COUNTER) <= 0:
        raise Gap("the phone's energy counter is empty")
    return Stored(
        "android-energy",
        phone.discharging,
        lambda: phone.property(ENERGY_COUNTER) * NANOWATTHOUR,
        lambda: 1.0,
        battery_facts(COUNTER, NANOWATTHOUR),
    )


def _charge(phone: Phone) -> Source:
    raw = phone.property(CHARGE_COUNTER)
    if raw <= 0:
        raise Gap("the phone's charge counter is empty")
    unit, volt = infer_coulombs(raw, phone.property(CAPACITY) / 100), _Voltage(phone)
    return Stored(
        "android-charge",
        phone.discharging,
        lambda: phone.property(CHARGE_COUNTER) * unit.factor,
        volt.read,
        battery_facts(COUNTER, unit.factor * volt.read(), unit.remark, volt.remark, volts=volt.uncertainty),
    )


def _average(phone: Phone) -> Source:
    return _flow(phone, "android-average", CURRENT_AVERAGE)


def _current(phone: Phone) -> Source:
    return _flow(phone, "android-current", CURRENT_NOW)


def _flow(phone: Phone, name: str, number: int) -> Source:
    volt = _Voltage(phone)

    def current() -> int:
        raw = phone.property(number)
        if raw == 0:  # what targets older than Android 9 get where it is not supported
            raise Gap(f"the phone's BatteryManager property {number} reads 0, on which no phone runs")
        return raw

    facts = battery_facts(POWER, 0.0, volt.remark, volts=volt.uncertainty)
    return Flow(name, phone.discharging, current, infer_amperes, volt.read, True, facts)


class _Voltage:
    """A phone's, in V. Attributes: ``remark``, what was inferred of its unit; ``uncertainty``, relative."""

    def __init__(self, phone: Phone) -> None:
        self._phone = phone
        self._unit = infer_volts(phone.extra("voltage"), "mV")
        coarse = self._unit.name == "V"
        self.uncertainty = 1 / math.sqrt(12) / self.read() if coarse else 0.0
        self.remark = self._unit.remark + "; it is known to a volt alone" * coarse

    def read(self) -> float:
        return self._phone.extra("voltage") * self._unit.factor
