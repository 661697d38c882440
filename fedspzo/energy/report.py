"""Accounts of energy, as plain values and as text."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from fedspzo.device_runtime.energy.figures import NORMAL, Figure, Idle
from fedspzo.device_runtime.energy.meter import Account
from fedspzo.device_runtime.energy.source import COUNTER, Facts
from fedspzo.device_runtime.protocol.messages import Energy
from fedspzo.energy.repeat import Reached, Repeated, Repetitions
from fedspzo.tables import format_table

if TYPE_CHECKING:
    from fedspzo.broker.rounds.aggregate import Spending
    from fedspzo.broker.server.status import ServerStatus

#: Phases in the order of a step; blocks' forward passes come where "forward" stands.
_ORDER = ("tokenise", "perturb", "forward", "apply", "network", "other", "idle")


def describe_account(account: Account, taken: Sequence[int], told: Repetitions) -> dict[str, Any]:
    """An account of some steps as plain values, joules above idle; half-widths are of 95 % intervals."""
    step, work, idle = told.step, account.work, stated_idle(account)
    known = work.half_width is not None and idle.half_width is not None
    return {
        "source": account.source,
        "measured": account.facts.measured,
        **describe_facts(account.facts),
        "late_seconds": [account.pace.least, account.pace.most],
        "idle": asdict(idle),
        "steps": sum(taken),
        "steps_of_repetitions": list(taken),
        "joules_per_step": step.joules,
        "joules_per_step_half_width": step.half_width,
        "reason": step.reason,
        "repetitions": list(step.each),
        "joules": work.joules,
        "joules_half_width": work.half_width,
        "joules_with_idle": account.joules,
        "joules_with_idle_half_width": (
            (work.half_width or 0.0) + (idle.half_width or 0.0) * account.seconds if known else None
        ),
        "seconds": account.seconds,
        "seconds_without_readings": account.missed,
        "reasons": list(account.reasons),
        "phases": {
            name: asdict(figure) | {"per_step": asdict(told.phases[name])} for name, figure in _in_order(account.phases)
        },
    }


def stated_idle(account: Account) -> Idle:
    """The idle power by itself: its interval has what the source's scale is uncertain by, which cancels above idle."""
    idle = account.idle
    if idle.watts is None or idle.half_width is None:
        return idle
    return replace(idle, half_width=math.hypot(idle.half_width, NORMAL * account.facts.gain * idle.watts))


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


def account_lines(account: Account, steps: int, told: Repetitions) -> list[str]:
    """An account of some steps, for people."""
    lines = [*facts_lines(account.source, account.facts), *_idle_lines(stated_idle(account))]
    reasons: dict[str, list[str]] = defaultdict(list)
    rows = []
    for name, figure in _in_order(account.phases):
        phase = told.phases[name]
        if phase.reason != told.step.reason:
            reasons[phase.reason].append(name)
        cells = ["—", "—"] if phase.joules is None else [f"{phase.joules:.4g}", f"{phase.half_width or 0.0:.2g}"]
        rows.append([name, *cells, _share(phase, told.step), f"{figure.seconds / steps:.4g}", f"{figure.alone:.0%}"])
    lines += format_table(["phase", "J a step", "±", "share", "s a step", "seen alone"], rows).splitlines()
    lines += [f"{', '.join(names)}: {reason}" for reason, names in reasons.items() if reason]
    lines += repeated_lines(told.step, steps, account.facts.measured)
    if account.missed:
        lines.append(f"{account.missed:.0f} s have no readings ({'; '.join(account.reasons)})")
    return lines


def _share(phase: Repeated, step: Repeated) -> str:
    """Of a step's joules, with what both are uncertain by."""
    if not phase.joules or not step.joules or phase.half_width is None or step.half_width is None:
        return "—"
    share = phase.joules / step.joules
    return f"{share:.1%} ± {share * math.hypot(phase.half_width / phase.joules, step.half_width / step.joules):.1%}"


def repeated_lines(repeated: Repeated, steps: int, measured: bool) -> list[str]:
    """What a step takes, for people."""
    if repeated.joules is None:
        return [f"what a step takes is not known: {repeated.reason}; take more --steps, or a longer --idle"]
    if not measured:
        return [f"a step takes by ESTIMATE {repeated.joules:.4g} J above idle ({steps} steps; {repeated.reason})"]
    width = repeated.half_width or 0.0
    times = f" in {len(repeated.each)} repetitions" if repeated.each else ""
    lines = [
        f"a step takes {repeated.joules:.4g} ± {width:.2g} J above idle ({steps} steps{times}; ± is half of a 95 %"
        " interval)"
    ]
    lines += [repeated.reason] if repeated.reason else []
    if width > 0.1 * abs(repeated.joules):
        lines.append("that is uncertain by more than a tenth: take more --steps, or a longer --idle")
    return lines


def target_lines(reached: Reached) -> list[str]:
    """What a loss took to reach, for people."""
    fell = f"it fell by {reached.fell:.4f} ± {reached.fell_half_width:.2g}"
    if reached.fell_half_width is None:
        fell = "one step shows no fall"
    if reached.steps is None:
        return [f"the loss did not reach {reached.loss:g}: {fell}; take more --steps"]
    if reached.joules is None:
        return [
            f"the loss reached {reached.loss:g} in {reached.steps} steps; {fell}; what that took is not known:"
            f" {reached.reason}"
        ]
    word = "" if reached.measured else "by ESTIMATE "
    why = f" ({reached.reason})" if reached.half_width is None else ""
    a_point = f"; {reached.reason}" if reached.reason and not why else ""
    if reached.joules_a_point is not None:
        a_point = f": {word}{_with_width(reached.joules_a_point, reached.joules_a_point_half_width)} J a point"
    return [
        f"the loss reached {reached.loss:g} in {reached.steps} steps, which took"
        f" {word}{_with_width(reached.joules, reached.half_width)} J{why}; {fell}{a_point}"
    ]


def _with_width(value: float, half_width: float | None) -> str:
    return f"{value:.4g}" if half_width is None else f"{value:.4g} ± {half_width:.2g}"


def _idle_lines(idle: Idle) -> list[str]:
    if idle.watts is None:
        return [f"idle: not known ({idle.reason}), so nothing is told above idle; take a longer --idle"]
    if idle.reason:
        return []
    drift = (
        "seen once, so what it drifts by is not known"
        if idle.drift is None
        else f"± has its drift in it, {idle.drift:+.3f} W from the first to the last"
    )
    return [f"idle: {idle.watts:.3f} ± {idle.half_width:.3f} W over {idle.seconds:.0f} s, which is taken off; {drift}"]


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


def _in_order(phases: Mapping[str, Figure]) -> Iterable[tuple[str, Figure]]:
    return sorted(phases.items(), key=lambda item: (_ORDER.index(item[0].split()[0]), item[0]))
