"""Methods under trouble: what was tuned with a calm fleet, where devices are slow, fail, differ, or are many.

    python benchmarks/methods/robustness.py --folder study --data DATA --rows benchmarks/methods/results/SETTING.json

Three questions of EdgeFlowerTune (arXiv 2605.08636): the quality under a budget, the cost to a target, and what is left
of both under each kind of trouble. Each run is a file in the folder.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from results import Rows
from rivals import LABELS, RIVALS
from settings import open_setting
from study import DEFAULT, SEEDS, Settings, describe, make_settings_job
from trial import COHORT, DEVICES, Choice, Trained, forward_pass, geometric_mean, kept, run_job

from fedspzo.broker.simulation.fleet import CALM, Behaviour, parse_quantile


@dataclass(frozen=True)
class Conditions:
    """Whom a job meets.

    Attributes:
        devices: in the fleet; four take part in a round.
        alpha: of the Dirichlet distribution that labels are shared out by.
        behaviour: how devices fail.
    """

    devices: int = DEVICES
    alpha: float = 0.5
    behaviour: Behaviour = CALM


#: Rounds wait 60 s. Of stragglers a quarter is later, always the same ones, whose examples then hardly count.
CONDITIONS: Mapping[str, Conditions] = {
    "calm": Conditions(),
    "stragglers": Conditions(behaviour=replace(CALM, step_seconds=parse_quantile("lognormal:30,1", "stragglers"))),
    "dropouts": Conditions(behaviour=replace(CALM, dropout=0.3)),
    "skew": Conditions(alpha=0.1),
    "many": Conditions(devices=100),
}


def run(folder: Path, setting: str, choice: Settings, name: str, seed: int, forwards: int, points: int) -> Trained:
    """One run, from its file if there is one."""
    described = json.dumps([setting, describe(choice), name, seed, forwards, points], sort_keys=True)
    file = folder / "robustness" / f"{hashlib.sha256(described.encode()).hexdigest()[:16]}.json"

    def train() -> Trained:
        found = open_setting(setting, folder)
        if not isinstance(choice, Choice) or choice.method.endswith(LABELS):
            found = replace(found, bundle=found.labelled)
        under = CONDITIONS[name]
        rival = choice.method if isinstance(choice, Choice) and choice.method in RIVALS else ""
        budget = forwards * COHORT * forward_pass(found.bundle)
        job = make_settings_job(found.bundle, choice, seed)
        return run_job(found, job, under.devices, budget, points, rival, under.alpha, under.behaviour)

    return kept(file, json.loads(described), train)


def main() -> None:
    """Run what is missing, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="where models, data and finished runs are kept")
    parser.add_argument("--data", type=Path, help="where real data are, as benchmarks/real_tasks.py says")
    parser.add_argument("--rows", type=Path, required=True, help="a study's rows, which have what tuning chose")
    parser.add_argument("--methods", nargs="+", default=[DEFAULT, "meerkat", "decomfl"])
    parser.add_argument("--forwards", type=int, default=90, help="forward passes of a run (%(default)s)")
    parser.add_argument("--points", type=int, default=10, help="of a run's curve (%(default)s)")
    options = parser.parse_args()
    rows = Rows(json.loads(options.rows.read_bytes()))
    print("| setting | method | fleet | accuracy at the end | GFLOP to the target | times the calm fleet's | never |")
    print("| --- | --- | --- | ---: | ---: | ---: | ---: |")
    for setting, method in itertools.product(rows.settings, options.methods):
        open_setting(setting, options.folder, options.data)
        target, choice = rows.target(setting), rows.settings_of(setting, method)
        calm: list[float] = []
        for name in CONDITIONS:
            runs = [
                run(options.folder, setting, choice, name, seed, options.forwards, options.points) for seed in SEEDS
            ]
            reached = [made.smooth.reached(target) for made in runs]
            spent = [min(flops, made.flops[-1]) for flops, made in zip(reached, runs, strict=True)]
            calm = calm or spent
            print(
                f"| {setting} | {method} | {name} | {statistics.fmean(made.accuracy for made in runs):.1%} |"
                f" {geometric_mean(spent) / 1e9:,.0f} | {geometric_mean(np.divide(spent, calm)):.2f} |"
                f" {sum(map(math.isinf, reached))} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
