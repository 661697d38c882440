"""Measure a model on a file: loss and accuracy (or exact match and F1), before and after the rounds of a run."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from fedspzo.options.memory import add_memory_option
from fedspzo.options.round import add_round_option


def configure(parser: argparse.ArgumentParser) -> None:
    """Describe the options."""
    parser.add_argument("folder", type=Path, metavar="RUN", help="a run's folder, as the demo makes, or a bundle")
    parser.add_argument("--data", required=True, metavar="FILE", help="labelled examples (see fedspzo device --help)")
    parser.add_argument("--engine", default="litert", help="litert, executorch, torch or tflite (%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="threads of the engine (%(default)s)")
    add_memory_option(parser)
    add_round_option(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(options: argparse.Namespace) -> None:
    """Print a line for each state of the model."""
    from fedspzo.api.models import evaluate
    from fedspzo.device_runtime.data.store import load_data
    from fedspzo.device_runtime.model.metrics import format_score
    from fedspzo.progress import steps
    from fedspzo.run_folder import LAST, is_bundle, open_bundle, open_model

    how = {"engine": options.engine, "threads": options.threads, "memory": options.memory}
    with steps("reading the data") as progress:
        bundle = open_bundle(options.folder)
        store = load_data(options.data, bundle)
        progress("evaluating the model as it was exported")
        found = {"before": evaluate(bundle, store, **how)}
        if not is_bundle(options.folder) or options.round != LAST:
            progress("applying the journal")
            trained = open_model(options.folder, options.round)
            progress(f"evaluating the model after round {trained.round}")
            after = evaluate(trained, store, **how)
            found[f"after {trained.round} rounds"] = after
    if options.json:
        print(json.dumps({name: {"loss": e.loss, **e.scores} for name, e in found.items()} | {"examples": len(store)}))
        return
    for name, evaluation in found.items():
        scores = ", ".join(format_score(*score) for score in evaluation.scores.items())
        print(f"{name}: loss {evaluation.loss:.4f}, {scores}")
    cut = f", {store.truncated} of them cut to {bundle.manifest.length} tokens" if store.truncated else ""
    print(f"{len(store)} examples{cut}")
