"""Joules: every source against a world in which they are known, faults and all; shared among phases and rounds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from sensors import BatteryTree, JavaPhone, JetsonTree, PmicCommand, RaplTree, Sensor, Span, World, java

from device_runtime.energy.android import find_android, open_phone
from device_runtime.energy.jetson import find_jetson
from device_runtime.energy.meter import Account, Meter
from device_runtime.energy.pmic import find_pmic
from device_runtime.energy.power_supply import find_batteries
from device_runtime.energy.rapl import find_rapl
from device_runtime.energy.source import Source
from device_runtime.phases import APPLY, IDLE, NETWORK, PERTURB, TOKENISE, forward_block

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


def measured(name: str, folder: Path, spans: list[Span]) -> tuple[World, Account]:
    make, open_source, period = SOURCES[name]
    world = World(make(folder), period)
    meter = Meter(open_source(world.sensor, world), world.timer)
    meter.sample()
    world.live(spans, meter.sample)
    meter.sample(final=True)
    return world, meter.account()


@pytest.mark.parametrize("name", SOURCES)
def test_an_hour_at_one_hertz(name: str, tmp_path: Path) -> None:
    world, account = measured(name, tmp_path, hour())
    assert account.joules == pytest.approx(world.joules, rel=0.01)
    assert account.seconds == pytest.approx(world.now)
    assert not account.missed
    known = world.joules - IDLE_W * world.now
    assert account.idle.watts == pytest.approx(IDLE_W, rel=0.05)
    assert abs(account.work.joules - known) < 3 * account.work.uncertainty
    assert account.work.uncertainty < 0.15 * known
    above = sum(amount.joules for amount in account.phases.values())
    assert above == pytest.approx(account.joules - account.idle.watts * account.seconds)
    assert sum(amount.gross for amount in account.phases.values()) == pytest.approx(account.joules, rel=1e-9)


@pytest.mark.parametrize("name", ["rapl", "jetson", "pi5", "battery's power"])
def test_phases_are_told_apart(name: str, tmp_path: Path) -> None:
    """By sources that keep up with them: each phase's joules above idle are the world's, but for its edges."""
    world, account = measured(name, tmp_path, hour())
    for phase in (PERTURB, BLOCK_1, BLOCK_2):
        truth = sum(joules for (_, name), joules in world.by_phase.items() if name == phase)
        truth -= IDLE_W * account.phases[phase].seconds
        assert account.phases[phase].joules == pytest.approx(truth, rel=0.1)
        assert account.phases[phase].alone > 0.5
