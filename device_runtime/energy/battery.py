"""What a battery's gauge says of the energy that leaves it, whoever reads it: units and signs that break their contract
are inferred, and said.

A gauge shows what the device uses only while nothing charges the battery.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from fedspzo.device_runtime.energy.source import POWER, Facts, Gap, Source
from fedspzo.device_runtime.errors import EnergyError

#: Relative uncertainty of a gauge's scale, which makers rarely state: assumed.
GAIN = 0.03
#: Seconds between updates of a gauge, at least; most take longer, which the readings show.
PERIOD_S = 1.0
#: Moves upwards, and none downwards, that tell that a counter rises.
_TELLING = 3
#: Why there is no reading.
CHARGING = "the charger is connected, so the battery does not show what the device uses"


@dataclass(frozen=True)
class Unit:
    """What a raw number counts.

    Attributes:
        factor: to SI units.
        name: of the unit.
        remark: what was inferred, or "" where the contract holds.
    """

    factor: float
    name: str
    remark: str = ""


def infer_volts(raw: int, contract: str) -> Unit:
    """The unit of a battery's voltage: batteries have 2 to 100 V. ``contract`` is "mV" or "µV".

    Raises:
        Gap: it is no battery's in any unit.
    """
    ranges = ((2, 100, 1.0, "V"), (2_000, 100_000, 1e-3, "mV"), (2_000_000, 100_000_000, 1e-6, "µV"))
    for least, most, factor, name in ranges:
        if least <= raw <= most:
            said = f"the voltage {raw} is in {name}, not in {contract} as the contract has it"
            return Unit(factor, name, "" if name == contract else said)
    raise Gap(f"a voltage of {raw} is no battery's, in V, mV or µV")


def infer_amperes(raw: int) -> Unit:
    """The unit of a current in µA by contract: a device that computes draws more than 8 mA and less than 8 A."""
    if abs(raw) >= 8000:
        return Unit(1e-6, "µA")
    return Unit(
        1e-3, "mA", f"the current {raw} is in mA, not in µA as the contract has it: no device runs on so little"
    )


def infer_watts(raw: int) -> Unit:
    """The unit of a power in µW by contract: a device that computes draws more than 0.1 W and less than 100 W."""
    if abs(raw) >= 100_000:
        return Unit(1e-6, "µW")
    return Unit(1e-3, "mW", f"the power {raw} is in mW, not in µW as the contract has it: no device runs on so little")


def infer_joules(raw: int) -> Unit:
    """The unit of a full battery's energy in µWh by contract: computers' batteries hold between 1 and 1000 Wh."""
    if raw >= 1_000_000:
        return Unit(3.6e-3, "µWh")
    return Unit(3.6, "mWh", f"the energy {raw} when full is in mWh, not in µWh as the contract has it")


def infer_coulombs(raw: int, level: float) -> Unit:
    """The unit of a charge in µAh by contract, of a battery that is full to a ``level`` between 0 and 1.

    Batteries that devices run on hold between 0.1 and 100 Ah.
    """
    if raw / max(level, 0.01) >= 100_000:
        return Unit(3.6e-3, "µAh")
    return Unit(3.6, "mAh", f"the charge {raw} is in mAh, not in µAh as the contract has it: no battery is so small")


class Flow:
    """Watts from a battery's current or power, of the moment or averaged.

    See :class:`fedspzo.device_runtime.energy.source.Source`.
    """

    def __init__(
        self,
        name: str,
        discharging: Callable[[], bool],
        flow: Callable[[], int],
        infer: Callable[[int], Unit],
        volts: Callable[[], float],
        falls: bool | None,
        facts: Facts,
    ) -> None:
        """Read once.

        Args:
            discharging: whether the device lives on the battery alone.
            flow: the raw current or power.
            infer: tells its unit.
            volts: the voltage, or 1 where ``flow`` gives a power.
            falls: whether the contract has it negative while the battery is used; None where there is no contract.
            facts: what is known in advance.

        Raises:
            Gap: it cannot be read.
        """
        self.name, self.facts = name, facts
        self._discharging, self._flow, self._infer, self._volts, self._falls = discharging, flow, infer, volts, falls
        self._unit: Unit | None = None
        self._sign = 0
        flow(), volts()

    def read(self) -> float:
        """See ``Source``."""
        if not self._discharging():
            raise Gap(CHARGING)
        raw, volts = self._flow(), self._volts()
        if raw == 0:
            return 0.0
        unit = self._learn(raw, volts)
        if (raw > 0) != (self._sign > 0):
            raise Gap("the current has turned its sign, as if the battery were being charged")
        return abs(raw) * unit.factor * volts

    def _learn(self, raw: int, volts: float) -> Unit:
        """The unit; it and the sign are inferred from the first reading that is not 0."""
        if self._unit is None:
            self._unit, self._sign = self._infer(raw), 1 if raw > 0 else -1
            way = "positive" if raw > 0 else "negative"
            turned = f"the current is {way} while the battery is used, which its contract has the other way round"
            against = self._falls is not None and self._falls == (raw > 0)
            self.facts = remark(self.facts, self._unit.remark, turned if against else "")
            self.facts = replace(self.facts, resolution=self._unit.factor * volts)
        elif self._infer(raw // 3).factor < self._unit.factor:
            raise EnergyError(
                "energy.contradictory-unit",
                f"'{self.name}' reads {raw}, which cannot be {self._unit.name} as earlier readings seemed to be;"
                " choose another source",
            )
        return self._unit


class Stored:
    """Joules that have left a battery, by what it holds. See :class:`fedspzo.device_runtime.energy.source.Source`."""

    def __init__(
        self,
        name: str,
        discharging: Callable[[], bool],
        holds: Callable[[], float],
        volts: Callable[[], float],
        facts: Facts,
    ) -> None:
        """Read once.

        Args:
            discharging: whether the device lives on the battery alone.
            holds: the charge in C, which falls while the battery is used; or the energy in J.
            volts: the voltage, or 1 where ``holds`` gives an energy.
            facts: what is known in advance.

        Raises:
            Gap: it cannot be read.
        """
        self.name, self.facts = name, facts
        self._discharging, self._holds, self._volts = discharging, holds, volts
        self._fallen = 0.0
        self._last: tuple[float, float] | None = None
        self._rose = 0  # moves upwards, until the sign is known
        self._sign = 0  # 1 where it falls while the battery is used, -1 where it rises
        holds(), volts()

    def read(self) -> float:
        """See ``Source``."""
        last, self._last = self._last, None  # nothing is known of what comes between where this fails
        if not self._discharging():
            raise Gap(CHARGING)
        held, volts = self._holds(), self._volts()
        before, volts_before = last or (held, volts)
        self._last = held, volts
        self._fallen += (before - held) * (volts + volts_before) / 2
        if held != before and not self._sign:
            self._learn(rose=held > before)
        if self._rose and not self._sign:
            raise Gap("its counter rose while the battery was used, and has yet to show whether it always does")
        return self._sign * self._fallen

    def _learn(self, rose: bool) -> None:
        """Learn from a move which way it counts: one that corrects itself goes the wrong way once, not every time."""
        self._rose += rose
        if not rose:
            self._sign = 1
        elif self._rose == _TELLING:
            self._sign = -1
            said = "its counter rises while the battery is used, which its contract has the other way round"
            self.facts = remark(self.facts, said)


class Together:
    """The sum of sources of one kind. See :class:`fedspzo.device_runtime.energy.source.Source`."""

    def __init__(self, name: str, sources: Sequence[Source], remarks: Sequence[str] = ()) -> None:
        """Take them together under a name, with remarks of their own."""
        self.name, self._sources, self._remarks = name, sources, remarks

    @property
    def facts(self) -> Facts:
        """What they can tell together."""
        each = [source.facts for source in self._sources]
        remarks = dict.fromkeys(said for facts in each for said in facts.remarks)
        resolution = math.hypot(*(facts.resolution for facts in each))
        return replace(each[0], resolution=resolution, remarks=(*remarks, *self._remarks))

    def read(self) -> float:
        """See ``Source``."""
        total = math.fsum(source.read() for source in self._sources)
        if total == 0 and self.facts.kind == POWER:
            raise Gap("the batteries' power reads 0 W, on which nothing runs")
        return total


def remark(facts: Facts, *remarks: str) -> Facts:
    """The facts with more to be said of them."""
    return replace(facts, remarks=(*facts.remarks, *filter(None, remarks)))


def battery_facts(kind: str, resolution: float, *remarks: str, volts: float = 0.0) -> Facts:
    """What all gauges have in common.

    Args:
        volts: relative uncertainty of the voltage that their scale is multiplied by.
    """
    assumed = f"the scale of the battery's gauge is taken to be right to {GAIN:.0%}, which its maker does not state"
    gain = math.hypot(GAIN, volts)
    return remark(Facts(kind, resolution, PERIOD_S, gain, "all that the battery feeds", gauge=True), *remarks, assumed)
