"""Compare what ``fedspzo plan`` proposes with the best of the study, by operations to the target loss.

    fedspzo plan study/intents/bundle --data study/intents/train.jsonl --budget 300 --trial 90 --json >intents.json
    python benchmarks/methods/planner.py --folder study --setting intents --plan intents.json

The study has tuned each method by a grid of choices; the proposal runs on the same held-out seeds with the same budget.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from results import Rows
from settings import SETTINGS, Setting, open_setting
from study import SEEDS
from trial import COHORT, DEVICES, Curve, job_parser, run_job

from fedspzo.commands.server import make_job


def run_proposal(setting: Setting, options: dict[str, str], seed: int, budget: float) -> Curve:
    """The run of a proposal's options."""
    own = {**options, "--seed": str(seed), "--rounds": "1000000", "--cohort": str(COHORT)}
    job = make_job(job_parser().parse_args([word for pair in own.items() for word in pair]), setting.bundle)
    curve = run_job(setting, job, DEVICES, budget)
    print(f"seed {seed}: loss {curve.train[-1]:.3f} at the end", flush=True)
    return curve


def main() -> None:
    """Run the proposal, and print both."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="the study's, with its rows")
    parser.add_argument("--setting", required=True, choices=list(SETTINGS))
    parser.add_argument("--plan", type=Path, required=True, help="what fedspzo plan --json printed")
    given = parser.parse_args()
    rows = Rows(json.loads((given.folder / "rows.json").read_text(encoding="utf-8")))
    setting = open_setting(given.setting, given.folder)
    options = json.loads(given.plan.read_text(encoding="utf-8"))["options"]
    budget = max(curve.flops[-1] for name in rows.methods for curve in rows.curves(given.setting, name))
    curves = [run_proposal(setting, options, seed, budget) for seed in SEEDS]
    for depth in (0.5, 1.0):
        target = rows.target(given.setting, depth)
        planned = [min(curve.reached(target), budget) / 1e9 for curve in curves]
        mean = float(np.exp(np.log(planned).mean()))
        best = min(rows.methods, key=lambda name: rows.mean(given.setting, name, depth))
        rival = rows.mean(given.setting, best, depth)
        print(
            f"{given.setting}, loss {target:.3f}: planned {mean:.0f} GFLOP ({', '.join(f'{g:.0f}' for g in planned)}),"
            f" {best} {rival:.0f}: ratio {mean / rival:.2f}"
        )


if __name__ == "__main__":
    main()
