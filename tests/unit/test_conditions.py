"""How a device fares, read from trees laid out as the kernel's, and what it does outside its limits."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from federation import Processes, broker, processes  # noqa: F401  (fixtures)
from patience import PATIENCE_S

from fedspzo.broker.mqtt.embedded import EmbeddedBroker
from fedspzo.broker.server.state_folder import read_journal
from fedspzo.cli import main
from fedspzo.device_runtime.data.store import load_data
from fedspzo.device_runtime.device.agent import Agent
from fedspzo.device_runtime.engines.protocol import create_engine
from fedspzo.device_runtime.link.access import Access
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.platform.conditions import Conditions, Limits, Watch, read_conditions
from fedspzo.device_runtime.replica.state import DeviceState

ROUTES = """Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
eth0\t0000A8C0\t00000000\t0001\t0\t0\t100\t00FFFFFF\t0\t0\t0
wlan0\t00000000\t0100A8C0\t0003\t0\t0\t600\t00000000\t0\t0\t0
{first}\t00000000\t0100A8C0\t0003\t0\t0\t100\t00000000\t0\t0\t0
"""


@pytest.fixture
def tree(tmp_path: Path) -> Callable[..., None]:
    """Writes files below a folder's ``sys`` and ``proc``."""

    def write(folder: str, **values: str) -> None:
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        for name, value in values.items():
            (tmp_path / folder / name).write_text(value + "\n", encoding="ascii")

    return write


def test_a_machine_that_says_nothing_fares_well(tmp_path: Path) -> None:
    conditions = read_conditions(tmp_path)
    assert (conditions.battery, conditions.charging, conditions.throttled, conditions.metered) == (
        1,
        True,
        False,
        False,
    )
    assert math.isnan(conditions.temperature_c)
    assert Limits(0.5, 40.0, True, True).refusal(conditions) == ""


def test_power(tmp_path: Path, tree: Callable[..., None]) -> None:
    def power() -> tuple[float, bool]:
        conditions = read_conditions(tmp_path)
        return conditions.battery, conditions.charging

    supplies = "sys/class/power_supply"
    tree(f"{supplies}/AC", type="Mains", online="1")
    tree(f"{supplies}/hidpp_battery_0", type="Battery", scope="Device", capacity="5", status="Discharging")
    assert power() == (1.0, True)
    tree(f"{supplies}/BAT0", type="Battery", capacity="37", status="Discharging")
    assert power() == (0.37, False)
    tree(f"{supplies}/BAT0", status="Not charging")
    assert power() == (0.37, True)
    tree(f"{supplies}/BAT0", capacity="garbage")
    assert power() == (1.0, True)


def test_heat(tmp_path: Path, tree: Callable[..., None]) -> None:
    thermal = "sys/class/thermal"
    tree(f"{thermal}/thermal_zone0", type="cpu-thermal", temp="51234")
    tree(f"{thermal}/thermal_zone1", type="gpu-thermal", temp="-274000")
    tree(f"{thermal}/thermal_zone2", type="iwlwifi_1")
    tree("sys/class/power_supply/BAT0", type="Battery", capacity="80", status="Discharging", temp="312")
    assert read_conditions(tmp_path).temperature_c == pytest.approx(51.234)
    tree("sys/class/power_supply/BAT0", temp="587")
    assert read_conditions(tmp_path).temperature_c == pytest.approx(58.7)


def test_throttling(tmp_path: Path, tree: Callable[..., None]) -> None:
    thermal = "sys/class/thermal"
    tree(f"{thermal}/cooling_device0", type="pwm-fan", cur_state="3", max_state="4")
    tree(f"{thermal}/cooling_device1", type="cpufreq-cpu0", cur_state="0", max_state="9")
    assert not read_conditions(tmp_path).throttled
    tree(f"{thermal}/cooling_device1", cur_state="2")
    assert read_conditions(tmp_path).throttled
    tree(f"{thermal}/cooling_device1", cur_state="0")
    tree("sys/devices/platform/soc/soc:firmware", get_throttled="50000")
    assert not read_conditions(tmp_path).throttled, "it has been, and is not now"
    tree("sys/devices/platform/soc/soc:firmware", get_throttled="50005")
    assert read_conditions(tmp_path).throttled


