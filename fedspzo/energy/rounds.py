"""Joules by round and by point of loss, from what a device or a server has stored."""

from __future__ import annotations

import math
import statistics
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
from fedspzo.run_folder import SERVER

#: The share of the rounds at either end that tell how far the loss has fallen.
_ENDS = 5


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
    fall = _fall([spent.loss for spent in rounds if spent.loss is not None])
    described: dict[str, Any] = {
        "rounds": len(rounds),
        "joules": joules,
        "joules_uncertainty": uncertainty,
        "estimated_share": sum(spent.estimated for spent in rounds) / devices,
        "joules_a_round": joules / len(rounds),
        "joules_a_round_uncertainty": uncertainty / len(rounds),
        "devices": devices,
        "joules_a_device_round": joules / devices,
        "loss_fell_by": fall and fall[0],
        "loss_fell_by_uncertainty": fall and fall[1],
        "joules_a_point": None,
        "joules_a_point_uncertainty": None,
    }
    if fall and fall[0] > 2 * fall[1]:
        price = joules / fall[0]
        described["joules_a_point"] = price
        described["joules_a_point_uncertainty"] = abs(price) * math.hypot(
            uncertainty / joules if joules else 0.0, fall[1] / fall[0]
        )
    return described


def rounds_lines(described: dict[str, Any], beside: dict[str, Any]) -> list[str]:
    """The same for people."""
    share = described["estimated_share"]
    word = "" if not share else " (by ESTIMATE)" if share == 1 else f" ({share:.0%} of it by ESTIMATE)"
    lines = [f"  {remark}" for remark in beside.get("remarks", ())]
    if "sources" in beside:
        lines.insert(0, f"measured by: {', '.join(beside['sources'])}")
    lines += [
        f"{described['rounds']} rounds took {described['joules']:.4g} ±"
        f" {NORMAL * described['joules_uncertainty']:.2g} J"
        f" above idle{word}",
        f"a round{word}: {described['joules_a_round']:.4g} ± {NORMAL * described['joules_a_round_uncertainty']:.2g} J;"
        f" a device's: {described['joules_a_device_round']:.4g} ±"
        f" {NORMAL * described['joules_uncertainty'] / described['devices']:.2g} J (± is half of a 95 % interval)",
    ]
    for name, amounts in beside.get("phases", {}).items():
        lines.append(
            f"  {name}: {amounts['joules']:.4g} ± {NORMAL * amounts['uncertainty']:.2g} J in {amounts['seconds']:.4g} s"
        )
    if described["joules_a_point"] is not None:
        lines.append(
            f"a point of loss{word}: {described['joules_a_point']:.4g} ±"
            f" {NORMAL * described['joules_a_point_uncertainty']:.2g} J"
            f" (it fell by {described['loss_fell_by']:.4f} ± {NORMAL * described['loss_fell_by_uncertainty']:.4f})"
        )
    elif described["loss_fell_by"] is not None:
        lines.append(
            f"the loss has not fallen beyond its noise ({described['loss_fell_by']:.4f} ±"
            f" {NORMAL * described['loss_fell_by_uncertainty']:.4f}), so a point of it has no price"
        )
    if "battery" in beside:
        first, last = beside["battery"]
        heat = f"; at most {beside['hottest_c']:.0f} °C" if beside["hottest_c"] is not None else ""
        lines.append(
            f"battery from {first:.0%} to {last:.0%}{heat};"
            f" the processor was slowed down in {beside['rounds_throttled']} rounds"
        )
    return lines


def _fall(losses: Sequence[float]) -> tuple[float, float] | None:
    """How far the loss fell from the first fifth of the rounds to the last, and its uncertainty by their scatter."""
    count = len(losses) // _ENDS
    if count < 2:
        return None
    first, last = losses[:count], losses[-count:]
    scatter = math.hypot(statistics.stdev(first), statistics.stdev(last)) / math.sqrt(count)
    return statistics.fmean(first) - statistics.fmean(last), scatter
