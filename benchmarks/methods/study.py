"""Compare methods by the operations that they spend to a loss, every one tuned by the same number of runs.

    python benchmarks/methods/study.py --folder study                       # hours; goes on where it stopped
    python benchmarks/methods/study.py --folder study --table methods.md --png methods.png

A method is tuned on one seed: directions and batch at its own rate, then the rate. Then it runs on seeds that tuning
never saw. Each run is a file in the folder.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path

from settings import SETTINGS, open_setting
from trial import Choice, Curve, geometric_mean, run_trial

from fedspzo.methods import METHODS

TUNING_SEED, SEEDS = 0, (1, 2, 3)
#: Forward passes of the whole network, of one device's batch of 8, that each of a cohort may spend.
FORWARDS = 400
#: Directions to choose from, whole-model and inside the split.
WHOLE, SPLIT = (1, 5, 16), (8, 16, 32)
BATCHES = (4, 8)
#: Rates to choose from, as multiples of the method's own.
RATES = (0.25, 0.5, 2.0, 4.0)
COMPARED = (
    "fedspzo", "fedspzo-one-sided", "fedspzo-resting", "frozen", "decomfl", "decomfl-one-sided", "fedzo", "fedmezo",
    "feedsign",
)  # fmt: skip


@dataclass(frozen=True)
class Study:
    """Runs of methods on settings, kept in a folder.

    Attributes:
        folder: where models, data and finished runs are.
        pool: processes that run them.
    """

    folder: Path
    pool: ProcessPoolExecutor

    def curves(self, runs: Sequence[tuple[str, Choice, int]]) -> list[Curve]:
        """The curves of (setting, choice, seed), run where that has not been done."""
        made = [self.pool.submit(_run, self.folder, *run) for run in runs]
        return [future.result() for future in made]

    def tune(self, setting: str, method: str) -> Choice:
        """The choice that reaches the setting's target soonest, of as many as any method has."""
        own = METHODS[method]
        counts = SPLIT if own.first is not None else WHOLE
        if method in ("feedsign", "fedmezo"):
            counts = (own.perturbations,)
        choices = [Choice(method, count, own.rate, batch) for count in counts for batch in BATCHES]
        best = self.best(setting, choices)
        more = [replace(best, rate=own.rate * factor) for factor in RATES]
        best = self.best(setting, [best, *more])
        between = [replace(best, rate=best.rate * factor) for factor in (2**-0.5, 2**0.5)]
        return self.best(setting, [best, *between])

    def best(self, setting: str, choices: Sequence[Choice]) -> Choice:
        """The one whose run on the tuning seed reaches the target soonest, or else comes lowest."""
        curves = self.curves([(setting, choice, TUNING_SEED) for choice in choices])
        target = SETTINGS[setting][2] * curves[0].train[0]

        def rank(curve: Curve) -> tuple[float, float]:
            final = curve.train[-1]
            return curve.reached(target), final if math.isfinite(final) else math.inf

        return min(zip(choices, curves, strict=True), key=lambda pair: rank(pair[1]))[0]


def _run(folder: Path, setting: str, choice: Choice, seed: int) -> Curve:
    """One run, from its file if there is one."""
    described = json.dumps([setting, asdict(choice), seed, FORWARDS], sort_keys=True)
    file = folder / "runs" / f"{hashlib.sha256(described.encode()).hexdigest()[:16]}.json"
    if not file.exists():
        found = open_setting(setting, folder)
        shape = max(found.bundle.manifest.shapes, key=lambda shape: shape.batch)
        forward = sum(shape.graphs[stage.graph].flops for stage in found.bundle.manifest.stages)
        curve = run_trial(found, choice, seed, FORWARDS * 4.0 * forward)
        file.parent.mkdir(exist_ok=True)
        partial = file.with_suffix(".partial")
        partial.write_text(json.dumps({"run": json.loads(described), "curve": curve.as_dict()}), encoding="utf-8")
        partial.replace(file)
    return Curve(**json.loads(file.read_text(encoding="utf-8"))["curve"])


def compare(study: Study, settings: Sequence[str], methods: Sequence[str]) -> Iterator[dict[str, object]]:
    """For each setting and method, what the tuned choice does on the seeds that were held out."""
    for setting in settings:
        for method in methods:
            choice = study.tune(setting, method)
            curves = study.curves([(setting, choice, seed) for seed in SEEDS])
            target = SETTINGS[setting][2] * curves[0].train[0]
            yield {
                "setting": setting,
                "method": method,
                "choice": asdict(choice),
                "gflop": [curve.reached(target) / 1e9 for curve in curves],
                "loss": [curve.train[-1] for curve in curves],
                "test_loss": [curve.test for curve in curves],
                "accuracy": [curve.accuracy for curve in curves],
            }


def summarise(rows: Sequence[Mapping[str, object]]) -> None:
    """Print a table."""
    for row in rows:
        gflop = row["gflop"]
        assert isinstance(gflop, list)
        mean = geometric_mean(gflop) if all(map(math.isfinite, gflop)) else math.inf
        print(row["setting"], row["method"], f"{mean:.0f}", [f"{g:.0f}" for g in gflop], row["choice"], row["loss"])


def main() -> None:
    """Run what is missing, and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--methods", nargs="+", default=list(COMPARED), choices=list(METHODS))
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    for setting in options.settings:
        open_setting(setting, options.folder)
    with ProcessPoolExecutor(options.workers, get_context("spawn")) as pool:
        rows = []
        for row in compare(Study(options.folder, pool), options.settings, options.methods):
            rows.append(row)
            summarise([row])
            (options.folder / "rows.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
