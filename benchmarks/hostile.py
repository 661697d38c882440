"""What hostile devices do to a job, for each rule and each attack, with the demo's model and sentences.

Each run is a simulated job of the demo's data, split by Dirichlet proportions; a line of JSON a run is appended to
``--out``, and runs that are there already are not run again.

    fedspzo export minilm --task intents --max-length 12 --batch 8 --engine litert --out bundle
    python benchmarks/hostile.py bundle --out hostile.jsonl
    python benchmarks/hostile.py bundle --out hostile.jsonl --rules clipped-mean --attacks negated:2 --devices 10
    python benchmarks/hostile.py bundle --out hostile.jsonl --rules clipped-mean,weighted-mean --attacks "" \
        --alpha 0.1 --seeds 10
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import fedspzo
from fedspzo.broker.rounds.methods import METHODS
from fedspzo.broker.rounds.robust import CHOICES
from fedspzo.broker.server.status import read_status
from fedspzo.broker.simulation.hostile import ATTACKS
from fedspzo.demo import intents
from fedspzo.demo.run import TEST_PER_INTENT, TRAIN_PER_INTENT


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, help="the demo's: minilm for the task intents, 12 tokens, batches of 8")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rules", default=",".join(CHOICES))
    parser.add_argument(
        "--attacks", default=",".join(("", *ATTACKS)), help='"" for honest devices; NAME:N has N hostile devices'
    )
    parser.add_argument("--devices", type=int, default=8)
    parser.add_argument("--cohort", type=int, default=4)
    parser.add_argument("--mode", default="robust", help="robust, groups (a cohort of 12 and more) or secure")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--alpha", default="0.5")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--method", default="frozen")
    options = parser.parse_args()
    known = [json.loads(line) for line in options.out.read_text().splitlines()] if options.out.exists() else []
    settings = [
        {
            "rule": rule, "attack": attack, "devices": options.devices, "cohort": options.cohort,
            "rounds": options.rounds, "alpha": options.alpha, "seed": seed, "method": options.method,
            **({"mode": options.mode} if options.mode != "robust" else {}),
        }
        for attack in options.attacks.split(",") for rule in options.rules.split(",") for seed in range(options.seeds)
    ]  # fmt: skip
    with TemporaryDirectory() as folder:
        data = {split: write_data(Path(folder), split, count) for split, count in SPLITS.items()}
        for setting in settings:
            if any(setting.items() <= run.items() for run in known):
                continue
            found = json.dumps({**setting, **run_once(options.bundle, data, setting)})
            print(found, flush=True)
            with options.out.open("a") as file:
                file.write(found + "\n")


SPLITS = {"train": TRAIN_PER_INTENT, "test": TEST_PER_INTENT}


def write_data(folder: Path, split: Any, count: int) -> Path:
    """The demo's sentences of a split, in a file."""
    source, path = intents.load(), folder / f"{split}.jsonl"
    examples = intents.generate(source, split, count, 0)
    lines = (json.dumps({"text": e.text, "label": source.intents[e.label].name}) for e in examples)
    path.write_text("\n".join(lines) + "\n")
    return path


def run_once(bundle: Path, data: dict[str, Path], setting: dict[str, Any]) -> dict[str, Any]:
    """Held-out loss and accuracy before and after, and what status says of devices."""
    job = fedspzo.Job(
        **METHODS[setting["method"]].settings(), rounds=setting["rounds"], cohort=setting["cohort"],
        mode=setting.get("mode", "robust"),
        seed=setting["seed"], aggregate=setting["rule"],
    )  # fmt: skip
    with TemporaryDirectory() as folder:
        run = fedspzo.simulate(
            bundle, data["train"], job, devices=setting["devices"], partition=f"dirichlet:{setting['alpha']}",
            held_out=data["test"], evaluate_every=job.rounds, attack=setting["attack"] or None, state=folder,
        )  # fmt: skip
        unusual = read_status(Path(folder))["unusual"]
    said = ("name", "accused", "noted", "contrary", "expelled")
    before, after = run.evaluations[0], run.evaluation
    return {
        "loss_before": before.loss, "loss": after.loss, "accuracy": after.scores["accuracy"],
        "unusual": [{name: device[name] for name in said} for device in unusual],
    }  # fmt: skip


if __name__ == "__main__":
    main()
