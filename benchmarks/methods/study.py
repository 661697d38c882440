"""Compare methods by the operations that they spend to a loss, every one tuned by the same number of runs.

    python benchmarks/methods/study.py --folder study      # hours; continues where it stopped
    python benchmarks/methods/results.py --rows study/rows.json --folder study --table study.md --png study.png

A method is tuned by eight runs on one seed: its rate, which takes more of them where the best is the last one tried;
then numbers of directions and a batch or, where a first block is perturbed, the ratio of the rates and a number of
directions. ``planned`` is what ``fedspzo plan`` proposes after a trial of about as many operations. Then all run on
seeds that tuning never saw. Each run is a file in the folder.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from rivals import LABELS, ON_LABELS, RIVALS
from settings import GENERATED, SETTINGS, open_setting
from trial import (
    ALPHA,
    COHORT,
    COMPARABLE,
    DEVICES,
    POINTS,
    Choice,
    Conditions,
    Trained,
    count_rounds,
    forward_pass,
    kept,
    make_job,
    make_trial_job,
    read_options,
    run_job,
)

from fedspzo.broker.rounds.job import Job
from fedspzo.device_runtime.model.bundle import Bundle

TUNING_SEED, SEEDS = 0, (1, 2, 3)
#: Directions to choose from: whole-model, where a deviation needs several, inside the split, and on labels' vectors.
WHOLE, SEVERAL, SPLIT, MANY = (1, 5, 16), (4, 8, 16), (8, 16, 32), (16, 64, 256)
#: Rates to choose from, as multiples of the method's own; then of the best one's.
COARSE, FINE = (0.25, 1.0, 4.0), (0.5, 2.0)
COMPARED = (
    "frozen-own", "fedspzo-own", "frozen", "decomfl-one-sided", "fedspzo-one-sided", "decomfl", "fedspzo",
    "fedspzo-resting", "fedzo-one-sided", "fedzo", "fzoo", "feedsign", "fedkseed", "mezo", *ON_LABELS, *RIVALS,
)  # fmt: skip
#: Beside the methods: the settings that ``fedspzo plan`` proposes, whose trial takes up to 23 runs of its own length.
PLANNED, TRIAL = "planned", 3.25
#: And those of a job that says nothing of its steps, which is not tuned, and whose rates fall as a job's do. Both may
#: train the labels' vectors.
DEFAULT = "default"
#: What a method is run with: a tuned choice, or planned options.
Settings = Choice | dict[str, str]


@dataclass(frozen=True)
class Study:
    """Runs of methods on settings, kept in a folder.

    Attributes:
        folder: where models, data and finished runs are.
        pool: processes that run them.
        seeds: of the runs that are compared.
        tuning, forwards: forward passes of the whole network, of a batch of 8, that each of a cohort may spend in a run
            of tuning, and in one of those that are compared.
        points: of the curve of one of those that are compared; tuning takes half as many.
    """

    folder: Path
    pool: ProcessPoolExecutor
    seeds: Sequence[int]
    tuning: int
    forwards: int
    points: int

    def curves(self, setting: str, choices: Sequence[Settings], seeds: Sequence[int]) -> list[Trained]:
        """The curves of choices and seeds, side by side, run where that has not been done.

        On the seed of tuning they are short, with half of the points.
        """
        made = [
            self.pool.submit(run, self.folder, setting, choice, seed, *self._length(seed == TUNING_SEED))
            for choice, seed in zip(choices, seeds, strict=True)
        ]
        return [future.result() for future in made]

    def _length(self, tuning: bool) -> tuple[int, int]:
        return (self.tuning, -(-self.points // 2)) if tuning else (self.forwards, self.points)

    def tune(self, setting: str, method: str) -> Choice:
        """The best of eight choices: of five rates, or more, then of numbers of directions and batches."""
        own = COMPARABLE[method]
        counts = SPLIT if own.first is not None else SEVERAL if own.more.get("normalise") else WHOLE
        if method.endswith(LABELS):
            counts = MANY
        middle = Choice(method, own.perturbations, own.rate, 4)
        best = self.best(setting, [replace(middle, rate=factor * own.rate) for factor in COARSE])
        best = self.best(setting, [best, *(replace(best, rate=factor * best.rate) for factor in FINE)])
        for end, factor in zip((min(COARSE) * min(FINE), max(COARSE) * max(FINE)), FINE, strict=True):
            while math.isclose(best.rate, end * own.rate):  # the best may lie beyond those that were tried
                end *= factor
                best = self.best(setting, [best, replace(best, rate=end * own.rate)])
        others = [replace(best, perturbations=count) for count in counts if count != own.perturbations][:2]
        if method == "feedsign":  # which has one direction
            others = [replace(best, rate=factor * best.rate) for factor in (2**-0.5, 2**0.5)]
        last = replace(best, batch=8)
        if own.first:
            others, last = [replace(best, ratio=factor * own.ratio) for factor in (0.25, 4.0)], others[-1]
        return self.best(setting, [best, *others, last])

    def best(self, setting: str, choices: Sequence[Choice]) -> Choice:
        """The one that reaches the setting's target soonest on the tuning seed and stays there, or else ends lowest."""
        curves = self.curves(setting, choices, [TUNING_SEED] * len(choices))
        return min(zip(choices, curves, strict=True), key=lambda pair: rank(setting, pair[1]))[0]


