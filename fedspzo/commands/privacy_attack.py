"""Try the strongest known attacks on what devices send, with sentences of your own as candidates.

Each candidate is measured once a round, as a device with it alone would; then devices are made up that hold some of
them, and attackers who know all candidates and the plan say which. Nothing is sent.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from fedspzo.device_runtime.errors import PlanError
from fedspzo.options.job import add_job_options, make_job

if TYPE_CHECKING:
    from fedspzo.broker.privacy.findings import Settings

#: Rounds that attackers see, where it is not said.
ROUNDS = 10


def configure(parser: argparse.ArgumentParser) -> None:
    """Describe the options."""
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="the bundle's folder")
    parser.add_argument(
        "--candidates", required=True, metavar="FILE", help="labelled examples (see fedspzo device --help)"
    )
    parser.add_argument("--groups", default="4,8,32,128", metavar="N,N", help="sizes of sums (%(default)s)")
    parser.add_argument("--noise", default="8,2,1", metavar="E,E", help="ε of differential privacy (%(default)s)")
    parser.add_argument("--trials", type=int, default=200, metavar="N", help="of each attack (%(default)s)")
    parser.add_argument("--engine", default="litert", help="litert, executorch, torch or tflite (%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="threads of the engine (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON lines")
    add_job_options(parser, rounds=ROUNDS)


def run(options: argparse.Namespace) -> None:
    """Print a table."""
    import numpy as np

    from fedspzo.broker.privacy.dictionary import every_label, measure_dictionary
    from fedspzo.broker.privacy.findings import Finding, Settings, attack, audit
    from fedspzo.broker.privacy.trials import find_alone
    from fedspzo.broker.rounds.job import check_job
    from fedspzo.device_runtime.data.store import load_data
    from fedspzo.device_runtime.engines.protocol import create_engine
    from fedspzo.device_runtime.model.bundle import Bundle
    from fedspzo.device_runtime.model.metrics import SINGLE
    from fedspzo.device_runtime.replica.weights import Replica
    from fedspzo.device_runtime.step.runner import Forward
    from fedspzo.progress import show, steps
    from fedspzo.tables import format_table

    budgets = _numbers(options.noise)
    settings = Settings(tuple(map(int, _numbers(options.groups))), (0.0, *budgets), trials=options.trials)
    with steps("measuring the candidates") as progress:
        bundle = Bundle(options.bundle)
        job = check_job(make_job(options, rounds=ROUNDS), bundle)
        candidates = load_data(options.candidates, bundle)
        _check(settings, len(candidates))
        forward = Forward(create_engine(options.engine, options.threads), Replica(bundle, None, options.threads))
        dictionary = measure_dictionary(forward, candidates, job, job.rounds)
        labels = len(bundle.manifest.task.labels)
        alone = []
        if labels and bundle.manifest.task.kind == SINGLE:
            labelled = measure_dictionary(forward, every_label(candidates, labels), job, 1)
            alone = list(find_alone(dictionary, labelled, candidates.labels))
        progress("attacking")
        found = list(attack(dictionary, settings, np.random.default_rng(job.seed)))
        proved = {budget: audit(dictionary, settings, budget) for budget in budgets}
    count = dictionary.candidates
    whole = "one result of one example"
    alone_as = ((f"{whole}: the sentence", 1 / count), (f"{whole}: sentence and label", 1 / (count * max(labels, 1))))
    named = [Finding(name, 1, 0.0, rate, chance) for (name, chance), rate in zip(alone_as, alone, strict=False)]
    if options.json:
        for each in (*named, *found):
            rates = {"rate": each.rate.value, "error": each.rate.error, "chance": each.chance, "allowed": each.allowed}
            show(True, attack=each.attack, rounds=each.rounds, epsilon=each.budget or None, **rates)
        for budget, bound in proved.items():
            show(True, attack="canary audit", rounds=1, epsilon=budget, proved=bound)
        return
    rows = [
        [
            each.attack, each.rounds, f"{each.budget:g}" if each.budget else "none", str(each.rate),
            f"{100 * each.chance:.1f} %", f"{100 * each.allowed:.1f} %" if each.allowed < 1 else "",
        ]
        for each in (*named, *found)
    ]  # fmt: skip
    print(format_table(["attack", "rounds", "noise ε", "right", "by chance", "at most"], rows))
    for budget, bound in proved.items():
        print(f"canary audit of noise with ε = {budget:g}: it proves that ε is at least {bound:.2f}")


def _check(settings: Settings, candidates: int) -> None:
    """Say which sums are left out. Raises PlanError where nothing can be attacked."""
    if settings.trials < 1:
        raise PlanError("privacy.no-trials", f"--trials is at least 1, not {settings.trials}")
    if min(settings.groups) < 2:
        raise PlanError("privacy.group-size", f"sums are of two devices at least, not {min(settings.groups)}")
    if candidates < 2 or candidates <= min(settings.groups):
        raise PlanError(
            "privacy.too-few-candidates",
            f"{candidates} candidates are too few for sums of {min(settings.groups)}, which need more; add candidates,"
            " or lower --groups",
        )
    if large := [str(size) for size in settings.groups if size >= candidates]:
        print(
            f"sums of {', '.join(large)} are left out: they need more candidates than {candidates}",
            file=sys.stderr,
            flush=True,
        )


def _numbers(text: str) -> tuple[float, ...]:
    """The numbers of a list. Raises PlanError for anything else."""
    try:
        found = tuple(float(word) for word in text.split(",") if word)
    except ValueError:
        found = (0.0,)
    if not all(0 < number < math.inf for number in found):
        raise PlanError("privacy.not-numbers", f"'{text}' is no list of positive numbers; write some as in 8,2,1")
    return found
