"""Sensors as the kernel and Android show them: trees of files, a fake command, a fake Java; set to a moment of a world
in which it is known what the device uses."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from fedspzo.device_runtime.platform.profiling import PhaseTimer


def write_tree(root: Path, files: dict[str, object]) -> None:
    for name, content in files.items():
        text = f"{content}\n".encode()
        try:
            file = os.open(f"{root}/{name}", os.O_WRONLY)
        except FileNotFoundError:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            file = os.open(f"{root}/{name}", os.O_WRONLY | os.O_CREAT)
        os.write(file, text)
        os.ftruncate(file, len(text))  # a file that is emptied first goes to disk when it is closed, on some systems
        os.close(file)


class Sensor(Protocol):
    """Something that shows joules used and watts drawn."""

    def show(self, joules: float, watts: float) -> None: ...


@dataclass
class RaplTree:
    """Two packages with a subdomain each, psys, and the first package once more by MMIO.

    The joules are the packages' and the memory's.
    """

    root: Path
    span: int = 262143328850
    start: int = 262143000000  # wraps soon

    def __post_init__(self) -> None:
        packages = {"intel-rapl:0": "package-0", "intel-rapl:1": "package-1", "intel-rapl:2": "psys"}
        rest = {"intel-rapl:0:0": "core", "intel-rapl:0:1": "dram", "intel-rapl-mmio:0": "package-0"}
        write_tree(self.root, {"intel-rapl/enabled": 1})
        for folder, name in (packages | rest).items():
            limits = {"name": name, "enabled": 1, "max_energy_range_uj": self.span, "constraint_0_name": "long_term"}
            write_tree(self.root, {f"{folder}/{file}": content for file, content in limits.items()})
        self.show(0.0, 0.0)

    def show(self, joules: float, watts: float) -> None:
        quantum = 2.0**-14
        for folder, share in {
            "intel-rapl:0": 0.5, "intel-rapl:1": 0.3, "intel-rapl:2": 3.0, "intel-rapl:0:0": 0.4,
            "intel-rapl:0:1": 0.2, "intel-rapl-mmio:0": 0.5,
        }.items():  # fmt: skip
            counted = int(share * joules / quantum) * quantum * 1e6
            write_tree(self.root, {f"{folder}/energy_uj": (self.start + int(counted)) % (self.span + 1)})


@dataclass
class JetsonTree:
    """hwmon with a thermal sensor first and an INA3221 at a number that nobody should rely on; VDD_IN is not rail 1."""

    root: Path
    labels: tuple[str, ...] = ("VDD_CPU_GPU_CV", "VDD_IN", "VDD_SOC")
    volts: float = 19.0

    def __post_init__(self) -> None:
        write_tree(self.root, {"hwmon0/name": "tmp451", "hwmon0/temp1_input": 45000})
        for number, label in enumerate(self.labels, start=1):
            files = {f"in{number}_label": label, f"in{number}_enable": 1, f"shunt{number}_resistor": 5000}
            write_tree(self.root / "hwmon4", files)
        write_tree(
            self.root / "hwmon4", {"name": "ina3221", "in7_label": "Sum of shunt voltages", "update_interval": 7}
        )
        self.show(0.0, 1.0)

    def show(self, joules: float, watts: float) -> None:
        for number, label in enumerate(self.labels, start=1):
            share = 1.0 if label == "VDD_IN" else 0.4 if "VDD_IN" in self.labels else 1 / len(self.labels)
            amperes = round(share * watts / self.volts / 0.008) * 0.008
            files = {
                f"in{number}_input": round(self.volts * 1e3), f"curr{number}_input": round(amperes * 1e3),
                f"in{number + 3}_input": 123456,
            }  # fmt: skip
            write_tree(self.root / "hwmon4", files)


#: Rail → (share of the power, V).
PMIC_RAILS = {
    "3V7_WL_SW": (0.02, 3.7), "3V3_SYS": (0.05, 3.31), "1V8_SYS": (0.08, 1.8), "DDR_VDD2": (0.05, 1.1),
    "DDR_VDDQ": (0.01, 0.6), "1V1_SYS": (0.09, 1.1), "0V8_SW": (0.2, 0.8), "VDD_CORE": (0.47, 0.87),
    "3V3_DAC": (0.01, 3.3), "3V3_ADC": (0.01, 3.3), "0V8_AON": (0.005, 0.8), "HDMI": (0.005, 5.1),
}  # fmt: skip


@dataclass
class PmicCommand:
    """A ``vcgencmd`` that prints what the firmware does, currents before voltages, two of which have no current."""

    said: str = ""

    def __post_init__(self) -> None:
        self.show(0.0, 1.0)

    def show(self, joules: float, watts: float) -> None:
        rails = list(PMIC_RAILS.items())
        lines = [f"{rail}_A current({i})={share * watts / v:.8f}A" for i, (rail, (share, v)) in enumerate(rails)]
        lines += [f"{rail}_V volt({i})={v:.8f}V" for i, (rail, (_, v)) in enumerate(rails, start=len(rails))]
        lines += ["EXT5V_V volt(24)=5.14878000V", "BATT_V volt(25)=0.00000000V"]
        self.said = "".join(f"{line:>40}\n" for line in lines)

    def ask(self) -> str:
        return self.said


@dataclass
class BatteryTree:
    """A laptop's or board's battery with the mouse's beside it and a charger.

    ``files`` says what the driver gives: any of energy, charge, power, current; ``scale`` what it divides µ-units by;
    ``sign`` what current and power have while the battery is used.
    """

    root: Path
    files: tuple[str, ...] = ("charge", "current")
    scale: int = 1
    sign: int = -1
    volts: float = 3.9
    status: str = "Discharging"

    def __post_init__(self) -> None:
        write_tree(self.root, {"hidpp_battery_0/type": "Battery", "hidpp_battery_0/scope": "Device"})
        write_tree(self.root, {"hidpp_battery_0/status": "Discharging", "AC/type": "Mains", "AC/online": 0})
        battery = {"type": "Battery", "present": 1, "capacity": 90, "status": self.status, "manufacturer": "LGC"}
        write_tree(self.root / "BAT0", battery)
        if "energy" in self.files:
            write_tree(self.root / "BAT0", {"energy_full": 50_000_000 // self.scale})
        self.show(0.0, 5.0)

    def show(self, joules: float, watts: float) -> None:
        values = {
            "energy": 45e6 - joules / 3.6e-3, "charge": 4e6 - joules / self.volts / 3.6e-3,
            "power": self.sign * watts * 1e6, "current": self.sign * watts / self.volts * 1e6,
        }  # fmt: skip
        shown = {f"{file}_now": int(values[file] / self.scale) for file in self.files}
        write_tree(self.root / "BAT0", {"voltage_now": round(self.volts * 1e6 / self.scale), **shown})

    def plug(self, plugged: bool) -> None:
        write_tree(self.root, {"AC/online": int(plugged), "BAT0/status": "Charging" if plugged else "Discharging"})


@dataclass
class JavaPhone:
    """Android's context, BatteryManager and battery broadcast in one, as Chaquopy shows Java objects to Python.

    ``scale`` is what it divides µA and µAh by (1000: it gives mA, mAh); ``sign`` what a current has while discharging;
    ``quantum`` the steps of its charge counter in µAh; ``unsupported`` properties give the least integer.
    """

    scale: int = 1
    sign: int = -1
    quantum: int = 1000
    volts: float = 3.87
    voltage: int = 3870
    unsupported: tuple[int, ...] = ()
    plugged: int = 0
    numbers: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.show(0.0, 3.0)

    def show(self, joules: float, watts: float) -> None:
        charge = int((3.5e6 - joules / self.volts / 3.6e-3) / self.quantum) * self.quantum
        current = self.sign * watts / self.volts * 1e6
        self.numbers = {
            1: charge // self.scale, 2: int(current / self.scale), 3: int(current / self.scale), 4: 80,
            5: int(5e10 - joules / 3.6e-6),
        }  # fmt: skip

    def getSystemService(self, name: str) -> JavaPhone:
        assert name == "batterymanager"
        return self

    def getIntProperty(self, number: int) -> int:
        return -(1 << 31) if number in self.unsupported else self.numbers[number]

    def getLongProperty(self, number: int) -> int:
        return -(1 << 63) if number in self.unsupported else self.numbers[number]

    def registerReceiver(self, receiver: None, filter: Any) -> JavaPhone:
        assert receiver is None
        assert filter == ("filter", "android.intent.action.BATTERY_CHANGED")
        return self

    def getIntExtra(self, name: str, default: int) -> int:
        status = 2 if self.plugged else 3
        return {"voltage": self.voltage, "plugged": self.plugged, "status": status}.get(name, default)


@contextmanager
def java() -> Iterator[None]:
    """A module ``java`` as Chaquopy has it."""
    module = ModuleType("java")
    module.jclass = {"android.content.IntentFilter": lambda action: ("filter", action)}.__getitem__  # type: ignore[attr-defined]
    sys.modules["java"] = module
    try:
        yield
    finally:
        del sys.modules["java"]


@dataclass(frozen=True)
class Span:
    """So many seconds in a phase, drawing so many watts."""

    seconds: float
    phase: str
    watts: float
    round: int = 0


@dataclass
class World:
    """A device of which everything is known, by a clock of its own.

    ``period`` is the sensor's: it shows what was, at the last multiple of it.
    """

    sensor: Sensor
    period: float = 0.001
    now: float = 0.0
    joules: float = 0.0
    watts: float = 0.0
    by_phase: dict[tuple[int, str], float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.timer = PhaseTimer(lambda: self.now)
        self._shown_at = -1.0

    def live(self, spans: list[Span], sample: Callable[[], None], every: float = 1.0) -> None:
        """Go through it, sampling every so many seconds of the clock."""
        for span in spans:
            end = self.now + span.seconds
            self.timer.turn_to(span.round)
            with self.timer.phase(span.phase):
                self.watts = span.watts
                while self.now < end - 1e-9:
                    tick = (int(self.now / every + 1e-9) + 1) * every
                    self._pass(min(end, tick) - self.now, span)
                    if self.now >= tick - 1e-9:
                        self._show()
                        sample()

    def _pass(self, seconds: float, span: Span) -> None:
        self.now += seconds
        self.joules += seconds * span.watts
        key = span.round, span.phase
        self.by_phase[key] = self.by_phase.get(key, 0.0) + seconds * span.watts

    def _show(self) -> None:
        updated = int(self.now / self.period + 1e-9) * self.period
        if updated > self._shown_at:
            self._shown_at = updated
            self.sensor.show(self.joules - (self.now - updated) * self.watts, self.watts)