def rank(setting: str, curve: Trained) -> tuple[float, float]:
    """What tuning goes by: operations until the target, where it is held, then the worst of the last losses."""
    tail = curve.train[-len(curve.train) // 4 :]
    final = max(tail) if len(curve.train) > curve.points else math.inf
    return curve.smooth.until(SETTINGS[setting].target * curve.train[0]), final


def describe(choice: Settings) -> dict[str, Any]:
    """For JSON."""
    return asdict(choice) if isinstance(choice, Choice) else choice


def make_settings_job(bundle: Bundle, choice: Settings, seed: int) -> Job:
    """The job of a tuned choice or of planned options."""
    if isinstance(choice, Choice):
        return make_trial_job(bundle, choice, seed)
    return make_job(bundle, read_options(choice), seed)


def run(
    folder: Path,
    setting: str,
    choice: Settings,
    seed: int,
    forwards: int,
    points: int,
    under: Conditions | None = None,
    name: str = "",
) -> Trained:
    """One run, from its file if there is one.

    Args:
        under: the fleet, where it is not the study's; ``name`` then tells the file apart.
    """
    told_apart = [each for each in (name, "" if choice else "rates fall") if each]
    described = [setting, describe(choice), seed, forwards, points, *told_apart]
    text = json.dumps(described, sort_keys=True)
    file = folder / "runs" / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"

    def train() -> Trained:
        found = open_setting(setting, folder)
        if not isinstance(choice, Choice) or choice.method.endswith(LABELS):
            found = replace(found, bundle=found.labelled)
        method = choice.method if isinstance(choice, Choice) else PLANNED
        own = under or Conditions(devices=1 if method == "mezo" else DEVICES)
        job, budget = make_settings_job(found.bundle, choice, seed), forwards * COHORT * forward_pass(found.bundle)
        if not choice:
            job = replace(job, final_rate=Job.final_rate)
        if job.final_rate < 1:
            job = replace(job, rounds=count_rounds(found, job, budget))
        return run_job(found, job, own, budget, points, method if method in RIVALS else "")

    return kept(file, described, train)


def plan(folder: Path, setting: str, tuning: int, forwards: int) -> dict[str, str]:
    """What ``fedspzo plan`` proposes, after a trial that takes about what eight runs of tuning do; made once.

    Args:
        forwards: of the runs that count.
    """
    file = folder / "plans" / f"{setting}.json"
    if not file.exists():
        file.parent.mkdir(exist_ok=True)
        place = folder / setting
        command = [sys.executable, "-m", "fedspzo", "plan", place / "labelled", "--data", place / "train.jsonl"]
        terms = {
            "--devices": DEVICES, "--cohort": COHORT, "--partition": f"dirichlet:{ALPHA}", "--seeds": "device",
            "--seed": TUNING_SEED, "--budget": forwards, "--trial": tuning / TRIAL,
        }  # fmt: skip
        words = [str(word) for pair in terms.items() for word in pair]
        partial = file.with_suffix(".partial")
        with partial.open("wb") as out:
            subprocess.run([*command, *words, "--json"], check=True, stdout=out)
        partial.replace(file)
    options: dict[str, str] = json.loads(file.read_bytes())["options"]
    return options


def compare(study: Study, setting: str, method: str) -> dict[str, object]:
    """What a method's tuned choice does on the seeds that were held out."""
    if method == PLANNED:
        choice: Settings = study.pool.submit(plan, study.folder, setting, study.tuning, study.forwards).result()
    elif method == DEFAULT:
        choice = {}
    else:
        choice = study.tune(setting, method)
    tuning = study.curves(setting, [choice], [TUNING_SEED])
    curves = study.curves(setting, [choice] * len(study.seeds), study.seeds)
    return {
        "setting": setting,
        "method": method,
        "choice": describe(choice),
        "tuning": tuning[0].as_dict(),
        "curves": [curve.as_dict() for curve in curves],
    }


def main() -> None:
    """Run what is missing, and keep the rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="where models, data and finished runs are kept")
    parser.add_argument("--settings", nargs="+", default=list(GENERATED), choices=list(SETTINGS))
    parser.add_argument("--data", type=Path, help="where real data are, as benchmarks/real_tasks.py says")
    parser.add_argument(
        "--methods", nargs="+", default=[DEFAULT, PLANNED, *COMPARED], choices=[DEFAULT, PLANNED, *COMPARABLE]
    )
    parser.add_argument("--tuning", type=int, default=300, help="forward passes of a run of tuning (%(default)s)")
    parser.add_argument("--forwards", type=int, default=600, help="and of one that counts (%(default)s)")
    parser.add_argument("--points", type=int, default=POINTS, help="of a run's curve (%(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS, help="of runs that count (1 2 3)")
    parser.add_argument("--rows", default="rows.json", help="the file in the folder that lists them (%(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="processes (%(default)s)")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    for setting in options.settings:
        open_setting(setting, options.folder, options.data)
    pairs = [(setting, method) for method in options.methods for setting in options.settings]
    rows: list[dict[str, object]] = []
    with (
        ProcessPoolExecutor(options.workers, get_context("spawn")) as pool,
        ThreadPoolExecutor(2 * options.workers) as threads,  # of which each waits for one method's runs
    ):
        study = Study(options.folder, pool, options.seeds, options.tuning, options.forwards, options.points)
        for row in threads.map(lambda pair: compare(study, *pair), pairs):
            rows.append(row)
            (options.folder / options.rows).write_text(json.dumps(rows, indent=1), encoding="utf-8")
            print(row["setting"], row["method"], row["choice"], flush=True)


if __name__ == "__main__":
    main()