def test_a_metered_network(tmp_path: Path, tree: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    tree("proc/net", route=ROUTES.format(first="enp3s0"))
    tree("sys/class/net/enp3s0", uevent="INTERFACE=enp3s0\nIFINDEX=2")
    assert not read_conditions(tmp_path).metered
    tree("sys/class/net/enp3s0", uevent="DEVTYPE=wwan\nINTERFACE=enp3s0")
    assert read_conditions(tmp_path).metered
    tree("proc/net", route=ROUTES.format(first="rmnet_data0"))
    assert read_conditions(tmp_path).metered
    tree("proc/net", route=ROUTES.format(first="eth1"))
    program = tmp_path / "bin" / "nmcli"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\n[ "$5" = eth1 ] && echo "yes (guessed)"\n', encoding="ascii")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    assert read_conditions(tmp_path).metered, "NetworkManager says so"
    program.write_text("#!/bin/sh\necho unknown\n", encoding="ascii")
    assert not read_conditions(tmp_path).metered


@pytest.mark.parametrize(
    ("limits", "conditions", "reason"),
    [
        (Limits(battery=0.3), Conditions(battery=0.29), "its battery is at 29%, below 30%"),
        (Limits(battery=0.3), Conditions(battery=0.3, charging=False), ""),
        (Limits(temperature_c=45), Conditions(temperature_c=45.1), "it is at 45.1 °C, above 45 °C"),
        (Limits(temperature_c=45), Conditions(temperature_c=45), ""),
        (Limits(charging=True), Conditions(charging=False), "it is not charging"),
        (Limits(unmetered=True), Conditions(metered=True), "its network is metered"),
        (Limits(), Conditions(0.01, False, 99.0, True, True), ""),
    ],
)
def test_limits(limits: Limits, conditions: Conditions, reason: str) -> None:
    assert limits.refusal(conditions) == reason


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--min-battery", "130"], "--min-battery is 130; give a percentage from 0 to 100 [option.min-battery]"),
        (["--max-temperature", "nan"], "give a number of °C [option.max-temperature]"),
    ],
)
def test_limits_that_are_none(options: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["device", "bundle", "--broker", "mqtt://localhost", "--state", "s", "--data", "d", *options]) == 78
    assert sentence in capsys.readouterr().err


def test_a_fleet_on_battery_waits_until_it_charges(
    processes: Processes,  # noqa: F811
    broker: EmbeddedBroker,  # noqa: F811
    tmp_path: Path,
    write_examples: Callable[[Path, int], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The only device goes off the mains in the middle: no round is closed meanwhile, and the job comes to its end."""
    monkeypatch.setattr("fedspzo.device_runtime.device.outbox.IDLE_S", 0.5)
    server = processes.server("--rounds", "6", "--devices", "1", "--cohort", "1", "--deadline", "1")
    bundle = Bundle(processes.bundle)
    state = DeviceState(tmp_path / "phone", bundle, "phone")
    data = load_data(str(write_examples(tmp_path / "phone.jsonl", 12)), bundle)
    unplugged, plugged = threading.Event(), threading.Event()

    def conditions() -> Conditions:
        if state.replica.round == 2 and not unplugged.is_set():
            unplugged.set()
        return Conditions(battery=0.8, charging=plugged.is_set() or not unplugged.is_set())

    agent = Agent(
        Access(broker.url),
        "default",
        create_engine("litert", 1),
        state,
        lambda: data,
        watch=Watch(Limits(charging=True), conditions),
    )
    agent.connect()
    thread = threading.Thread(target=agent.run, daemon=True)
    thread.start()
    assert unplugged.wait(PATIENCE_S)
    threading.Event().wait(4)
    assert len(read_journal(processes.folder / "server")) == 2
    assert server.poll() is None, "it waits"
    plugged.set()
    thread.join(PATIENCE_S)
    assert not thread.is_alive()
    out, err = server.communicate(timeout=PATIENCE_S)
    assert server.returncode == 0, err
    assert state.replica.round == 6
    assert state.replica.digest().hex() in out.splitlines()[-1]
