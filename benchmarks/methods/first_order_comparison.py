"""What a job costs against first-order methods, to the same training loss: a row for each.

    python benchmarks/methods/first_order_comparison.py --folder study --setting intents [--plan FILE] [--lora BUNDLE]

The job says nothing of its steps, or is what ``fedspzo plan --json`` printed. All methods train the labels' vectors.

Rates of first-order methods are tuned here, on one seed, and all run on another. A bundle with adapters, exported for
the same setting to LiteRT and PyTorch, adds a row for each method.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from settings import SETTINGS, Setting, open_setting
from trial import ALPHA, COHORT, DEVICES, Conditions, Trained, make_job, read_options, run_job, run_training

from fedspzo.broker.rounds.aggregate import close_round
from fedspzo.broker.rounds.job import Job, plan_round
from fedspzo.broker.rounds.methods import FIRST_ORDER
from fedspzo.broker.simulation.first_order import ALGORITHMS, FirstOrder, payload
from fedspzo.broker.simulation.fleet import CALM, Fleet
from fedspzo.broker.simulation.gradient import Backpropagation
from fedspzo.broker.simulation.partition import Skew, device_names, share_out
from fedspzo.device_runtime.data.store import load_data
from fedspzo.device_runtime.engines.protocol import create_engine
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.protocol.codec import encode, fingerprint
from fedspzo.device_runtime.protocol.messages import Result
from fedspzo.device_runtime.protocol.plan import Plan
from fedspzo.device_runtime.protocol.signing import SIGNATURE_BYTES
from fedspzo.device_runtime.replica.weights import Replica
from fedspzo.device_runtime.step.runner import Forward
from fedspzo.device_runtime.step.scores import evaluate

TUNING_SEED = 0
#: Rates to choose from, as multiples of the method's own.
RATES = (0.3, 1.0, 3.0, 10.0, 30.0)
#: Forward passes of the whole network, of one device's batch of 8, that each of a cohort may spend.
ZEROTH, FIRST = 400, 60


@dataclass(frozen=True)
class FirstOrderChoice:
    """What is tuned of a first-order method.

    Attributes:
        method: one of ``fedspzo.broker.rounds.methods.FIRST_ORDER``.
        rate: learning rate.
        steps: local steps.
        batch: examples of a step.
    """

    method: str
    rate: float
    steps: int
    batch: int


def run_first_order_trial(setting: Setting, choice: FirstOrderChoice, seed: int, budget: float) -> Trained:
    """Train as :func:`trial.run_job` does, with the same devices, partition, cohorts and batches.

    Args:
        seed: of the partition and of all of the job's randomness.
        budget: operations of matrix products, of all devices.
    """
    shares = share_out(setting.train, DEVICES, Skew(ALPHA), seed)
    job = make_first_order_job(setting.bundle, choice, seed)
    training = FirstOrder(job, ALGORITHMS[choice.method], shares, Backpropagation(setting.bundle))
    return run_training(setting, job, Fleet(device_names(DEVICES), CALM, job.seed), training, budget)


def make_first_order_job(bundle: Bundle, choice: FirstOrderChoice, seed: int) -> Job:
    """The job of the trials, of one block that has the learning rate."""
    own = {"fanouts": (1,), "scales": (1.0,), "learning_rates": (choice.rate,)}
    return make_job(bundle, {**own, "batch": choice.batch, "steps": choice.steps}, seed)


def tune(setting: Setting, method: str, batch: int, target: float) -> FirstOrderChoice:
    """The rate that reaches the target soonest, or else comes lowest."""
    own = FIRST_ORDER[method]
    choices = [FirstOrderChoice(method, own.rate * factor, own.steps, batch) for factor in RATES]
    budget = FIRST * _forward_of_a_cohort(setting.bundle)

    def rank(choice: FirstOrderChoice) -> tuple[float, float]:
        curve = run_first_order_trial(setting, choice, TUNING_SEED, budget)
        final = curve.train[-1]
        return curve.smooth.reached(target), final if math.isfinite(final) else math.inf

    return min(choices, key=rank)


def compare(
    setting: Setting, data: Path, proposal: dict[str, str], methods: Sequence[str], target: float, seed: int
) -> Iterator[dict[str, object]]:
    """A row for the job, and one for each first-order method.

    Args:
        data: the training examples' file.
        proposal: the job's options; none for its defaults.
        target: training loss to reach.
        seed: of all runs but those that tune.
    """
    cohort, job = _forward_of_a_cohort(setting.bundle), make_job(setting.bundle, read_options(proposal), seed)
    curve, plan = run_job(setting, job, Conditions(), ZEROTH * cohort), plan_round(job, 1)
    up, down = zeroth_order_bytes(plan)
    yield _row(setting, data, "fedspzo, planned" if proposal else "fedspzo", curve, target, plan, up, down)
    size = payload(Backpropagation(setting.bundle).start()) * COHORT / DEVICES
    for method in methods:
        tuned = tune(setting, method, job.batch, target)
        curve = run_first_order_trial(setting, tuned, seed, FIRST * cohort)
        plan = plan_round(make_first_order_job(setting.bundle, tuned, seed), 1)
        yield _row(setting, data, method, curve, target, plan, size, size)


def zeroth_order_bytes(plan: Plan) -> tuple[float, float]:
    """Bytes that a round takes each of all devices, up and down on average, with signatures and without MQTT's own.

    A cohort gets the plan and answers; all get the entry.
    """
    random = np.random.default_rng(0).standard_normal(plan.scalars, np.float32)
    result = Result(plan.round, fingerprint(plan), tuple(random.tolist()), 0.5, plan.batch, 0.5, b"")
    entry = close_round(plan, {f"device-{number}": result for number in range(COHORT)})
    of_result, of_plan, of_entry = (len(encode(message)) + SIGNATURE_BYTES for message in (result, plan, entry))
    return of_result * COHORT / DEVICES, of_plan * COHORT / DEVICES + of_entry


def _row(
    setting: Setting,
    data: Path,
    method: str,
    curve: Trained,
    target: float,
    plan: Plan,
    up: float,
    down: float,
) -> dict[str, object]:
    """Costs to the target; None where it was not reached."""
    gflop = curve.smooth.reached(target) / 1e9
    rounds = gflop * 1e9 * curve.rounds / curve.flops[-1]
    device = _one_device(setting.bundle, data, plan, method)
    costs = {
        "rounds": rounds,
        "gflop": gflop,
        "seconds": rounds * device["seconds"],
        "bytes_up": rounds * up,
        "bytes_down": rounds * down,
    }
    return {
        "method": method,
        "trains": "adapters" if setting.bundle.manifest.adapters else "all weights",
        **{name: cost if math.isfinite(cost) else None for name, cost in costs.items()},
        "seconds_of_a_round": device["seconds"],
        "peak_mb": device["peak_mb"],
        "engine_mb": device["engine_mb"],
        "last_loss": curve.train[-1],
        "accuracy": curve.accuracy,
        "rate": plan.blocks[-1].learning_rate,
    }


def _one_device(bundle: Bundle, data: Path, plan: Plan, method: str) -> dict[str, float]:
    """Memory and time of a round on one device, in a process of its own."""
    command = [sys.executable, str(Path(__file__).with_name("one_device.py")), str(bundle.folder), str(data),
               encode(plan).hex(), *(["--first-order", method] if method in FIRST_ORDER else [])]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"one device's rounds of {method} failed: {done.stderr[-2000:]}")
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def _forward_of_a_cohort(bundle: Bundle) -> float:
    """Operations of a forward pass on each of a cohort."""
    shape = max(bundle.manifest.shapes, key=lambda shape: (shape.batch, shape.length))
    return float(COHORT * sum(shape.graphs[stage.graph].flops for stage in bundle.manifest.stages))


#: Title of a column → what it shows of a row.
COLUMNS = {
    "method": "method", "trains": "trains", "rounds": "rounds", "GFLOP, all devices": "gflop",
    "compute time, s": "seconds", "peak memory, MB": "peak_mb", "of it the empty engine": "engine_mb",
    "bytes up": "bytes_up", "bytes down": "bytes_down",
}  # fmt: skip


def as_markdown(rows: Sequence[dict[str, object]]) -> str:
    """The rows as a table."""

    def shown(value: object) -> str:
        if isinstance(value, float):
            return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
        return "not reached" if value is None else str(value)

    lines = [[shown(row[name]) for name in COLUMNS.values()] for row in rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [list(COLUMNS), ["---"] * len(COLUMNS), *lines])


def read_proposal(file: Path) -> dict[str, str]:
    """The options that ``fedspzo plan --json`` printed."""
    options: dict[str, str] = json.loads(file.read_text(encoding="utf-8"))["options"]
    return options


def main() -> None:
    """Print the rows as JSON lines as they come, then as a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="where the settings are")
    parser.add_argument("--setting", choices=list(SETTINGS), required=True)
    parser.add_argument("--plan", type=Path, metavar="FILE", help="what fedspzo plan --json printed")
    parser.add_argument("--methods", nargs="+", default=["fedavg", "fedadam"], choices=list(FIRST_ORDER))
    parser.add_argument("--seed", type=int, default=1, help="of the runs that are compared (%(default)s)")
    parser.add_argument("--lora", type=Path, metavar="BUNDLE", help="with adapters")
    options = parser.parse_args()
    setting = open_setting(options.setting, options.folder)
    setting = replace(setting, bundle=setting.labelled)
    data = options.folder / options.setting / "train.jsonl"
    start = evaluate(Forward(create_engine("litert", 1), Replica(setting.bundle)), setting.train).loss
    runs = [(setting, read_proposal(options.plan) if options.plan else {})]
    if options.lora:
        adapted = Bundle(options.lora)
        train, test = (load_data(data.with_name(f"{split}.jsonl"), adapted) for split in ("train", "test"))
        lora = replace(setting, bundle=adapted, train=train, test=test)
        runs.append((lora, {}))
    rows = []
    for each, proposal in runs:
        for row in compare(each, data, proposal, options.methods, setting.target * start, options.seed):
            rows.append(row)
            print(json.dumps(row), flush=True)
    print(as_markdown(rows))


if __name__ == "__main__":
    main()
