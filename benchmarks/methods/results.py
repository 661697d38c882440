"""The study's tables and pictures from its rows, which it keeps in a file; ``benchmarks/methods/results`` has some.

    python benchmarks/methods/results.py --rows benchmarks/methods/results/minilm-snips.json --table snips.md
    python benchmarks/methods/results.py --rows study/rows.json --folder study --table study.md    # measures steps too

With the study's folder, what a step of each tuned choice costs on this machine is measured and kept in the rows.

What is compared are the operations until the training loss is as low as the best two-sided whole-model method brings
it on all held-out seeds with its whole budget; where the rows have none, the best of all that were tuned. Means are
geometric, and intervals (95 %) are a bootstrap over each setting's seeds. A run that never gets there counts as its
whole budget, which flatters it.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rivals import LABELS, RIVALS
from settings import SETTINGS, Setting, open_setting
from study import DEFAULT, PLANNED, Settings, make_settings_job, rank
from trial import COMPARABLE, Choice, Trained

from fedspzo.broker.rounds.aggregate import close_round
from fedspzo.broker.rounds.job import plan_round
from fedspzo.device_runtime.engines.protocol import create_engine
from fedspzo.device_runtime.protocol.codec import encode, fingerprint
from fedspzo.device_runtime.protocol.messages import Result
from fedspzo.device_runtime.replica.weights import Replica
from fedspzo.device_runtime.step.estimator import measure
from fedspzo.device_runtime.step.prefix_cache import PrefixCache
from fedspzo.device_runtime.step.runner import Forward

TWO_SIDED_WHOLE = ("decomfl", "fedzo")
WHOLE = tuple(name for name, method in COMPARABLE.items() if method.first is None and name != "mezo")
ON_LABELS = tuple(name for name in COMPARABLE if name.endswith(LABELS))
#: What a rival's paper claims: how many times fewer forward passes or rounds than which method.
CLAIMS = {
    "fzoo": "3, and 18 on RoBERTa-large, than MeZO",
    "hiso": "1.4 to 5.4 than DeComFL, in rounds",
    "lozo": "better scores than MeZO at equal steps",
    "zo-muon": "4 than MeZO",
    "zo-mopi": "1.5 to 4 than ZO-Muon",
    "meerkat": "better scores than full ZO at equal steps",
}
#: Kinds of the split beyond the paper, of which tuning takes one for each setting.
BEYOND = (DEFAULT, PLANNED, "fedspzo-one-sided", "fedspzo-resting", "frozen", "frozen-own")
OURS = "the best of these in tuning"
#: Resamples of the seeds, for an interval.
RESAMPLES = 4000
#: What a device's round costs, and digits to show of it.
_COSTS = {"seconds": 1, "up": 0, "down": 0}
#: Rounds that a step's time is the median of, after as many that fill caches.
ROUNDS = 12


def step_cost(setting: Setting, method: str, settings: Settings, scratch: Path) -> dict[str, float]:
    """Of one device's round, on one thread of LiteRT: seconds, and bytes of the result up and the entry down."""
    published = isinstance(settings, Choice) and method not in ON_LABELS
    bundle = setting.bundle if published else setting.labelled
    job = make_settings_job(bundle, settings, 0)
    forward = Forward(create_engine("litert", 1), Replica(bundle))
    place = scratch / "prefixes" / method / setting.name
    place.parent.mkdir(parents=True, exist_ok=True)
    cache = PrefixCache(place)
    seconds = []
    for number in range(1, 2 * ROUNDS + 1):
        plan = plan_round(job, number)
        started = time.perf_counter()
        found = measure(forward, setting.train, plan, "device-1", cache)
        seconds.append(time.perf_counter() - started)
    result = Result(plan.round, fingerprint(plan), found.scalars, found.loss, found.examples, seconds[-1], b"")
    entry = close_round(plan, {f"device-{k}": result for k in range(1, job.cohort + 1)}, job.votes)
    return {
        "seconds": statistics.fmean(seconds[ROUNDS:]),
        "up": len(encode(result)),
        "down": len(encode(entry)),
    }


