"""Pictures of a measurement: power over time with what was done meanwhile, and joules by phase with their intervals."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from fedspzo.device_runtime.energy.meter import Account
from fedspzo.device_runtime.energy.source import COUNTER
from fedspzo.device_runtime.errors import EnergyError
from fedspzo.device_runtime.platform.profiling import IDLE
from fedspzo.energy.repeat import Repetitions

_FORMS = (".png", ".svg", ".pdf")


def check_picture(file: Path) -> None:
    """Raises EnergyError when the name does not say how to draw it."""
    if file.suffix not in _FORMS:
        raise EnergyError("option.picture-form", f"{file} ends in none of {', '.join(_FORMS)}; give a name that does")


def plot_account(file: Path, account: Account, told: Repetitions) -> None:
    """Draw an account of some steps.

    Above, the power between readings, its area divided by the time that each phase had. Below, the joules of a step
    by phase above idle, with 95 % intervals; phases that the source does not tell apart are left out.

    Raises:
        EnergyError: the file cannot be written.
    """
    figure, (above, below) = plt.subplots(2, 1, figsize=(8, 7), layout="constrained", height_ratios=(2, 1))
    times, watts = _power(account)
    colours = {phase: f"C{number}" for number, phase in enumerate(account.readings.seconds)} | {IDLE: "lightgray"}
    whole, bottom = np.maximum(account.readings.total, 1e-12), np.zeros(len(watts))
    for phase, seconds in account.readings.seconds.items():
        top = bottom + np.where(np.isfinite(watts), watts, 0.0) * (seconds / whole)
        above.fill_between(times, bottom, top, step="pre", color=colours[phase], alpha=0.6, linewidth=0, label=phase)
        bottom = top
    above.step(times, watts, where="pre", color="black", linewidth=0.8)
    if account.idle.watts is not None:
        above.axhline(account.idle.watts, color="tab:gray", linestyle=":", label="idle power")
    above.set(
        xlabel="s",
        ylabel=f"W by {account.source if account.facts.measured else 'ESTIMATE'}",
        ylim=(0, None),
        xlim=(0, None),
    )
    figure.legend(fontsize="small", loc="outside right upper")
    bars = {name: each for name, each in (*told.phases.items(), ("all", told.step)) if each.joules is not None}
    measured = account.facts.measured
    below.barh(
        list(bars), [each.joules or 0.0 for each in bars.values()], height=0.5, capsize=4,
        xerr=[each.half_width or 0.0 for each in bars.values()] if measured else None,
        color=[colours.get(name, "tab:gray") for name in bars],
    )  # fmt: skip
    below.set(
        xlabel=f"J a step above idle{'; bars: 95 % intervals' if measured else ', by ESTIMATE without intervals'}"
    )
    for axes in (above, below):
        axes.grid(alpha=0.3)
    try:
        figure.savefig(file, dpi=150)
    except OSError as error:
        raise EnergyError(
            "energy.table-unwritable",
            f"{file} cannot be written ({error.strerror}); make room, or choose another folder",
        ) from None
    finally:
        plt.close(figure)


def _power(account: Account) -> tuple[np.ndarray, np.ndarray]:
    """Seconds from the first reading on, and W since the reading before; NaN where there is no reading."""
    readings = account.readings
    times = readings.times - readings.times[:1]
    if account.facts.kind != COUNTER:
        return times, readings.values
    with np.errstate(divide="ignore", invalid="ignore"):
        return times, np.concatenate([[np.nan], np.diff(readings.values) / np.diff(times)])
