"""Compare methods by the operations that they spend to a loss, every one tuned by the same number of runs.

    python benchmarks/methods/study.py --folder study      # hours; goes on where it stopped
    python benchmarks/methods/results.py --folder study --table study.md --png study.png

A method is tuned on one seed: its rate, then numbers of directions and batches. Then it runs on seeds that tuning never
saw. Each run is a file in the folder.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path

from settings import SETTINGS, open_setting
from trial import COHORT, POINTS, Choice, Curve, run_trial

from fedspzo.methods import METHODS

TUNING_SEED, SEEDS = 0, (1, 2, 3)
#: Directions to choose from, whole-model and inside the split.
WHOLE, SPLIT = (1, 5, 16), (8, 16, 32)
#: Rates to choose from, as multiples of the method's own; then of the best one's.
COARSE, FINE = (0.25, 1.0, 4.0), (0.5, 2.0)
COMPARED = (
    "frozen-own", "fedspzo-own", "frozen", "decomfl-one-sided", "fedspzo-one-sided", "decomfl", "fedspzo",
    "fedspzo-resting", "fedzo-one-sided", "fedzo", "feedsign", "fedkseed", "mezo",
)  # fmt: skip


@dataclass(frozen=True)
class Study:
    """Runs of methods on settings, kept in a folder.

    Attributes:
        folder: where models, data and finished runs are.
        pool: processes that run them.
        tuning, forwards: forward passes of the whole network, of a batch of 8, that each of a cohort may spend in a run
            of tuning, and in one of those that are compared.
    """

    folder: Path
    pool: ProcessPoolExecutor
    tuning: int
    forwards: int

    def curves(self, runs: Sequence[tuple[str, Choice, int, float]]) -> list[Curve]:
        """The curves of (setting, choice, seed, forward passes), run where that has not been done."""
        made = [self.pool.submit(_run, self.folder, *run) for run in runs]
        return [future.result() for future in made]

    def tune(self, setting: str, method: str) -> Choice:
        """The best of eight choices: of five rates, then of numbers of directions and batches."""
        own = METHODS[method]
        counts = SPLIT if own.first is not None else WHOLE
        middle = Choice(method, own.perturbations, own.rate, 4)
        best = self.best(setting, [replace(middle, rate=factor * own.rate) for factor in COARSE])
        best = self.best(setting, [best, *(replace(best, rate=factor * best.rate) for factor in FINE)])
        others = [replace(best, perturbations=count) for count in counts if count != own.perturbations][:2]
        if method == "feedsign":  # which has one direction
            others = [replace(best, rate=factor * best.rate) for factor in (2**-0.5, 2**0.5)]
        return self.best(setting, [best, *others, replace(best, batch=8)])

    def best(self, setting: str, choices: Sequence[Choice]) -> Choice:
        """The one that reaches the setting's target soonest on the tuning seed and stays there, or else ends lowest."""
        curves = self.curves([(setting, choice, TUNING_SEED, self.tuning) for choice in choices])
        return min(zip(choices, curves, strict=True), key=lambda pair: rank(setting, pair[1]))[0]


def rank(setting: str, curve: Curve) -> tuple[float, float]:
    """What tuning goes by: operations until the target, where it is held, then the worst of the last losses."""
    tail = curve.train[-len(curve.train) // 4 :]
    final = max(tail) if len(curve.train) > POINTS else math.inf
    return curve.held(SETTINGS[setting][2] * curve.train[0]), final


def _run(folder: Path, setting: str, choice: Choice, seed: int, forwards: float) -> Curve:
    """One run, from its file if there is one."""
    described = json.dumps([setting, asdict(choice), seed, forwards], sort_keys=True)
    file = folder / "runs" / f"{hashlib.sha256(described.encode()).hexdigest()[:16]}.json"
    if not file.exists():
        found = open_setting(setting, folder)
        shape = max(found.bundle.manifest.shapes, key=lambda shape: shape.batch)
        forward = sum(shape.graphs[stage.graph].flops for stage in found.bundle.manifest.stages)
        curve = run_trial(found, choice, seed, forwards * COHORT * forward)
        file.parent.mkdir(exist_ok=True)
        partial = file.with_suffix(".partial")
        partial.write_text(json.dumps({"run": json.loads(described), "curve": curve.as_dict()}), encoding="utf-8")
        partial.replace(file)
    return Curve(**json.loads(file.read_text(encoding="utf-8"))["curve"])


def compare(study: Study, setting: str, method: str) -> dict[str, object]:
    """What a method's tuned choice does on the seeds that were held out."""
    choice = study.tune(setting, method)
    tuning = study.curves([(setting, choice, TUNING_SEED, study.tuning)])
    curves = study.curves([(setting, choice, seed, study.forwards) for seed in SEEDS])
    return {
        "setting": setting,
        "method": method,
        "choice": asdict(choice),
        "tuning": tuning[0].as_dict(),
        "curves": [curve.as_dict() for curve in curves],
    }


def main() -> None:
    """Run what is missing, and keep the rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="where models, data and finished runs are kept")
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--methods", nargs="+", default=list(COMPARED), choices=list(METHODS))
    parser.add_argument("--tuning", type=int, default=300, help="forward passes of a run of tuning (%(default)s)")
    parser.add_argument("--forwards", type=int, default=600, help="and of one that counts (%(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="processes (%(default)s)")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    for setting in options.settings:
        open_setting(setting, options.folder)
    pairs = [(setting, method) for method in options.methods for setting in options.settings]
    rows: list[dict[str, object]] = []
    with (
        ProcessPoolExecutor(options.workers, get_context("spawn")) as pool,
        ThreadPoolExecutor(2 * options.workers) as threads,  # of which each waits for one method's runs
    ):
        study = Study(options.folder, pool, options.tuning, options.forwards)
        for row in threads.map(lambda pair: compare(study, *pair), pairs):
            rows.append(row)
            (options.folder / "rows.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")
            print(row["setting"], row["method"], row["choice"], flush=True)


if __name__ == "__main__":
    main()