class Rows:
    """Finished rows of the study, by setting and method."""

    def __init__(self, rows: Sequence[dict[str, Any]]) -> None:
        self.rows = {(row["setting"], row["method"]): row for row in rows}
        self.settings = [name for name in SETTINGS if any(row["setting"] == name for row in rows)]
        names = (DEFAULT, PLANNED, *COMPARABLE)
        self.methods = [name for name in names if all((setting, name) in self.rows for setting in self.settings)]

    def settings_of(self, setting: str, method: str) -> Settings:
        """What a method was run with."""
        choice = self.rows[setting, method]["choice"]
        return choice if method in (DEFAULT, PLANNED) else Choice(**choice)

    def curves(self, setting: str, method: str) -> list[Trained]:
        """A method's runs on the held-out seeds."""
        return [Trained(**curve) for curve in self.rows[setting, method]["curves"]]

    def target(self, setting: str, depth: float = 1.0) -> float:
        """Training loss to reach; a share ``depth`` of the way there.

        The best two-sided whole-model method that learns at all brings each of its seeds there; where there is none,
        the best method that was tuned, or that ran.
        """
        names = [name for name in self.methods if name not in (DEFAULT, PLANNED)] or self.methods
        reached = {name: max(min(curve.smooth.losses) for curve in self.curves(setting, name)) for name in names}
        start = self.curves(setting, names[0])[0].train[0]
        two_sided = [reached[name] for name in TWO_SIDED_WHOLE if reached.get(name, start) < start]
        return start - depth * (start - min(two_sided or reached.values()))

    def spent(self, setting: str, method: str, depth: float = 1.0) -> tuple[np.ndarray, int]:
        """GFLOP until the target for each held-out seed, and how many of them never got there."""
        curves = self.curves(setting, method)
        reached = np.array([curve.smooth.reached(self.target(setting, depth)) for curve in curves])
        whole = max(curve.flops[-1] for curve in curves)
        return np.where(np.isfinite(reached), reached, whole) / 1e9, int(np.isinf(reached).sum())

    def mean(self, setting: str, method: str, depth: float = 1.0) -> float:
        """Geometric mean of GFLOP until the target."""
        return float(np.exp(np.log(self.spent(setting, method, depth)[0]).mean()))

    def preferred(self, setting: str) -> str:
        """The kind of the split that did best on the tuning seed."""
        known = [name for name in BEYOND if name in self.methods]
        return min(known, key=lambda name: rank(setting, Trained(**self.rows[setting, name]["tuning"])))

    def gains(self, method: str, rivals: Sequence[str], depth: float) -> dict[str, tuple[str, np.ndarray]]:
        """For each setting the rival that spends least there, and how much more it spends, seed by seed."""
        found = {}
        for setting in self.settings:
            rival = min(
                (name for name in rivals if name in self.methods), key=lambda name: self.mean(setting, name, depth)
            )
            own = self.preferred(setting) if method == OURS else method
            found[setting] = rival, self.spent(setting, rival, depth)[0] / self.spent(setting, own, depth)[0]
        return found


def bar(rows: Rows, method: str, rivals: Sequence[str], depth: float = 1.0) -> str:
    """A line of Markdown: how many times fewer operations a method takes than the best rival of each setting."""
    gains = rows.gains(method, rivals, depth)
    logs = [np.log(gain) for _, gain in gains.values()]
    low, high = interval(logs)
    cells = [
        f"{math.exp(np.log(gain).mean()):.2f} ({gain.min():.1f}–{gain.max():.1f}; {rival})"
        for rival, gain in gains.values()
    ]
    mean = math.exp(np.mean([log.mean() for log in logs]))
    return f"| {method} | **{mean:.2f}** ({low:.1f}–{high:.1f}) | {' | '.join(cells)} |"


