"""Joules: every source against a world in which they are known, faults and all; shared among phases and rounds."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from patience import PATIENCE_S, wait_until
from refusals import raises
from sensors import BatteryTree, JavaPhone, JetsonTree, PmicCommand, RaplTree, Sensor, Span, World, java, write_tree

from fedspzo.broker.server.loop import REPORT_S
from fedspzo.device_runtime.data.store import DataStore
from fedspzo.device_runtime.energy.android import find_android, open_phone
from fedspzo.device_runtime.energy.battery import Stored, battery_facts, infer_amperes, infer_coulombs, infer_volts
from fedspzo.device_runtime.energy.book import LAST_S, Book, read_book
from fedspzo.device_runtime.energy.find import Places, choose_source, find_sources
from fedspzo.device_runtime.energy.jetson import find_jetson
from fedspzo.device_runtime.energy.ledger import Lag, Ledger
from fedspzo.device_runtime.energy.meter import Account, Meter
from fedspzo.device_runtime.energy.pmic import find_pmic
from fedspzo.device_runtime.energy.power_supply import find_batteries
from fedspzo.device_runtime.energy.rapl import find_rapl, unwrap
from fedspzo.device_runtime.energy.sampler import Sampler
from fedspzo.device_runtime.energy.source import COUNTER, Gap, Source
from fedspzo.device_runtime.engines.protocol import create_engine
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.platform.conditions import Conditions
from fedspzo.device_runtime.platform.profiling import (
    APPLY,
    IDLE,
    NETWORK,
    OTHER,
    PERTURB,
    SILENT,
    TOKENISE,
    PhaseTimer,
    forward_block,
)
from fedspzo.device_runtime.protocol.plan import Plan
from fedspzo.device_runtime.replica.weights import Replica
from fedspzo.device_runtime.step.estimator import measure
from fedspzo.device_runtime.step.runner import Forward
from fedspzo.energy.host import describe_host, describe_state

IDLE_W = 2.0
BLOCK_1, BLOCK_2 = forward_block(0), forward_block(1)


def hour() -> list[Span]:
    """A minute of rest, then rounds, whose phases do not keep step with seconds."""
    spans = [Span(60.0, IDLE, IDLE_W)]
    step = [
        (TOKENISE, 0.2, 3.0), (PERTURB, 3.7, 4.5), (BLOCK_1, 4.3, 6.0), (BLOCK_2, 9.9, 7.0), (NETWORK, 0.3, 3.1),
        (IDLE, 4.4, IDLE_W), (APPLY, 0.9, 5.0),
    ]  # fmt: skip
    while sum(span.seconds for span in spans) < 3600:
        spans += [Span(seconds, phase, watts, len(spans) // len(step) + 1) for phase, seconds, watts in step]
    return spans


def of_name(name: str, found: tuple[list[Source], str]) -> Source:
    return next(source for source in found[0] if source.name == name)


def phone_source(name: str, phone: JavaPhone) -> Source:
    with java():
        return of_name(name, find_android(open_phone(phone)))


def certain(found: Source | str) -> Source:
    assert not isinstance(found, str), found
    return found


#: Name → (sensor in a folder, source of it by a world's clock, its update period).
Make = Callable[[Path], Sensor]
Open = Callable[[Sensor, World], Source]
SOURCES: dict[str, tuple[Make, Open, float]] = {
    "rapl": (RaplTree, lambda s, w: certain(find_rapl(s.root, lambda: w.now)), 0.001),  # type: ignore[attr-defined]
    "jetson": (JetsonTree, lambda s, w: certain(find_jetson(s.root)), 0.007),  # type: ignore[attr-defined]
    "pi5": (lambda _: PmicCommand(), lambda s, w: certain(find_pmic(s.ask)), 0.1),  # type: ignore[attr-defined]
    "battery by energy": (
        lambda folder: BatteryTree(folder, ("energy", "power"), sign=1),
        lambda s, w: of_name("battery", find_batteries(s.root)),  # type: ignore[attr-defined]
        15.0,
    ),
    "battery by charge": (BatteryTree, lambda s, w: of_name("battery", find_batteries(s.root)), 5.0),  # type: ignore[attr-defined]
    "battery's power": (
        lambda folder: BatteryTree(folder, ("energy", "power"), sign=1),
        lambda s, w: of_name("battery-power", find_batteries(s.root)),  # type: ignore[attr-defined]
        1.0,
    ),
    "battery's current": (BatteryTree, lambda s, w: of_name("battery-power", find_batteries(s.root)), 1.0),  # type: ignore[attr-defined]
    "phone's energy": (lambda _: JavaPhone(), lambda s, w: phone_source("android-energy", s), 10.0),  # type: ignore[arg-type]
    "phone's charge": (lambda _: JavaPhone(), lambda s, w: phone_source("android-charge", s), 10.0),  # type: ignore[arg-type]
    "phone's current": (lambda _: JavaPhone(), lambda s, w: phone_source("android-current", s), 1.0),  # type: ignore[arg-type]
    "phone in mA": (
        lambda _: JavaPhone(scale=1000, sign=1), lambda s, w: phone_source("android-current", s), 1.0,  # type: ignore[arg-type]
    ),
    "phone in mAh": (
        lambda _: JavaPhone(scale=1000, voltage=3_870_000), lambda s, w: phone_source("android-charge", s), 10.0,  # type: ignore[arg-type]
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[World, Account]]:
    """An hour of a source of a name, and what was made of it."""

    @functools.cache
    def live(name: str) -> tuple[World, Account]:
        make, open_source, period = SOURCES[name]
        world = World(make(tmp_path_factory.mktemp("sensor")), period)
        meter = Meter(open_source(world.sensor, world), world.timer)
        meter.sample()
        world.live(hour(), meter.sample)
        meter.sample(final=True)
        return world, meter.account()

    return live


@pytest.mark.parametrize("name", SOURCES)
def test_an_hour_at_one_hertz(name: str, measured: Callable[[str], tuple[World, Account]]) -> None:
    world, account = measured(name)
    assert account.joules == pytest.approx(world.joules, rel=0.01)
    assert account.seconds == pytest.approx(world.now)
    assert not account.missed
    known = world.joules - IDLE_W * world.now
    assert account.idle.watts == pytest.approx(IDLE_W, rel=0.05)
    assert abs(account.work.joules - known) < 3 * account.work.uncertainty
    assert account.work.uncertainty < 0.15 * known
    for phase, figure in account.phases.items():
        assert (figure.joules is None) == bool(figure.reason)
        if figure.joules is not None:
            truth = sum(joules for (_, name), joules in world.by_phase.items() if name == phase)
            assert abs(figure.joules - (truth - IDLE_W * figure.seconds)) < 1.5 * figure.half_width


@pytest.mark.parametrize("name", ["rapl", "jetson", "pi5"])
def test_phases_are_told_apart(name: str, measured: Callable[[str], tuple[World, Account]]) -> None:
    """By sources that keep up with them: each phase's joules above idle are the world's, but for its edges."""
    world, account = measured(name)
    for phase in (PERTURB, BLOCK_1, BLOCK_2):
        truth = sum(joules for (_, name), joules in world.by_phase.items() if name == phase)
        truth -= IDLE_W * account.phases[phase].seconds
        assert account.phases[phase].joules == pytest.approx(truth, rel=0.1)
        assert account.phases[phase].alone > 0.5


# -- What sensors and phones do to one


@given(st.integers(1, 2**40), st.lists(st.integers(0, 2**39), max_size=50), st.integers(0, 2**40))
def test_a_counter_that_wraps_loses_nothing(span: int, moves: list[int], start: int) -> None:
    total, value = 0, start % (span + 1)
    for move in moves:
        after = (value + move % (span + 1)) % (span + 1)
        total += unwrap(value, after, span)
        value = after
    assert total == sum(move % (span + 1) for move in moves)


def test_rapl_counts_each_package_once_and_over_its_wraps(tmp_path: Path) -> None:
    tree = RaplTree(tmp_path, span=65_532_610_987, start=65_532_000_000)
    now = [0.0]
    rapl = certain(find_rapl(tmp_path, lambda: now[0]))
    for joules in range(0, 250_000, 1_000):  # four wraps of one, two of the other
        tree.show(joules, 0)
        now[0] += 10
        assert rapl.read() == pytest.approx(joules, abs=0.01)


def test_a_counter_that_was_set_back_is_a_gap(tmp_path: Path) -> None:
    tree = RaplTree(tmp_path, start=1_000_000_000)
    now = [0.0]
    rapl = certain(find_rapl(tmp_path, lambda: now[0]))
    tree.show(50.0, 0.0)
    now[0] = 1.0
    assert rapl.read() == pytest.approx(50, abs=0.01)
    tree.start = 0  # a resume from suspension
    tree.show(50.0, 0.0)
    now[0] = 2.0
    with pytest.raises(Gap, match="was set back"):
        rapl.read()
    tree.show(60.0, 0.0)
    now[0] = 3.0
    assert rapl.read() == pytest.approx(60, abs=0.01)


def test_rapl_for_root_alone(tmp_path: Path) -> None:
    RaplTree(tmp_path)
    for package in ("intel-rapl:0", "intel-rapl:1"):
        (tmp_path / package / "energy_uj").unlink()
        (tmp_path / package / "energy_uj").mkdir()  # unreadable for the superuser too, under which tests may run
    assert "is root's alone" in str(find_rapl(tmp_path))


def test_a_machine_with_its_packages_by_mmio_alone(tmp_path: Path) -> None:
    files = {"name": "package-0", "energy_uj": 5_000_000, "max_energy_range_uj": 262143328850}
    write_tree(tmp_path, {f"intel-rapl-mmio:0/{file}": content for file, content in files.items()})
    rapl = certain(find_rapl(tmp_path))
    write_tree(tmp_path, {"intel-rapl-mmio:0/energy_uj": 5_500_000})
    assert rapl.read() == pytest.approx(0.5)


def test_a_jetson_is_found_by_its_labels(tmp_path: Path) -> None:
    JetsonTree(tmp_path / "a").show(0.0, 15.2)
    assert certain(find_jetson(tmp_path / "a")).read() == pytest.approx(15.2)
    tree = JetsonTree(tmp_path / "b", ("VDD_GPU_SOC", "NC", "VDD_CPU_CV"))
    tree.show(0.0, 15.2)
    orin = certain(find_jetson(tmp_path / "b"))
    assert orin.read() == pytest.approx(2 / 3 * 15.2, rel=0.02)
    assert "VDD_GPU_SOC, VDD_CPU_CV are added up" in orin.facts.remarks[0]
    (tmp_path / "b" / "hwmon4" / "curr1_input").unlink()
    with pytest.raises(Gap, match="curr1_input cannot be read"):
        orin.read()
    assert "has no ina3221" in str(find_jetson(tmp_path / "c"))


def test_rails_that_feed_one_another_count_once(tmp_path: Path) -> None:
    first = {"in1_label": "VDD_GPU_SOC", "in2_label": "VDD_CPU_CV", "in3_label": "VIN_SYS_5V0"}
    both = {"hwmon3": first, "hwmon4": {"in2_label": "VDDQ_VDD2_1V8AO"}}
    for monitor, labels in both.items():
        write_tree(tmp_path / monitor, {"name": "ina3221", **labels})
        for label in labels:
            write_tree(tmp_path / monitor, {f"in{label[2]}_input": 5000, f"curr{label[2]}_input": 1000})
    orin = certain(find_jetson(tmp_path))
    assert orin.read() == pytest.approx(15.0)
    assert "VDDQ_VDD2_1V8AO is taken to be fed by one of these" in orin.facts.remarks[0]
    thor = {"name": "ina238", "in1_label": "VIN", "in1_input": 20000, "curr1_input": 1500, "power1_input": 29_000_000}
    write_tree(tmp_path / "hwmon1", thor)
    assert certain(find_jetson(tmp_path)).read() == pytest.approx(29.0)


def rapl_tree(root: Path, names: dict[str, str], span: int = 262143328850) -> None:
    for folder, name in names.items():
        write_tree(
            root, {f"{folder}/name": name, f"{folder}/max_energy_range_uj": span, f"{folder}/energy_uj": 5_000_000}
        )


def test_dies_that_show_one_counter_count_once(tmp_path: Path) -> None:
    names = {f"intel-rapl:{die}": f"package-{die // 2}-die-{die % 2}" for die in range(4)}
    rapl_tree(tmp_path, names)
    write_tree(tmp_path, {f"intel-rapl:{die}/energy_uj": 5_000_000 + 7_000_000 * (die // 2) for die in range(4)})
    rapl = certain(find_rapl(tmp_path))
    write_tree(tmp_path, {f"intel-rapl:{die}/energy_uj": 9_000_000 + 7_000_000 * (die // 2) for die in range(4)})
    assert rapl.read() == pytest.approx(8.0)
    assert rapl.facts.scope == "2 processor packages"
    write_tree(tmp_path, {"intel-rapl:1/energy_uj": 90_000_000, "intel-rapl:3/energy_uj": 90_000_000})
    assert find_rapl(tmp_path).facts.scope == "4 processor packages", "dies with counters of their own"  # type: ignore[union-attr]


def test_a_counter_without_a_range(tmp_path: Path) -> None:
    rapl_tree(tmp_path, {"intel-rapl:0": "package-0"}, span=0)
    rapl = certain(find_rapl(tmp_path))
    write_tree(tmp_path, {"intel-rapl:0/energy_uj": 1_000_000})
    with pytest.raises(Gap, match="does not say where it starts again"):
        rapl.read()
    write_tree(tmp_path, {"intel-rapl:0/energy_uj": 3_000_000})
    assert rapl.read() == pytest.approx(2.0)


def test_memory_is_added_and_the_platform_is_apart(tmp_path: Path) -> None:
    RaplTree(tmp_path)
    found = {source.name: source for source in find_sources(Places(tmp_path, tmp_path, tmp_path, lambda: "")).found}
    assert found["rapl"].facts.scope == "2 processor packages with dram (package+dram)"
    RaplTree(tmp_path).show(100.0, 0.0)
    assert found["rapl"].read() == pytest.approx(100.0, abs=0.01)
    assert found["psys"].read() == pytest.approx(300.0, abs=0.01)


def test_batteries_that_say_little(tmp_path: Path) -> None:
    tree = BatteryTree(tmp_path, ("energy",))
    write_tree(tmp_path, {"pen/type": "Battery", "pen/status": "Full", "pen/present": 1, "pen/capacity": 80})
    source = of_name("battery", find_batteries(tmp_path))
    assert "'pen' gives no more than a percentage and is left out" in source.facts.remarks
    assert source.read() == 0.0
    tree.show(360.0, 5.0)
    assert source.read() == pytest.approx(360, abs=1)
    write_tree(tmp_path, {"BAT0/status": "Unknown"})
    with pytest.raises(Gap, match="the battery's status is 'Unknown'"):
        source.read()
    tree.show(720.0, 5.0)
    write_tree(tmp_path, {"BAT0/status": "Discharging"})
    assert source.read() == pytest.approx(360, abs=1), "nothing is known of what came between"


def test_a_machine_is_described(tmp_path: Path) -> None:
    cores = {f"devices/system/cpu/cpu{n}/cpufreq/scaling_cur_freq": 1_500_000 + n for n in range(2)}
    governors = {f"devices/system/cpu/cpu{n}/cpufreq/scaling_governor": "ondemand" for n in range(2)}
    rest = {
        "class/thermal/thermal_zone0/temp": 48_200,
        "class/backlight/10-0045/actual_brightness": 31,
        "firmware/devicetree/base/model": "Raspberry Pi 5 Model B Rev 1.0\0",
    }
    write_tree(tmp_path, {**cores, **governors, **rest})
    found = describe_host(tmp_path)
    write_tree(tmp_path, {"class/thermal/thermal_zone0/temp": 61_000})
    assert describe_state(tmp_path)["temperatures_c"] == [61.0]
    assert (found["governor"], found["frequencies_mhz"]) == (["ondemand"], [1500.0, 1500.001])
    assert (found["temperatures_c"], found["screen"]) == ([48.2], {"10-0045": 31})
    assert found["board"] == "Raspberry Pi 5 Model B Rev 1.0"
    assert found["kernel"]
    silent = describe_host(tmp_path / "nowhere")
    assert (silent["governor"], silent["temperatures_c"], silent["screen"], silent["board"]) == ([], [], {}, None)


def test_a_raspberry_pi_4_cannot_measure() -> None:
    said = 'error=1 error_msg="Command not registered"\n'
    assert "a Raspberry Pi 4 has no current sensing" in str(find_pmic(lambda: said))
    assert "vcgencmd cannot be run" in str(find_pmic())


@pytest.mark.parametrize(("files", "scale", "remark"), [
    (("energy",), 1000, "the energy 50000 when full is in mWh, not in µWh"),
    (("charge",), 1000, "the charge 4000 is in mAh, not in µAh"),
    (("power",), 1000, "the power -6000 is in mW, not in µW"),
    (("current",), 1000, "the current -1538 is in mA, not in µA"),
])  # fmt: skip
def test_drivers_in_thousandths(files: tuple[str, ...], scale: int, remark: str, tmp_path: Path) -> None:
    tree = BatteryTree(tmp_path, files, scale)
    (source,), _ = find_batteries(tmp_path)
    tree.show(0.0, 6.0)
    first = source.read()
    tree.show(3600.0, 6.0)
    value = source.read() - first if source.facts.kind == COUNTER else source.read()
    assert value == pytest.approx(3600.0 if source.facts.kind == COUNTER else 6.0, rel=0.01)
    assert any(remark in said for said in source.facts.remarks)


def test_a_current_with_its_sign_turned(tmp_path: Path) -> None:
    upright, turned = phone_source("android-current", JavaPhone()), phone_source("android-current", JavaPhone(sign=1))
    assert upright.read() == pytest.approx(turned.read())
    assert "the current is positive while the battery is used" in turned.facts.remarks[-1]
    assert not any("positive" in said for said in upright.facts.remarks)


def test_a_charge_that_counts_upwards() -> None:
    phone = JavaPhone()
    source = phone_source("android-charge", phone)
    assert source.read() == 0
    for _ in range(2):
        phone.numbers[1] += 10_000
        with pytest.raises(Gap, match="whether it always does"):
            source.read()
    phone.numbers[1] += 10_000
    first = source.read()
    phone.numbers[1] += 10_000
    assert source.read() - first == pytest.approx(0.01 * 3600 * 3.87)
    assert "its counter rises while the battery is used" in source.facts.remarks[-1]


def test_a_gauge_that_corrects_itself_once() -> None:
    phone = JavaPhone()
    source = phone_source("android-charge", phone)
    source.read()
    phone.numbers[1] += 3_000
    with pytest.raises(Gap, match="whether it always does"):
        source.read()
    for step in (-5_000, 1_000, -9_000):
        phone.numbers[1] += step
        joules = source.read()
    assert joules == pytest.approx(0.01 * 3600 * 3.87)
    assert not any("rises" in said for said in source.facts.remarks)


class Ticks:
    """A clock that goes on by hand."""

    def __init__(self) -> None:
        self.round, self._now = 0, 0.0
        self._done: dict[tuple[int, str], float] = {}

    def go_on(self, phase: str, seconds: float) -> None:
        self._now, self._done = self._now + seconds, {(self.round, phase): seconds}

    def take(self) -> tuple[float, dict[tuple[int, str], float]]:
        done, self._done = self._done, {}
        return self._now, done

    def peek(self) -> dict[tuple[int, str], float]:
        return self._done


@pytest.mark.parametrize("way", [-1, 1])
@pytest.mark.parametrize("rests", [0, 1, 2, 9])
def test_joules_are_the_same_whichever_way_a_charge_counts(way: int, rests: int) -> None:
    """What was read before the way was known is not told of, wherever in the work that was."""
    held, ticks = [1000.0], Ticks()
    meter = Meter(Stored("battery", lambda: True, lambda: held[0], lambda: 1.0, battery_facts(COUNTER, 0.1)), ticks)
    meter.sample()

    def spend(watts: float, phase: str, seconds: float) -> None:
        ticks.go_on(phase, seconds)
        held[0] += way * watts * seconds
        meter.sample()

    for _ in range(rests):
        spend(1.0, IDLE, 10.0)
    for ticks.round in range(1, 5):
        for _ in range(10):
            spend(5.0, BLOCK_1, 1.0)
        spend(1.0, IDLE, 10.0)
    ticks.round = 5
    told = {number: work for number, work, _ in meter.closed_rounds() if number and work.covered}
    assert {2, 3, 4} <= set(told)
    for work in told.values():
        assert work.joules / work.covered == pytest.approx(40.0, abs=2 * work.uncertainty)
    account, missed = meter.account(), 10.0 * min(rests, 3) + max(3 - rests, 0) if way > 0 else 0.0
    assert (account.missed, account.seconds) == (missed, 10.0 * rests + 80.0 - missed)
    assert account.joules == pytest.approx(10.0 * rests + 240.0 - 10.0 * min(rests, 3) * (way > 0), abs=15.0)


def test_a_current_of_nothing_is_no_reading(tmp_path: Path) -> None:
    phone = JavaPhone()
    phone.numbers[2] = 0
    with java():
        found, reason = find_android(open_phone(phone))
    assert "android-current" not in {source.name for source in found}
    assert "property 2 reads 0, on which no phone runs" in reason
    BatteryTree(tmp_path).show(0.0, 0.0)
    power = of_name("battery-power", find_batteries(tmp_path))
    with pytest.raises(Gap, match="reads 0 W, on which nothing runs"):
        power.read()


def test_a_source_that_contradicts_itself_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    phone = JavaPhone(scale=1000)
    book = Book(phone_source("android-current", phone), tmp_path)
    book.sample()
    with book.recorder.phase(BLOCK_1):
        book.sample()
    phone.numbers[2] = -400_000
    assert book.total() == ()
    assert book.total() == ()
    assert [record.getMessage() for record in caplog.records] == [
        "energy is not told: 'android-current' reads -400000, which cannot be mA as earlier readings seemed to be;"
        " choose another source"
    ]


def test_nothing_is_above_an_idle_power_that_was_not_seen(tmp_path: Path) -> None:
    tree = RaplTree(tmp_path / "rapl")
    world = World(tree)
    meter = Meter(certain(find_rapl(tmp_path / "rapl", lambda: world.now)), world.timer)
    meter.sample()
    world.live([Span(30, BLOCK_1, 6.0, 1), Span(1, BLOCK_1, 6.0, 2)], meter.sample)
    account = meter.account()
    assert account.joules == pytest.approx(31 * 6.0, abs=0.1)
    assert account.idle.watts is None
    assert account.work.joules is None
    assert "the idle power is not known" in account.work.reason
    assert meter.round(1) is None
    assert meter.closed_rounds() == []
    world.live([Span(10, IDLE, 2.0, 3)], meter.sample)
    assert meter.account().work.joules == pytest.approx(31 * 4.0, rel=0.01)
    assert [number for number, *_ in meter.closed_rounds()] == [1, 2]


def test_an_account_outlives_kills(tmp_path: Path) -> None:
    """What one process wrote stays, half a line of another is passed over, and a third goes on."""
    RaplTree(tmp_path / "rapl")
    for rounds in ((1, 2), (3, 4)):
        book = Book(certain(find_rapl(tmp_path / "rapl")), tmp_path, idle_s=0.01)
        book.sample()
        book.rest()
        RaplTree(tmp_path / "rapl", start=1_000_000 * rounds[0] - 500_000)
        book.sample()
        for round in rounds:
            book.recorder.turn_to(round)
            book.note(round, 0.5)
            with book.recorder.phase(BLOCK_1):
                RaplTree(tmp_path / "rapl", start=1_000_000 * round)
                book.sample()
        book.recorder.turn_to(9)
        book.total()
        book.write(Conditions(battery=0.5, throttled=True))
        with (tmp_path / "energy.jsonl").open("a") as file:
            file.write('{"round": 9, "joules": 1')
    records = read_book(tmp_path)
    assert [(record["round"], record["source"], record["loss"]) for record in records] == [
        (round, "rapl", 0.5) for round in (1, 2, 3, 4)
    ]
    assert all(record["throttled"] and record["battery"] == 0.5 for record in records)


def test_a_device_that_idles_is_alive_and_can_be_stopped(tmp_path: Path) -> None:
    RaplTree(tmp_path / "rapl")
    signs: list[float] = []
    book = Book(certain(find_rapl(tmp_path / "rapl")), tmp_path, idle_s=1e6, alive=lambda: signs.append(0.0))
    for idle in (book.rest, book.total):
        thread = threading.Thread(target=idle)
        thread.start()
        if idle == book.rest:
            wait_until(lambda: signs)
            book.stop()
        thread.join(PATIENCE_S)
        assert not thread.is_alive()
    assert 3 * LAST_S <= REPORT_S, "the last report comes in time"


def test_a_slow_source_is_read_less_often() -> None:
    read = []

    def tick() -> None:
        read.append(time.sleep(0.05))

    with Sampler(tick, 0.001):
        wait_until(lambda: read)
        time.sleep(0.3)
    assert len(read) == 1, "the next is due when 20 s have passed"


def test_currents_that_fit_no_unit() -> None:
    phone = JavaPhone()
    source = phone_source("android-current", phone)
    phone.numbers[2] = -400
    assert source.read() == pytest.approx(0.4 * 3.87)
    phone.numbers[2] = -400_000
    with raises("energy.contradictory-unit", "-400000", "mA", "another source"):
        source.read()


@given(st.floats(0.05, 5.0))
def test_units_of_phones_are_told_apart(amperes: float) -> None:
    assert infer_amperes(round(amperes * 1e6)).factor == 1e-6
    assert infer_amperes(-round(amperes * 1e3)).factor == 1e-3


@given(st.floats(0.3, 20.0), st.floats(0.02, 1.0), st.floats(3.0, 30.0))
def test_units_of_batteries_are_told_apart(hours: float, level: float, volts: float) -> None:
    assert infer_coulombs(round(hours * level * 1e6), level).name == "µAh"
    assert infer_coulombs(round(hours * level * 1e3), level).name == "mAh"
    for factor, name in ((1, "V"), (1e3, "mV"), (1e6, "µV")):
        assert infer_volts(round(volts * factor), "mV").name == name
    with pytest.raises(Gap, match="no battery's"):
        infer_volts(0, "mV")


def test_a_phone_with_little(tmp_path: Path) -> None:
    with java():
        found, reason = find_android(open_phone(JavaPhone(unsupported=(3, 5))))
    assert [source.name for source in found] == ["android-charge", "android-current"]
    assert "does not support BatteryManager's property 5" in reason
    coarse = phone_source("android-current", JavaPhone(voltage=4))
    assert any("known to a volt alone" in said for said in coarse.facts.remarks)
    assert coarse.facts.gain == pytest.approx(0.08, rel=0.1)


def test_the_charger_in_between(tmp_path: Path) -> None:
    """What comes while it charges is not counted and said to be missing; what comes after is counted."""
    tree = BatteryTree(tmp_path, ("energy", "power"), sign=1)
    world = World(tree)
    meter = Meter(of_name("battery", find_batteries(tmp_path)), world.timer)
    meter.sample()
    world.live([Span(300, IDLE, 2.0), Span(600, BLOCK_1, 6.0, 1)], meter.sample)
    tree.plug(True)
    world.live([Span(300, BLOCK_1, 6.0, 1)], meter.sample)
    tree.plug(False)
    world.live([Span(300, BLOCK_1, 6.0, 1), Span(300, BLOCK_1, 6.0, 2), Span(9, IDLE, 2.0, 3)], meter.sample)
    meter.sample(final=True)
    account = meter.account()
    assert account.missed == pytest.approx(300, abs=2)
    assert account.reasons == ("the charger is connected, so the battery does not show what the device uses",)
    assert account.work.joules == pytest.approx(1200 * 4.0, rel=0.01)
    assert account.work.covered == pytest.approx(0.8, abs=0.01)
    one, two = (work for _, work, _ in meter.closed_rounds() if work.seconds)
    assert one.covered == pytest.approx(0.75, abs=0.01)
    assert two.joules == pytest.approx(1200, rel=0.02)


def test_a_sensor_that_is_unplugged(tmp_path: Path) -> None:
    tree = JetsonTree(tmp_path / "hwmon")
    world = World(tree)
    meter = Meter(certain(find_jetson(tmp_path / "hwmon")), world.timer)
    meter.sample()
    world.live([Span(60, IDLE, 2.0), Span(60, BLOCK_1, 6.0)], meter.sample)
    (tmp_path / "hwmon").rename(tmp_path / "gone")
    world.sensor = JavaPhone()
    world.live([Span(60, BLOCK_1, 6.0)], meter.sample)
    account = meter.account()
    assert account.seconds == pytest.approx(120, abs=1)
    assert account.missed == pytest.approx(60, abs=1)
    assert "cannot be read (No such file or directory)" in account.reasons[0]
    assert account.joules == pytest.approx(480, rel=0.02)


def test_a_counter_that_never_moves_says_nothing() -> None:
    """A gauge that counts in whole per cents, over a minute: no joules, rather than none with certainty."""
    world = World(JavaPhone(quantum=35_000), joules=1000.0)
    world.sensor.show(1000.0, 2.0)
    meter = Meter(phone_source("android-charge", world.sensor), world.timer)  # type: ignore[arg-type]
    meter.sample()
    world.live([Span(20, IDLE, 2.0), Span(20, BLOCK_1, 4.0, 1)], meter.sample)
    assert meter.round(1) is None
    with raises("energy.counter-still", "'android-charge'", "measure for longer"):
        meter.account()


def test_what_is_not_here_is_said(tmp_path: Path) -> None:
    places = Places(tmp_path, tmp_path, tmp_path, lambda: "")
    assert {name for name, _ in find_sources(places).missing} == {"jetson", "pi5", "battery", "rapl"}
    with raises("energy.no-sensor", "ina3221", "no battery", "intel-rapl", "--csv"):
        choose_source("auto", places)
    BatteryTree(tmp_path, status="Charging")
    with raises("energy.no-reading-now", "charger"):
        choose_source("auto", places)
    RaplTree(tmp_path)
    assert choose_source("auto", places).name == "rapl"
    with raises("energy.unknown-source", "'wattmeter'", "choose from: battery, battery-power, rapl"):
        choose_source("wattmeter", places)


# -- The account


keys = st.tuples(st.integers(0, 3), st.sampled_from([IDLE, PERTURB, BLOCK_1, BLOCK_2, APPLY]))
intervals = st.lists(
    st.tuples(
        st.floats(0, 1e4), st.floats(0.01, 100), st.floats(0, 10), st.dictionaries(keys, st.floats(0, 50), max_size=5)
    ),
    max_size=30,
)


@given(intervals, st.floats(0, 0.1))
def test_phases_and_rounds_sum_to_the_total(drawn: list[tuple[float, float, float, dict]], gain: float) -> None:  # type: ignore[type-arg]
    ledger = Ledger(gain)
    for joules, seconds, variance, phases in drawn:
        ledger.add(joules, seconds, variance, phases)
    lag = Lag(1.0, 0.5)
    phases, idle = ledger.phases(lag), ledger.idle(lag)
    total = sum(joules for joules, *_ in drawn)
    above = total - idle.watts * sum(seconds for _, seconds, *_ in drawn)
    assert sum(amount.gross for amount in phases.values()) == pytest.approx(total, rel=1e-9, abs=1e-6)
    assert sum(amount.joules for amount in phases.values()) == pytest.approx(above, rel=1e-6, abs=1e-3)
    work = sum(amount.joules for phase, amount in phases.items() if phase != IDLE)
    assert ledger.work(lag).joules == pytest.approx(work, rel=1e-6, abs=1e-3)
    rounds = sum(ledger.close(number, lag)[0].joules for number in ledger.rounds())
    assert rounds == pytest.approx(work, rel=1e-6, abs=1e-3)
    assert all(amount.uncertainty >= 0 for amount in phases.values())


def test_what_a_slow_counter_has_not_shown_is_filled_in(tmp_path: Path) -> None:
    """A phone's gauge that moves every 30 s, and rounds of 5 s that want to be told at once."""
    world = World(JavaPhone(quantum=1), 30.0)
    meter = Meter(phone_source("android-charge", world.sensor), world.timer)  # type: ignore[arg-type]
    meter.sample()
    world.live([Span(120, IDLE, 2.0)], meter.sample)
    told = []
    for round in range(1, 101):
        world.live([Span(5, BLOCK_1, 6.0, round)], meter.sample)
        told.append(meter.round(round))
    assert told[0] is None, "nothing but idleness was seen by then"
    later = [amount for amount in told[20:] if amount]
    assert sum(amount.joules for amount in later) / len(later) == pytest.approx(5 * 4.0, rel=0.05)
    assert all(abs(amount.joules - 20) < 2 * amount.uncertainty for amount in later)


