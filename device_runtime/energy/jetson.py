"""A Jetson's power monitors under hwmon: INA3221s (Documentation/hwmon/ina3221.rst) with three rails, mV times mA, and
on AGX Thor an INA238 (ina238.rst) at the board's input, in µW.

A monitor is found by its ``name`` and a rail by its label, since their numbers differ between boards and releases.
``in4_input`` and beyond are shunt voltages and no rails.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from fedspzo.device_runtime.energy.source import POWER, Facts, Gap, find_number, find_text, folders, read_number

HWMON = Path("/sys/class/hwmon")
NAME = "jetson"
#: Rails that all others of their board hang on.
TOTALS = ("VDD_IN", "POM_5V_IN", "VIN")
#: Rails that hang on another: AGX Orin's memory is fed by the system's 5 V.
FED_BY = {"VDDQ_VDD2_1V8AO": "VIN_SYS_5V0"}
#: The monitor's least step at its shunt in µV, and the shunt that most boards have, in µΩ.
_STEP_UV, _SHUNT_UOHM = 40, 5000
#: Seconds to go through three rails where the driver does not say, and the scale's uncertainty with its shunt's.
_PERIOD_S, GAIN = 0.01, 0.01


@dataclass(frozen=True)
class _Rail:
    label: str
    millivolts: Path
    milliamperes: Path
    step: float
    microwatts: Path | None = None

    def watts(self) -> float:
        if self.microwatts is not None:
            return read_number(self.microwatts) / 1e6
        return read_number(self.millivolts) * read_number(self.milliamperes) / 1e6


class Jetson:
    """The board's input rail, or all rails where it has none. See ``energy.source.Source``."""

    name = NAME

    def __init__(self, rails: list[_Rail], period: float) -> None:
        """Read once. Raises Gap when a rail cannot be read."""
        total = [rail for rail in rails if rail.label in TOTALS]
        here = {rail.label for rail in rails}
        self._rails = total[:1] or [rail for rail in rails if FED_BY.get(rail.label) not in here]
        labels = ", ".join(rail.label for rail in self._rails)
        fed = ", ".join(sorted({rail.label for rail in rails} - {rail.label for rail in self._rails}))
        within = f" ({fed} is taken to be fed by one of these)" if fed else ""
        said = "" if total else f"the board has no rail for its whole input: {labels} are added up{within}"
        resolution = math.hypot(*(rail.step * read_number(rail.millivolts) / 1e3 for rail in self._rails))
        scope = f"the board's input ({labels})" if total else f"the board's rails ({labels})"
        self.facts = Facts(POWER, resolution, period, GAIN, scope, tuple(filter(None, (said,))))
        self.read()

    def read(self) -> float:
        """See ``Source``."""
        return math.fsum(rail.watts() for rail in self._rails)


def find_jetson(root: Path = HWMON) -> Jetson | str:
    """The monitor, or why it cannot be read."""
    monitors = [folder for folder in folders(root) if find_text(folder / "name") == "ina3221"]
    inputs = [folder for folder in folders(root) if find_text(folder / "name") == "ina238"]
    rails = [rail for folder in inputs if (rail := _rail(folder, 1)) and rail.label in TOTALS]
    rails += [rail for folder in monitors for number in (1, 2, 3) if (rail := _rail(folder, number))]
    if not rails:
        return f"{root} has no ina3221 with labelled rails"
    periods = [interval / 1e3 for folder in monitors if (interval := find_number(folder / "update_interval"))]
    try:
        return Jetson(rails, max(periods, default=_PERIOD_S))
    except Gap as gap:
        return str(gap)


def _rail(monitor: Path, number: int) -> _Rail | None:
    label = find_text(monitor / f"in{number}_label")
    if not label or label == "NC" or find_number(monitor / f"in{number}_enable") == 0:
        return None
    shunt = find_number(monitor / f"shunt{number}_resistor") or _SHUNT_UOHM
    power = monitor / f"power{number}_input"
    files = monitor / f"in{number}_input", monitor / f"curr{number}_input"
    return _Rail(label, *files, _STEP_UV / shunt, power if find_number(power) is not None else None)