def interval(logs: Sequence[np.ndarray]) -> tuple[float, float]:
    """95 % of the geometric mean over settings, of the logarithms of each one's seeds."""
    random = np.random.default_rng(0)
    drawn = [random.choice(log, (RESAMPLES, len(log))).mean(axis=1) for log in logs]
    low, high = np.exp(np.percentile(np.mean(drawn, axis=0), (2.5, 97.5)))
    return float(low), float(high)


def rival_table(rows: Rows) -> list[str]:
    """Lines of Markdown: each rival against both methods with shared directions, over all settings and seeds."""
    against = [name for name in ("decomfl", "decomfl-one-sided") if name in rows.methods]
    titles = ("rival", *(f"times fewer than {name}" for name in against), "its paper's claim")
    lines = [f"| {' | '.join(titles)} |", f"|{' --- |' * len(titles)}"]
    for name in rows.methods:
        if name == "fzoo" or name in RIVALS:
            logs = [
                np.log(np.concatenate([gain for _, gain in rows.gains(name, [baseline], 1.0).values()]))
                for baseline in against
            ]
            ratios = [
                f"{math.exp(log.mean()):.2f} ({math.exp(log.min()):.1f}–{math.exp(log.max()):.1f})" for log in logs
            ]
            claim = CLAIMS.get(name.removesuffix("-frozen").removesuffix(LABELS), "–")
            lines.append(f"| {name} | {' | '.join(ratios)} | {claim} |")
    return lines


def tables(rows: Rows, command: str) -> str:
    """All that the study shows, in Markdown."""
    names = rows.settings
    head = f"| method | all | {' | '.join(names)} |\n| --- | ---: |{' --- |' * len(names)}"
    ours = [*(name for name in ("fedspzo", "fedspzo-own", *BEYOND) if name in rows.methods), OURS]
    lines: list[str] = []
    on_layer = [name for name in RIVALS if name not in (*WHOLE, *ON_LABELS)]
    for title, rivals, depth in (
        ("the best two-sided whole-model method", TWO_SIDED_WHOLE, 1.0),
        ("the best whole-model method of any kind", WHOLE, 1.0),
        ("the best of rivals on the last layer alone", on_layer, 1.0),
        ("the best of all methods on the labels' vectors alone", ON_LABELS, 1.0),
        ("the best whole-model method, to half of that decrease of the loss,", WHOLE, 0.5),
        ("the best on the labels' vectors, to half of it,", ON_LABELS, 0.5),
    ):
        if set(rivals).intersection(rows.methods):
            lines += [f"How many times fewer operations than {title} (geometric mean over seeds; least and most):", ""]
            lines += [head, *(bar(rows, name, rivals, depth) for name in ours), ""]
    if any(name == "fzoo" or name in RIVALS for name in rows.methods):
        lines += ["Rivals, to the target:", "", *rival_table(rows), ""]
    if PLANNED in rows.methods:
        others = [name for name in rows.methods if name != PLANNED]
        lines += ["What the planner proposes and the best of all others, to the target and halfway:", "", head]
        lines += [bar(rows, PLANNED, others, depth) for depth in (1.0, 0.5)]
    titles = ("", "method", "tuned: directions, rate for each, batch, ratio", "GFLOP to the target, by seed")
    titles += ("test loss, accuracy at the end", "rounds", "device: s", "bytes up", "bytes down")
    lines += ["", f"| {' | '.join(titles)} |", f"|{' --- |' * 5}{' ---: |' * 4}"]
    for setting in names:
        for name in sorted(rows.methods, key=lambda name: rows.mean(setting, name)):
            spent, missed = rows.spent(setting, name)
            curves = rows.curves(setting, name)
            share = [g * 1e9 / curve.flops[-1] for g, curve in zip(spent, curves, strict=True)]
            rounds = statistics.fmean(min(s, 1.0) * curve.rounds for s, curve in zip(share, curves, strict=True))
            cost = rows.rows[setting, name].get("cost", {})
            spending = [f"{rounds * cost[key]:,.{digits}f}" for key, digits in _COSTS.items() if cost] or ["–"] * 3
            lines.append(
                f"| {setting} | {name} | {shown(rows.settings_of(setting, name))}"
                f" | {', '.join(f'{g:.0f}' for g in spent)}{f' ({missed} never)' if missed else ''}"
                f" | {statistics.fmean(curve.test for curve in curves):.3f},"
                f" {statistics.fmean(curve.accuracy for curve in curves):.1%}"
                f" | {rounds:.0f} | {' | '.join(spending)} |"
            )
    return "\n".join([*lines, "", f"Made by `{command}`.", ""])


