"""Whether two measurements of joules differ: Welch's test over their repetitions, and the difference's interval."""

from __future__ import annotations

import json
import math
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedspzo.device_runtime.energy.figures import student
from fedspzo.device_runtime.errors import EnergyError


@dataclass(frozen=True)
class Measurement:
    """What is kept of one. Attributes: ``name``; ``each``, J a step by repetition; ``source``, its name and machine."""

    name: str
    each: tuple[float, ...]
    source: str


@dataclass(frozen=True)
class Comparison:
    """Two measurements.

    Attributes:
        one, other: their means, J a step above idle.
        difference, half_width: of the means, and half of its 95 % interval by the scatter of repetitions.
        ratio: of the means.
        differ: whether 0 lies outside the interval.
        alike: whether source and machine are the same, so that errors of scale cancel in the ratio.
    """

    one: float
    other: float
    difference: float
    half_width: float
    ratio: float
    differ: bool
    alike: bool


def read_measurement(file: Path) -> Measurement:
    """What ``energy measure --json`` printed. Raises EnergyError when the file has not that, or too few repetitions."""
    try:
        record: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        each = tuple(float(joules) for joules in record["repetitions"])
        if not all(map(math.isfinite, each)):
            raise ValueError("a repetition is not finite")
        source = f"{record['source']} {record.get('machine', {}).get('host', '')}"
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
    return Measurement(file.name, each, source)


def compare(one: Measurement, other: Measurement) -> Comparison:
    """The difference of their means, with its interval (Welch)."""
    means = statistics.fmean(one.each), statistics.fmean(other.each)
    parts = [statistics.variance(m.each) / len(m.each) for m in (one, other)]
    total = sum(parts)
    sizes = len(one.each) - 1, len(other.each) - 1
    freedom = total**2 / sum(p**2 / n for p, n in zip(parts, sizes, strict=True)) if total else float(sum(sizes))
    width = student(max(math.floor(freedom), 1)) * math.sqrt(total)
    difference = means[1] - means[0]
    return Comparison(
        *means,
        difference,
        width,
        means[1] / means[0] if means[0] else math.inf,
        abs(difference) > width,
        one.source == other.source,
    )


def comparison_lines(compared: Comparison) -> list[str]:
    """The same for people."""
    verdict = "they differ" if compared.differ else "they do not differ beyond the scatter of their repetitions"
    lines = [
        f"A takes {compared.one:.4g} J a step, B {compared.other:.4g} J: {compared.ratio:.3f} × as much",
        f"B - A: {compared.difference:+.4g} ± {compared.half_width:.2g} J (half of a 95 % interval, Welch's t):"
        f" {verdict}",
    ]
    if not compared.alike:
        lines.append("they were measured on different machines or by different sources, whose scales differ, too")
    return lines