@given(st.integers(0, 2**32))
@settings(max_examples=20)
def test_uncertainty_covers_the_error(seed: int) -> None:
    """Coarse gauges of any step and any rate over ten minutes: the error is within three standard deviations."""
    random = np.random.default_rng(seed)
    phone = JavaPhone(quantum=int(random.integers(100, 5000)))
    world = World(phone, float(random.uniform(0.5, 20)))
    meter = Meter(phone_source("android-charge", phone), world.timer)
    meter.sample()
    spans = [Span(120, IDLE, 2.0)]
    for round in range(1, 9):
        spans += [
            Span(float(random.uniform(1, 40)), BLOCK_1, float(random.uniform(4, 8)), round),
            Span(float(random.uniform(1, 40)), BLOCK_2, float(random.uniform(4, 8)), round),
            Span(float(random.uniform(1, 20)), IDLE, 2.0, round),
        ]
    world.live(spans, meter.sample)
    meter.sample(final=True)
    work = meter.account().work
    if work.joules is None:
        assert work.reason
    else:
        assert abs(work.joules - (world.joules - 2.0 * world.now)) < 3 * work.uncertainty


# -- Phases


def test_phases_nest_and_threads_have_their_own() -> None:
    now = [0.0]
    timer = PhaseTimer(lambda: now[0])

    def pass_seconds(seconds: float) -> None:
        now[0] += seconds

    def ahead() -> None:
        with timer.phase(PERTURB):
            started.set()
            assert ended.wait(PATIENCE_S)

    started, ended = threading.Event(), threading.Event()
    with timer.phase(OTHER):
        pass_seconds(1)
        with timer.phase(BLOCK_1):
            pass_seconds(2)
            with timer.phase(PERTURB):
                pass_seconds(4)
            pass_seconds(8)
        timer.turn_to(5)
        pass_seconds(16)
        assert timer.take() == (31, {(0, OTHER): 1, (0, BLOCK_1): 10, (0, PERTURB): 4, (5, OTHER): 16})
        thread = threading.Thread(target=ahead)
        thread.start()
        assert started.wait(PATIENCE_S)
        pass_seconds(32)
        assert timer.peek() == {(5, OTHER): 32, (5, PERTURB): 32}
        ended.set()
        thread.join()
    pass_seconds(64)
    assert timer.take() == (127, {(5, OTHER): 32, (5, PERTURB): 32})


def test_silence_records_nothing() -> None:
    before = dict(vars(SILENT))
    with SILENT.phase(PERTURB), SILENT.phase(BLOCK_1):
        SILENT.turn_to(3)
        assert vars(SILENT) == before


@pytest.mark.parametrize("ahead", [False, True])
def test_a_step_goes_through_its_phases(
    bundle: Bundle, store: DataStore, make_plan: Callable[..., Plan], ahead: bool
) -> None:
    timer = PhaseTimer()
    replica = Replica(bundle, ahead=ahead)
    quiet = measure(Forward(create_engine("litert"), replica), store, make_plan(), "a")
    assert measure(Forward(create_engine("litert"), replica, timer), store, make_plan(), "a") == quiet
    _, phases = timer.take()
    assert {phase for _, phase in phases} - {IDLE} == {TOKENISE, PERTURB, BLOCK_1, BLOCK_2}
    assert min(phases.values()) > 0