def shown(settings: Settings) -> str:
    """In a cell of a table."""
    if isinstance(settings, Choice):
        ratio = f", 1/{1 / settings.ratio:.0f}" if settings.ratio else ""
        return f"{settings.perturbations}, {settings.rate:.3g}, {settings.batch}{ratio}"
    names = ("split", "fanouts", "learning-rates", "first-every")
    return ", ".join(f"{name} {settings[f'--{name}']}" for name in names if f"--{name}" in settings)


def draw(rows: Rows, path: Path) -> None:
    """The training loss against operations, a panel for each setting: lines are means over seeds, bands their range."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    colours = pyplot.get_cmap("tab20").colors  # ten strong ones, each followed by its light shade
    colours = (*colours[::2], *colours[1::2])
    figure, panels = pyplot.subplots(
        1, len(rows.settings), figsize=(4.6 * len(rows.settings), 4.4), squeeze=False, layout="constrained"
    )
    for panel, setting in zip(panels[0], rows.settings, strict=True):
        for number, name in enumerate(rows.methods):
            curves = rows.curves(setting, name)
            most = min(curve.flops[-1] for curve in curves)
            grid = np.linspace(0, most, 60)
            losses = np.array([np.interp(grid, curve.flops, curve.smooth.losses) for curve in curves])
            style, colour = "--" if name in WHOLE else "-", colours[number]
            panel.plot(grid / 1e9, losses.mean(0), style, color=colour, label=name, linewidth=1.4)
            panel.fill_between(grid / 1e9, losses.min(0), losses.max(0), color=colour, alpha=0.12, linewidth=0)
        start = curves[0].train[0]
        panel.axhline(rows.target(setting), color="black", linewidth=0.8, linestyle=":", label="target")
        panel.set(title=setting, xlabel="operations of all devices, GFLOP", ylim=(None, 1.15 * start))
        panel.grid(alpha=0.25)
    panels[0][0].set_ylabel("training loss")
    handles, labels = panels[0][0].get_legend_handles_labels()
    title = "solid: the model is split into blocks; dashed: the whole model is perturbed; bands: three seeds"
    figure.legend(handles, labels, loc="outside lower center", ncols=6, fontsize=8, frameon=False, title=title)
    figure.savefig(path, dpi=130)


def main() -> None:
    """Measure what has not been, and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=Path, required=True, help="the file of the study that lists runs")
    parser.add_argument("--folder", type=Path, help="the study's: what a step costs is measured")
    parser.add_argument("--table", type=Path, required=True, help="where the tables go, in Markdown")
    parser.add_argument("--png", type=Path, help="where a picture goes")
    options = parser.parse_args()
    rows = Rows(json.loads(options.rows.read_text(encoding="utf-8")))
    for (setting, method), row in rows.rows.items() if options.folder else ():
        if "cost" not in row and method not in RIVALS:  # which do not measure as devices do
            found, settings = open_setting(setting, options.folder), rows.settings_of(setting, method)
            row["cost"] = step_cost(found, method, settings, options.folder)
            options.rows.write_text(json.dumps(list(rows.rows.values()), indent=1), encoding="utf-8")
    command = f"{Path(__file__).name} --rows {options.rows.name}"
    options.table.write_text(tables(rows, command), encoding="utf-8")
    if options.png:
        draw(rows, options.png)


if __name__ == "__main__":
    main()
