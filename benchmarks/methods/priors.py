"""Cores against the layer that they lie in, with a prior from a near domain and from a far one.

Each trains with the same plan: the layers before frozen, 16 shared directions around the centre, batches of 4. How far
a round moves the weights is tuned on one seed, then three others run; each run is a file in the folder.

    python benchmarks/methods/priors.py --folder study --data DATA --setting minilm-clinc-phone
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from settings import Setting, open_setting
from study import SEEDS, TUNING_SEED
from trial import COHORT, Conditions, Trained, forward_pass, geometric_mean, kept, make_job, run_job

import fedspzo
from fedspzo.broker.rounds.job import Job
from fedspzo.broker.rounds.recommend import DERIVATIVE, PERTURBATION, last_layer, step_size
from fedspzo.device_runtime.data.store import load_data
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.export.network.target import Target
from fedspzo.export.pipeline import export_bundle
from fedspzo.export.tasks import load_task

DIRECTIONS, BATCH, POINTS = 16, 4, 10
#: Of the weights' size, that a round moves them by.
SHARES = (0.01, 0.02, 0.04, 0.08, 0.16)
#: What is trained → folders of public examples, for each setting; the layer itself has none.
PRIORS = {
    "minilm-clinc-phone": {"layer": [], "near": ["banking77", "hwu64"], "far": ["trec", "agnews"]},
    "minilm-snips": {"layer": [], "near": ["banking77", "clinc150"], "far": ["trec", "agnews"]},
}


@dataclass(frozen=True)
class Part:
    """What is trained of a setting's model.

    Attributes:
        name: of it.
        setting: with the bundle in which it is.
        folder: of its finished runs.
        forward: operations of a forward pass of the model without it.
    """

    name: str
    setting: Setting
    folder: Path
    forward: int

    def run(self, share: float, seed: int, forwards: int) -> Trained:
        """One run, from its file if there is one."""
        bundle = self.setting.bundle
        last = last_layer(bundle.manifest)
        size = step_size(bundle, range(last, len(bundle.manifest.stages)))
        settings = {
            "split": (last,), "fanouts": (0, DIRECTIONS), "scales": (1.0, PERTURBATION * size / Job().epsilon),
            "learning_rates": (0.0, share * size * math.sqrt(DIRECTIONS) / DERIVATIVE), "sides": 1, "batch": BATCH,
        }  # fmt: skip
        job, budget = make_job(bundle, settings, seed), forwards * COHORT * self.forward
        described = [self.setting.name, self.name, share, seed, forwards]
        file = self.folder / f"{'-'.join(map(str, described[1:]))}.json"
        return kept(file, described, lambda: run_job(self.setting, job, Conditions(), budget, POINTS))


def open_part(setting: Setting, name: str, prior: Sequence[Path], folder: Path) -> Part:
    """The part of that name, exported the first time."""
    forward = forward_pass(setting.bundle)
    if prior:
        place = folder / "cores" / setting.name / name
        if not place.exists():
            shapes = setting.bundle.manifest.shapes
            batches, lengths = sorted({s.batch for s in shapes}), sorted({s.length for s in shapes})
            cores = fedspzo.Cores(prior=[str(file) for file in prior])
            target = Target(["litert"], batches, lengths, adapters=cores)
            export_bundle("minilm", load_task(str(setting.place / "task.toml")), target, place)
        bundle = Bundle(place)
        setting = replace(setting, bundle=bundle, train=load_data(setting.place / "train.jsonl", bundle))
    return Part(name, setting, folder / "cores" / "runs" / setting.name, forward)


def main() -> None:
    """Run what is missing, and print how many times fewer operations than the layer each takes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="where models, data and finished runs are kept")
    parser.add_argument(
        "--data", type=Path, required=True, help="where real data are, as benchmarks/real_tasks.py says"
    )
    parser.add_argument("--setting", choices=list(PRIORS), default="minilm-clinc-phone")
    parser.add_argument("--tuning", type=int, default=60, help="forward passes of a run of tuning (%(default)s)")
    parser.add_argument("--forwards", type=int, default=150, help="and of one that counts (%(default)s)")
    options = parser.parse_args()
    setting = open_setting(options.setting, options.folder, options.data)
    runs: dict[str, list[Trained]] = {}
    for name, folders in PRIORS[options.setting].items():
        prior = [options.data / folder / "train.jsonl" for folder in folders]
        part = open_part(setting, name, prior, options.folder)
        share = min(SHARES, key=lambda share: _end(part.run(share, TUNING_SEED, options.tuning)))
        runs[name] = [part.run(share, seed, options.forwards) for seed in SEEDS]
        print(json.dumps({"part": name, "share": share, "accuracy": [run.accuracy for run in runs[name]]}), flush=True)
    start = runs["layer"][0].train[0]
    reached = max(min(run.smooth.losses) for run in runs["layer"])
    for depth in (0.5, 0.75, 1.0):
        target = start - depth * (start - reached)
        spent = {name: [min(r.smooth.reached(target), r.flops[-1]) for r in runs[name]] for name in runs}
        for name in runs:
            gains = np.array(spent["layer"]) / np.array(spent[name])
            print(f"to {target:.3f}, {name}: {geometric_mean(gains):.2f} ({gains.min():.1f} to {gains.max():.1f})")


def _end(run: Trained) -> float:
    """The worst of the last losses; infinite where it diverged."""
    return max(run.train[-3:]) if len(run.train) > run.points else math.inf


if __name__ == "__main__":
    main()
