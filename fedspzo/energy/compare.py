"""Whether two measurements of joules differ: Welch's test over their repetitions, and the difference's interval."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fedspzo.device_runtime.energy.figures import student
from fedspzo.device_runtime.errors import EnergyError


@dataclass(frozen=True)
class Measurement:
    """What is kept of one.

    Attributes:
        name: of the file.
        each: J a step by repetition.
        source: its name and machine.
        loss: the target, if there was one.
        steps: to it, in each repetition alike; None where it was not reached.
    """

    name: str
    each: tuple[float, ...]
    source: str
    loss: float | None = None
    steps: int | None = None


@dataclass(frozen=True)
class Comparison:
    """Two measurements.

    Attributes:
        one, other: their means, J above idle, a step or to a loss.
        one_half_width, other_half_width: half of their 95 % intervals by the scatter of repetitions, as below.
        difference, half_width: of the means.
        ratio, ratio_half_width: of the means.
        differ: whether 0 lies outside the interval.
        alike: whether source and machine are the same, so that errors of scale cancel in the ratio.
        to_loss: the same of the joules to the loss that both had as a target; None where these are not compared.
        reason: why they are not, as a sentence; "" where there was no target.
    """

    one: float
    other: float
    one_half_width: float
    other_half_width: float
    difference: float
    half_width: float
    ratio: float
    ratio_half_width: float
    differ: bool
    alike: bool
    to_loss: Comparison | None = None
    reason: str = ""


def read_measurement(file: Path) -> Measurement:
    """What ``energy measure --json`` printed. Raises EnergyError when the file has not that, or too few repetitions."""
    try:
        record: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        each = tuple(float(joules) for joules in record["repetitions"])
        if not all(map(math.isfinite, each)):
            raise ValueError("a repetition is not finite")
        source = f"{record['source']} {record.get('machine', {}).get('host', '')}"
        target = record.get("target") or {}
        loss = float(target["loss"]) if target else None
        steps = int(target["steps"]) if target and target["steps"] is not None else None
    except (OSError, ValueError, OverflowError, KeyError, TypeError, AttributeError) as error:
        raise EnergyError(
            "energy.not-a-measurement",
            f"{file} is not what energy measure --json prints ({error}); keep that in a file",
        ) from None
    if len(each) < 2:
        raise EnergyError(
            "energy.no-repetitions",
            f"{file} has {len(each)} repetitions, which show no scatter; measure with --repeat 5, and enough --steps",
        )
    return Measurement(file.name, each, source, loss, steps)


def compare(one: Measurement, other: Measurement) -> Comparison:
    """The difference of their means, with its interval (Welch): of a step, and of the joules to a loss where both
    reached the same."""
    alike = one.source == other.source
    of_a_step = _compare(one.each, other.each, alike)
    if reason := _not_to_loss(one, other):
        return replace(of_a_step, reason=reason)
    if one.steps is None or other.steps is None:
        return of_a_step
    first, second = ([joules * m.steps for joules in m.each] for m in (one, other) if m.steps)
    return replace(of_a_step, to_loss=_compare(first, second, alike))


def _not_to_loss(one: Measurement, other: Measurement) -> str:
    """Why joules to a loss are not compared where there was a target, as a sentence; else ""."""
    if one.loss != other.loss:
        said = [f"{name} {f'to {m.loss:g}' if m.loss is not None else 'to none'}" for name, m in _named(one, other)]
        return f"joules to a loss are not compared: {' and '.join(said)} (--target-loss)"
    missed = [name for name, m in _named(one, other) if m.loss is not None and m.steps is None]
    return f"joules to a loss are not compared: {' and '.join(missed)} did not reach {one.loss:g}" if missed else ""


def _named(one: Measurement, other: Measurement) -> tuple[tuple[str, Measurement], ...]:
    return ("A", one), ("B", other)


def _compare(one: Sequence[float], other: Sequence[float], alike: bool) -> Comparison:
    means = statistics.fmean(one), statistics.fmean(other)
    variances = [statistics.variance(each) / len(each) for each in (one, other)]
    freedoms = len(one) - 1, len(other) - 1
    difference, ratio = means[1] - means[0], means[1] / means[0] if means[0] else math.inf
    width = _half_width(variances, freedoms)
    relative = [variance / mean**2 if mean else math.inf for variance, mean in zip(variances, means, strict=True)]
    return Comparison(
        *means,
        _half_width(variances[:1], freedoms[:1]),
        _half_width(variances[1:], freedoms[1:]),
        difference,
        width,
        ratio,
        abs(ratio) * _half_width(relative, freedoms),
        abs(difference) > width,
        alike,
    )


def _half_width(variances: Sequence[float], freedoms: Sequence[int]) -> float:
    """Of a sum's 95 % interval, by its terms' variances and their degrees of freedom (Welch)."""
    total = sum(variances)
    parts = sum(variance**2 / freedom for variance, freedom in zip(variances, freedoms, strict=True))
    freedom = total**2 / parts if parts and math.isfinite(total) else sum(freedoms)
    return student(max(math.floor(freedom), 1)) * math.sqrt(total)


def comparison_lines(compared: Comparison) -> list[str]:
    """The same for people: first what a loss took, as that is what training is for."""
    lines = _lines(compared.to_loss, "to the loss") if compared.to_loss else []
    lines += [compared.reason] if compared.reason else []
    lines += _lines(compared, "a step")
    if not compared.alike:
        lines.append("they were measured on different machines or by different sources, whose scales differ, too")
    return lines


def _lines(compared: Comparison, what: str) -> list[str]:
    verdict = "they differ" if compared.differ else "they do not differ beyond the scatter of their repetitions"
    return [
        f"A takes {compared.one:.4g} ± {compared.one_half_width:.2g} J {what}, B {compared.other:.4g} ±"
        f" {compared.other_half_width:.2g} J: {compared.ratio:.3f} ± {compared.ratio_half_width:.2g} × as much",
        f"B - A: {compared.difference:+.4g} ± {compared.half_width:.2g} J (half of a 95 % interval, Welch's t):"
        f" {verdict}",
    ]
