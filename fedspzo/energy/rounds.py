"""Joules by round and by point of loss, from what a device or a server has stored."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedspzo.broker.server.state_folder import DATABASE, read_history
from fedspzo.device_runtime.energy.book import read_book
from fedspzo.device_runtime.energy.figures import NORMAL
from fedspzo.device_runtime.errors import EnergyError
from fedspzo.device_runtime.replica.state import ENERGY
from fedspzo.energy.price import DEAR, find_fall, find_price
from fedspzo.run_folder import SERVER

#: The share of the rounds at either end that tell how far the loss has fallen.
_ENDS = 5
#: What is told of energy, each with its uncertainty beside it.
_AMOUNTS = ("joules", "joules_a_round", "joules_a_device_round")
#: Why a fall of the loss is not known.
_FEW = f"a point of loss has no price, as fewer than {2 * _ENDS} rounds have a loss"


@dataclass(frozen=True)
class Spent:
    """A round.

    Attributes:
        number: the round's.
        joules, uncertainty: above idle, of all devices that said so.
        devices: how many they are.
        estimated: how many of them did not measure.
        loss: that it measured, if that is known.
    """

    number: int
    joules: float
    uncertainty: float
    devices: int
    estimated: int
    loss: float | None


def read_rounds(folder: Path) -> tuple[list[Spent], dict[str, Any]]:
    """The rounds with joules that a run, a server or a device has kept, and what is known beside them.

    Raises:
        EnergyError, StateError: there are none.
    """
    server = folder / SERVER if (folder / SERVER / DATABASE).is_file() else folder
    if (server / DATABASE).is_file():
        history = read_history(server)
        rounds = [
            Spent(r.round, r.spending.joules, r.spending.uncertainty, r.spending.devices, r.spending.estimated, r.loss)
            for r in history
            if r.spending
        ]
        if not rounds:
            raise EnergyError(
                "energy.not-reported",
                f"no device of {server} reported its energy; run fedspzo server with --energy, and devices with"
                " --energy SOURCE",
            )
        return rounds, {"of": "server", "rounds_in_all": len(history)}
    if not (folder / ENERGY).is_file():
        raise EnergyError(
            "energy.no-records",
            f"{folder} has no record of energy; give a run's folder, or the state of a server or a device run with"
            " --energy",
        )
    records = {record["round"]: record for record in read_book(folder)}  # a round that was measured again counts once
    if not records:
        raise EnergyError(
            "energy.no-rounds", f"{folder / ENERGY} has no round yet; wait until the device has taken part in one"
        )
    rounds = [
        Spent(r["round"], r["joules"], r["uncertainty"], 1, not r["measured"], r["loss"]) for r in records.values()
    ]
    return rounds, {"of": "device", **_beside(list(records.values()))}


def _beside(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What else a device's account has: phases, source, battery and heat."""
    phases: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])
    for record in records:
        for name, amounts in record["phases"].items():
            phases[name] = [sum(pair) for pair in zip(phases[name], amounts, strict=True)]
    heat = [record["temperature_c"] for record in records if record["temperature_c"] is not None]
    return {
        "sources": sorted({record["source"] for record in records}),
        "remarks": sorted({remark for record in records for remark in record["remarks"]}),
        "phases": {
            name: {"joules": joules, "uncertainty": uncertainty, "seconds": seconds}
            for name, (joules, uncertainty, seconds) in phases.items()
            if name != "idle"
        },
        "battery": [records[0]["battery"], records[-1]["battery"]],
        "hottest_c": max(heat, default=None),
        "rounds_throttled": sum(record["throttled"] for record in records),
    }


def describe_rounds(rounds: Sequence[Spent]) -> dict[str, Any]:
    """Sums and means as plain values, uncertainties as one standard deviation.

    A device's rounds err alike (baseline, scale), so uncertainties add up.
    """
    devices = sum(spent.devices for spent in rounds)
    joules, uncertainty = (math.fsum(getattr(s, name) for s in rounds) for name in ("joules", "uncertainty"))
    estimated = sum(spent.estimated for spent in rounds) / devices
    losses = [spent.loss for spent in rounds if spent.loss is not None]
    fall = find_fall(losses, len(losses) // _ENDS) if len(losses) >= 2 * _ENDS else None
    width = None if estimated == 1 else NORMAL * uncertainty
    price = find_price(joules, width, fall) if fall else (None, None)
    return {
        "rounds": len(rounds),
        "joules": joules,
        "joules_uncertainty": uncertainty,
        "estimated_share": estimated,
        "joules_a_round": joules / len(rounds),
        "joules_a_round_uncertainty": uncertainty / len(rounds),
        "devices": devices,
        "joules_a_device_round": joules / devices,
        "joules_a_device_round_uncertainty": uncertainty / devices,
        "loss_fell_by": fall and fall[0],
        "loss_fell_by_uncertainty": fall and _standard(fall[1]),
        "joules_a_point": price[0],
        "joules_a_point_uncertainty": _standard(price[1]),
        "reason": "" if price[0] is not None else DEAR if fall else _FEW,
    }


def rounds_lines(described: dict[str, Any], beside: dict[str, Any]) -> list[str]:
    """The same for people."""
    share = described["estimated_share"]
    word = "" if not share else " (by ESTIMATE)" if share == 1 else f" ({share:.0%} of it by ESTIMATE)"
    lines = [f"  {remark}" for remark in beside.get("remarks", ())]
    if "sources" in beside:
        lines.insert(0, f"measured by: {', '.join(beside['sources'])}")

    def say(joules: float, uncertainty: float | None) -> str:
        width = "" if share == 1 or uncertainty is None else f" ± {NORMAL * uncertainty:.2g}"
        return f"{joules:.4g}{width} J"

    amounts = {name: say(described[name], described[f"{name}_uncertainty"]) for name in _AMOUNTS}
    meaning = "an estimate has no interval" if share == 1 else "± is half of a 95 % interval"
    lines += [
        f"{described['rounds']} rounds took {amounts['joules']} above idle{word}",
        f"a round{word}: {amounts['joules_a_round']}; a device's: {amounts['joules_a_device_round']} ({meaning})",
    ]
    for name, spent in beside.get("phases", {}).items():
        lines.append(f"  {name}: {say(spent['joules'], spent['uncertainty'])} in {spent['seconds']:.4g} s")
    fell, scatter = described["loss_fell_by"], described["loss_fell_by_uncertainty"]
    by = f"it fell by {fell:.4f} ± {NORMAL * scatter:.4f}" if fell is not None else ""
    if described["joules_a_point"] is None:
        lines.append(described["reason"] + (f" ({by})" if by else ""))
    else:
        price = say(described["joules_a_point"], described["joules_a_point_uncertainty"])
        lines.append(f"a point of loss{word}: {price} ({by})")
    if "battery" in beside:
        first, last = beside["battery"]
        heat = f"; at most {beside['hottest_c']:.0f} °C" if beside["hottest_c"] is not None else ""
        lines.append(
            f"battery from {first:.0%} to {last:.0%}{heat};"
            f" the processor was slowed down in {beside['rounds_throttled']} rounds"
        )
    return lines


def _standard(half_width: float | None) -> float | None:
    return None if half_width is None else half_width / NORMAL
