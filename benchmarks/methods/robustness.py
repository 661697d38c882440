"""Methods under trouble: what was tuned with a calm fleet, where devices are slow, fail, differ, or are many.

    python benchmarks/methods/robustness.py --folder study --data DATA --rows benchmarks/methods/results/SETTING.json

Three questions of EdgeFlowerTune (arXiv 2605.08636): the quality under a budget, the cost to a target, and what is left
of both under each kind of trouble. Each run is a file in the folder; those of the calm fleet are the study's own.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from results import Rows
from settings import open_setting
from study import DEFAULT, SEEDS, run
from trial import Conditions, geometric_mean

from fedspzo.broker.simulation.fleet import CALM, parse_quantile

#: Rounds wait 60 s. Of stragglers a quarter is later, always the same ones, whose examples then hardly count.
CONDITIONS: Mapping[str, Conditions | None] = {
    "calm": None,
    "stragglers": Conditions(behaviour=replace(CALM, step_seconds=parse_quantile("lognormal:30,1", "stragglers"))),
    "dropouts": Conditions(behaviour=replace(CALM, dropout=0.3)),
    "skew": Conditions(alpha=0.1),
    "many": Conditions(devices=100),
}


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
        for name, under in CONDITIONS.items():
            length = options.forwards, options.points
            runs = [run(options.folder, setting, choice, seed, *length, under, name if under else "") for seed in SEEDS]
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
