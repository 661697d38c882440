"""Accounts of energy, as plain values and as text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from fedspzo.device_runtime.energy.ledger import Amount
from fedspzo.device_runtime.energy.meter import Account
from fedspzo.device_runtime.energy.source import COUNTER, Facts
from fedspzo.device_runtime.platform.profiling import IDLE
from fedspzo.device_runtime.protocol.messages import Energy

if TYPE_CHECKING:
    from fedspzo.broker.rounds.aggregate import Spending
    from fedspzo.broker.server.status import ServerStatus

#: Phases in the order of a step; blocks' forward passes come where "forward" stands.
_ORDER = ("tokenise", "perturb", "forward", "apply", "network", "other", "idle")


def describe_account(account: Account, steps: int) -> dict[str, Any]:
    """An account of some steps as plain values, joules above idle."""
    step = _per(account.work, steps)
    return {
        "source": account.source,
        "measured": account.facts.measured,
        **describe_facts(account.facts),
        "idle_watts": account.idle.watts,
        "idle_watts_uncertainty": account.idle.uncertainty,
        "steps": steps,
        "joules_per_step": step[0],
        "joules_per_step_uncertainty": step[1],
        "joules": account.work.joules,
        "joules_uncertainty": account.work.uncertainty,
        "joules_with_idle": account.joules,
        "seconds": account.seconds,
        "seconds_without_readings": account.missed,
        "reasons": list(account.reasons),
        "phases": {name: asdict(amount) for name, amount in _in_order(account.phases)},
    }


def describe_facts(facts: Facts) -> dict[str, Any]:
    """What a source can tell, as plain values."""
    unit = "joules" if facts.kind == COUNTER else "watts"
    return {
        "kind": facts.kind,
        "scope": facts.scope,
        f"resolution_{unit}": facts.resolution,
        "update_seconds": facts.period,
        "scale_uncertainty": facts.gain,
        "remarks": list(facts.remarks),
    }


def facts_lines(name: str, facts: Facts) -> list[str]:
    """What a source can tell, for people."""
    unit = "J" if facts.kind == COUNTER else "W"
    what = "a counter of joules" if facts.kind == COUNTER else "power"
    rate = f", updated every {facts.period:.3g} s or more" if facts.period else ""
    tells = f"it tells {facts.resolution:.2g} {unit} apart{rate}; scale to {facts.gain:.0%}"
    return [f"{name}: {what} of {facts.scope}; {tells}", *(f"  {remark}" for remark in facts.remarks)]


def account_lines(account: Account, steps: int) -> list[str]:
    """An account of some steps, for people."""
    word = "" if account.facts.measured else "estimated "
    lines = facts_lines(account.source, account.facts)
    if account.facts.measured:
        lines.append(
            f"idle: {account.idle.watts:.3f} ± {account.idle.uncertainty:.3f} W over {account.idle.seconds:.0f} s,"
            " which is taken off"
        )
    lines.append(f"{'phase':<18} {word + 'J a step':>18} {'±':>9} {'share':>7} {'s a step':>10} {'seen alone':>11}")
    for name, amount in _in_order(account.phases):
        if name != IDLE:
            joules, uncertainty = _per(amount, steps)
            share = amount.joules / account.work.joules if account.work.joules else 0.0
            lines.append(
                f"{name:<18} {joules:>18.4g} {uncertainty:>9.2g} {share:>7.1%} {amount.seconds / steps:>10.4g}"
                f" {amount.alone:>11.0%}"
            )
    joules, uncertainty = _per(account.work, steps)
    lines.append(f"{'all':<18} {joules:>18.4g} {uncertainty:>9.2g}")
    lines.append(
        f"a step takes {'' if account.facts.measured else 'by ESTIMATE '}{joules:.4g} ± {uncertainty:.2g} J above idle"
        f" ({steps} steps; ± is one standard deviation)"
    )
    if account.missed:
        lines.append(f"{account.missed:.0f} s have no readings ({'; '.join(account.reasons)})")
    if account.facts.measured and uncertainty > 0.1 * abs(joules):
        lines.append("that is uncertain by more than a tenth: take more --steps, or a longer --idle")
    return lines


def describe_energy(energy: Sequence[Energy]) -> dict[str, Any]:
    """What a message says of energy, as plain values; nothing where it says nothing."""
    names = {"joules": "joules", "uncertainty": "joules_uncertainty", "estimated": "joules_estimated"}
    return {names[name]: value for said in energy for name, value in asdict(said).items()}


def describe_spending(spending: Spending | None) -> dict[str, Any]:
    """What a round took its devices, as plain values; nothing where none said so."""
    if spending is None:
        return {}
    return {
        "joules": spending.joules,
        "joules_uncertainty": spending.uncertainty,
        "joules_devices": spending.devices,
        "joules_estimated": spending.estimated,
    }


def describe_joules(status: ServerStatus) -> dict[str, float]:
    """What all counted results took, as plain values."""
    return {"measured_joules": status.measured_joules, "estimated_joules": status.estimated_joules}


def _per(amount: Amount, steps: int) -> tuple[float, float]:
    """Joules and their uncertainty a step, of the steps that there are readings of."""
    seen = steps * amount.covered
    return (amount.joules / seen, amount.uncertainty / seen) if seen else (0.0, 0.0)


def _in_order(phases: Mapping[str, Amount]) -> Iterable[tuple[str, Amount]]:
    return sorted(phases.items(), key=lambda item: (_ORDER.index(item[0].split()[0]), item[0]))
