"""What the attacks of ``fedspzo privacy attack`` find on the demo's model, and what noise costs: docs/trust.md.

The attacks are on 200 of the demo's sentences, measured in 100 rounds of the demo's job. They are kept in a file, since
measuring them takes minutes.

    fedspzo export minilm --task intents --max-length 12 --batch 8 --engine litert --out bundle
    python benchmarks/privacy.py attacks bundle --measured sentences.npz

What noise costs is measured on any bundle and data; a line of JSON a run is appended to ``--out``, and runs that are
there already are not run again.

    python benchmarks/privacy.py utility bundle --data train.jsonl --held-out test.jsonl --devices 20 --out runs.jsonl
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from hostile import SPLITS, write_data

import fedspzo
from fedspzo.broker.privacy.dictionary import Dictionary, every_label, measure_dictionary
from fedspzo.broker.privacy.findings import Settings, attack, audit
from fedspzo.broker.privacy.trials import find_alone
from fedspzo.broker.rounds.job import Job, check_job
from fedspzo.broker.rounds.methods import METHODS
from fedspzo.broker.simulation.partition import subset
from fedspzo.device_runtime.data.store import load_data
from fedspzo.device_runtime.engines.protocol import create_engine
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.replica.weights import Replica
from fedspzo.device_runtime.step.runner import Forward

CANDIDATES, ROUNDS = 200, 100
#: Unit of the noise, and the clip of its vectors.
NOISES = (("example", 100.0), ("device", 50.0))
#: Promises (ε).
BUDGETS = (8.0, 2.0, 1.0)


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    attacks = commands.add_parser("attacks")
    attacks.add_argument("bundle", type=Path, help="the demo's: minilm for the task intents, 12 tokens, batches of 8")
    attacks.add_argument("--measured", type=Path, required=True, help="where measured sentences are kept")
    attacks.add_argument("--trials", type=int, default=200)
    utility = commands.add_parser("utility")
    utility.add_argument("bundle", type=Path)
    utility.add_argument("--data", type=Path, required=True)
    utility.add_argument("--held-out", type=Path, required=True)
    utility.add_argument("--devices", type=int, default=20, help="all of them are in each round")
    utility.add_argument("--rounds", type=int, default=60)
    utility.add_argument("--alpha", default="0.5")
    utility.add_argument("--seeds", type=int, default=1)
    utility.add_argument("--rates", default="0.3,0.1,0.03", help="shares of the method's rates to try with noise")
    utility.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    if options.command == "attacks":
        show_attacks(options.bundle, options.measured, options.trials)
    else:
        measure_utility(options)


def show_attacks(folder: Path, measured: Path, trials: int) -> None:
    """Print the rows of the table in docs/trust.md."""
    bundle = Bundle(folder)
    job = check_job(Job(), bundle)
    with TemporaryDirectory() as temporary:
        store = subset(load_data(write_data(Path(temporary), "train", SPLITS["train"]), bundle), np.arange(CANDIDATES))
    if not measured.exists():
        forward = Forward(create_engine("litert", 1), Replica(bundle, None, 1))
        found = measure_dictionary(forward, store, job, ROUNDS)
        labelled = measure_dictionary(forward, every_label(store, len(bundle.manifest.task.labels)), job, 1)
        np.savez(
            measured,
            scalars=found.scalars,
            losses=found.losses,
            labelled=labelled.scalars,
            labelled_losses=labelled.losses,
        )
    with np.load(measured) as arrays:
        dictionary = Dictionary(arrays["scalars"], arrays["losses"])
        labelled = Dictionary(arrays["labelled"], arrays["labelled_losses"])
    sizes = np.linalg.norm(dictionary.scalars[0], axis=1)
    print(f"{dictionary.scalars.shape[0]} rounds; sizes of scalars {np.percentile(sizes, [0, 50, 100]).round(1)}")
    print("one result, sentence and label:", *map(str, find_alone(dictionary, labelled, store.labels)), flush=True)
    settings = Settings(trials=trials)
    for budget in (8.0, 2.0, 1.0):
        print(f"canary at ε = {budget:g}: at least {audit(dictionary, settings, budget):.2f}", flush=True)
    for found_one in attack(dictionary, settings, np.random.default_rng(0)):
        print(
            f"| {found_one.attack} | {found_one.rounds} | {found_one.budget:g} | {found_one.rate} "
            f"| {100 * found_one.chance:.1f} % | {100 * found_one.allowed:.1f} % |",
            flush=True,
        )


def measure_utility(options: argparse.Namespace) -> None:
    """Run what is missing of the noises, and append held-out loss and scores before and after."""
    known = [json.loads(line) for line in options.out.read_text().splitlines()] if options.out.exists() else []
    rates = [float(rate) for rate in options.rates.split(",")]
    noisy = [(*noise, budget, rate) for budget in BUDGETS for noise in NOISES for rate in rates]
    for seed in range(options.seeds):
        for unit, clip, budget, rate in (("none", 0.0, 0.0, 1.0), *noisy):
            setting = {
                "bundle": options.bundle.name, "devices": options.devices, "rounds": options.rounds,
                "alpha": options.alpha, "seed": seed, "unit": unit,
                "privacy_budget": budget, "clip": clip, "rate": rate,
            }  # fmt: skip
            if any(setting.items() <= run.items() for run in known):
                continue
            line = json.dumps({**setting, **run_once(options, setting)})
            print(line, flush=True)
            with options.out.open("a") as file:
                file.write(line + "\n")


def run_once(options: argparse.Namespace, setting: dict[str, Any]) -> dict[str, Any]:
    """One simulated job, in which all devices are in every round."""
    settings: dict[str, Any] = dict(METHODS["frozen"].settings())
    settings["learning_rates"] = tuple(setting["rate"] * rate for rate in settings["learning_rates"])
    if setting["unit"] != "none":
        settings |= {
            "privacy": setting["unit"],
            "privacy_budget": setting["privacy_budget"],
            "noise_clip": setting["clip"],
        }
    count = setting["devices"]
    job = fedspzo.Job(**settings, rounds=setting["rounds"], cohort=count, quorum=count, seed=setting["seed"])
    run = fedspzo.simulate(
        options.bundle, options.data, job, devices=count, partition=f"dirichlet:{setting['alpha']}",
        held_out=options.held_out, evaluate_every=job.rounds,
    )  # fmt: skip
    before, after = run.evaluations[0], run.evaluation
    return {"loss_before": before.loss, "before": before.scores, "loss": after.loss, "after": after.scores}


if __name__ == "__main__":
    main()
