"""Batteries as Linux shows them (Documentation/ABI/testing/sysfs-class-power): µV, µA, µW, µAh, µWh by contract."""

from __future__ import annotations

from pathlib import Path

from fedspzo.device_runtime.energy.battery import (
    Flow,
    Stored,
    Together,
    battery_facts,
    infer_amperes,
    infer_coulombs,
    infer_joules,
    infer_volts,
    infer_watts,
)
from fedspzo.device_runtime.energy.source import (
    COUNTER,
    POWER,
    Gap,
    Source,
    find_number,
    find_text,
    folders,
    read_number,
    read_text,
)

SUPPLIES = Path("/sys/class/power_supply")
#: Names of sources: by what the batteries hold, and by their power.
STORED_NAME, FLOW_NAME = "battery", "battery-power"
#: Files by which a battery tells of energy.
_TELLING = ("energy_now", "charge_now", "power_now", "current_now")


class Supplies:
    """The batteries and chargers of a machine; those of its mouse or headphones are not among them."""

    def __init__(self, root: Path = SUPPLIES) -> None:
        """Look for them."""
        listed = [folder for folder in folders(root) if find_text(folder / "scope") != "Device"]
        kinds = {folder: find_text(folder / "type") for folder in listed}
        present = [f for f in listed if kinds[f] == "Battery" and find_number(f / "present") != 0]
        self.batteries = [f for f in present if any((f / file).exists() for file in _TELLING)]
        self.silent = [f.name for f in present if f not in self.batteries]
        self._chargers = [f for f in listed if kinds[f] in ("Mains", "USB", "Wireless")]

    def discharging(self) -> bool:
        """Whether the batteries alone feed the machine. Raises Gap when one of them is gone or does not say so."""
        states = [read_text(battery / "status") for battery in self.batteries]
        if any(find_number(charger / "online") for charger in self._chargers) or "Charging" in states:
            return False
        if "Discharging" not in states:
            said = " and ".join(f"'{state}'" for state in dict.fromkeys(states))
            raise Gap(f"the battery's status is {said}, so it is not known whether it feeds the machine")
        return True


def find_batteries(root: Path = SUPPLIES) -> tuple[list[Source], str]:
    """The sources that the batteries give, and why there are no more of them."""
    supplies = Supplies(root)
    left = [f"'{name}' gives no more than a percentage and is left out" for name in supplies.silent]
    if not supplies.batteries:
        return [], "; ".join([f"{root} has no battery{' that tells energy' * bool(left)}", *left])
    found: list[Source] = []
    reasons: list[str] = []
    for name, make in ((STORED_NAME, _stored), (FLOW_NAME, _flow)):
        try:
            found.append(Together(name, [make(name, battery, supplies) for battery in supplies.batteries], left))
        except Gap as gap:
            reasons.append(str(gap))
    return found, "; ".join(reasons)


def _stored(name: str, battery: Path, supplies: Supplies) -> Source:
    """By the energy that a battery holds where it says so, else by its charge."""
    energy, charge = battery / "energy_now", battery / "charge_now"
    if energy.exists():
        held = infer_joules(find_number(battery / "energy_full") or read_number(energy))
        facts = battery_facts(COUNTER, held.factor, held.remark)
        return Stored(name, supplies.discharging, lambda: read_number(energy) * held.factor, lambda: 1.0, facts)
    unit = infer_coulombs(read_number(charge), (find_number(battery / "capacity") or 100) / 100)
    raw = read_number(battery / "voltage_now")
    volt = infer_volts(raw, "µV")
    return Stored(
        name,
        supplies.discharging,
        lambda: read_number(charge) * unit.factor,
        lambda: read_number(battery / "voltage_now") * volt.factor,
        battery_facts(COUNTER, unit.factor * raw * volt.factor, unit.remark, volt.remark),
    )


def _flow(name: str, battery: Path, supplies: Supplies) -> Source:
    """By a battery's power where it says so, else by its current. Drivers differ in its sign, so none is expected."""
    power, current = battery / "power_now", battery / "current_now"
    if power.exists():
        return Flow(
            name,
            supplies.discharging,
            lambda: read_number(power),
            infer_watts,
            lambda: 1.0,
            None,
            battery_facts(POWER, 0.0),
        )
    volt = infer_volts(read_number(battery / "voltage_now"), "µV")
    return Flow(
        name,
        supplies.discharging,
        lambda: read_number(current),
        infer_amperes,
        lambda: read_number(battery / "voltage_now") * volt.factor,
        None,
        battery_facts(POWER, 0.0, volt.remark),
    )
