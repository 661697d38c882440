"""Compare what ``fedspzo plan`` proposes with the best of a grid search, by operations to the target loss.

    fedspzo plan study/intents/bundle --data study/intents/train.jsonl --json >intents.json
    python benchmarks/methods/planner.py --folder study --setting intents --plan intents.json --grid grid.json

``grid.json`` is a list of ``{"choice": …, "gflop": [for each seed]}``; the proposal runs on as many seeds, from 1 on.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from tempfile import TemporaryDirectory

from settings import SETTINGS, open_setting
from trial import ALPHA, COHORT, DEVICES, geometric_mean

from broker.planner.trial import Ground
from broker.simulation.partition import Skew, share_out
from fedspzo.commands.server import add_job_options, make_job


def run_plan(folder: Path, setting: str, options: dict[str, str], seeds: int, forwards: float) -> list[float]:
    """GFLOP of all devices until the target loss, on each seed; infinite where it is not reached."""
    found = open_setting(setting, folder)
    shape = max(found.bundle.manifest.shapes, key=lambda shape: shape.batch)
    forward = sum(shape.graphs[stage.graph].flops for stage in found.bundle.manifest.stages)
    parser = argparse.ArgumentParser()
    parser.add_argument("--devices", type=int, default=DEVICES)
    add_job_options(parser)
    spent = []
    for seed in range(1, seeds + 1):
        own = {**options, "--seed": str(seed), "--rounds": "1000000", "--cohort": str(COHORT)}
        job = make_job(parser.parse_args([word for pair in own.items() for word in pair]), found.bundle)
        shares = share_out(found.train, DEVICES, Skew(ALPHA), seed)
        ground = Ground(found.bundle, "litert", 1, shares, forwards * COHORT * forward, points=20)
        with TemporaryDirectory(prefix="fedspzo-") as state:
            curve = ground.run(job, Path(state), 1.0)
        spent.append(curve.reached(found.target * curve.losses[0]) / 1e9)
        print(setting, seed, f"{spent[-1]:.1f} GFLOP, loss {curve.losses[-1]:.3f}", flush=True)
    return spent


def main() -> None:
    """Run the proposal, and print both."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--setting", required=True, choices=list(SETTINGS))
    parser.add_argument("--plan", type=Path, required=True, help="what fedspzo plan --json printed")
    parser.add_argument("--grid", type=Path, required=True, help="results of a grid search")
    parser.add_argument("--forwards", type=float, default=200.0, help="budget of a run for each of a cohort")
    given = parser.parse_args()
    grid = json.loads(given.grid.read_text(encoding="utf-8"))
    best = min(grid, key=lambda row: _mean(row["gflop"]))
    options = json.loads(given.plan.read_text(encoding="utf-8"))["options"]
    planned = _mean(run_plan(given.folder, given.setting, options, len(best["gflop"]), given.forwards))
    reached = _mean(best["gflop"])
    print(f"planned {planned:.1f}, best of {len(grid)} choices {reached:.1f} GFLOP: ratio {planned / reached:.2f}")
    print(best["choice"])


def _mean(gflop: list[float]) -> float:
    return geometric_mean(gflop) if all(map(math.isfinite, gflop)) else math.inf


if __name__ == "__main__":
    main()
