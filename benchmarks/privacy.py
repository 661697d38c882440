"""What the attacks of ``fedspzo privacy attack`` find on the demo's model, and what noise costs: docs/trust.md.

The attacks are on 200 of the demo's sentences, measured in 100 rounds of the demo's job. They are kept in a file, since
measuring them takes minutes.

    fedspzo export minilm --task intents --max-length 12 --batch 8 --engine litert --out bundle
    python benchmarks/privacy.py attacks bundle --measured sentences.npz
"""

from __future__ import annotations

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from hostile import SPLITS, write_data

from fedspzo.broker.privacy.dictionary import Dictionary, every_label, measure_dictionary
from fedspzo.broker.privacy.findings import Settings, attack, audit
from fedspzo.broker.privacy.trials import find_alone
from fedspzo.broker.rounds.job import Job, check_job
from fedspzo.broker.simulation.partition import subset
from fedspzo.device_runtime.data.store import load_data
from fedspzo.device_runtime.engines.protocol import create_engine
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.replica.weights import Replica
from fedspzo.device_runtime.step.runner import Forward

CANDIDATES, ROUNDS = 200, 100


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    attacks = commands.add_parser("attacks")
    attacks.add_argument("bundle", type=Path, help="the demo's: minilm for the task intents, 12 tokens, batches of 8")
    attacks.add_argument("--measured", type=Path, required=True, help="where measured sentences are kept")
    attacks.add_argument("--trials", type=int, default=200)
    options = parser.parse_args()
    show_attacks(options.bundle, options.measured, options.trials)


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


if __name__ == "__main__":
    main()
