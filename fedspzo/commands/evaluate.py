"""Measure a model on a file: loss and accuracy (or exact match and F1), before and after the rounds of a run.

Of reactions it estimates the reward. A file may have both.
"""

from __future__ import annotations

import argparse
import math
from collections import ChainMap
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedspzo.device_runtime import plain_json
from fedspzo.device_runtime.log import several
from fedspzo.options.memory import add_memory_option
from fedspzo.options.round import add_round_option
from fedspzo.progress import describe_uncertainty

if TYPE_CHECKING:
    from fedspzo.api.models import Model
    from fedspzo.device_runtime.data.store import DataStore

#: What was found of a model: by name, for programs, and as a line for people.
Figures = tuple[dict[str, float], str]


def configure(parser: argparse.ArgumentParser) -> None:
    """Describe the options."""
    parser.add_argument("folder", type=Path, metavar="RUN", help="a run's or a state folder, or a bundle")
    parser.add_argument(
        "--data",
        required=True,
        metavar="FILE",
        help="labelled examples, reactions, or both (see fedspzo device --help)",
    )
    parser.add_argument("--engine", default="litert", help="litert, executorch, torch or tflite (%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="threads of the engine (%(default)s)")
    add_memory_option(parser)
    add_round_option(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(options: argparse.Namespace) -> None:
    """Print a line for each state of the model."""
    from fedspzo.device_runtime.data.store import labelled, load_data
    from fedspzo.progress import steps
    from fedspzo.run_folder import LAST, is_bundle, open_bundle, open_model

    how = {"engine": options.engine, "threads": options.threads, "memory": options.memory}
    with steps("reading the data") as progress:
        bundle = open_bundle(options.folder)
        store = load_data(options.data, bundle)
        right = labelled(store)
        counts = {"examples": len(right), "reactions": len(store) - len(right)}

        def measure(model: Model) -> list[Figures]:
            reacted = [_estimate(model, store, **how)] if counts["reactions"] else []
            return reacted + ([_evaluate(model, right, **how)] if counts["examples"] else [])

        progress("evaluating the model as it was exported")
        found = {"before": measure(bundle)}
        if not is_bundle(options.folder) or options.round != LAST:
            progress("applying the journal")
            trained = open_model(options.folder, options.round)
            progress(f"evaluating the model after round {trained.round}")
            found[f"after {trained.round} rounds"] = measure(trained)
    if options.json:
        states = {name: dict(ChainMap(*(figures for figures, _ in parts))) for name, parts in found.items()}
        print(plain_json.dumps(states | counts))
        return
    for name, parts in found.items():
        for _, line in parts:
            print(f"{name}: {line}")
    cut = f", {store.truncated} of them cut to {bundle.manifest.length} tokens" if store.truncated else ""
    print(_describe(counts) + cut)


def _describe(counts: Mapping[str, int]) -> str:
    """How many examples have labels, corrections among them, and how many reactions there are."""
    if not counts["reactions"]:
        return f"{counts['examples']} examples"
    said = several(counts["reactions"], "reaction")
    return f"{said} and {several(counts['examples'], 'label')}, corrections included" if counts["examples"] else said


def _evaluate(model: Model, store: DataStore, **how: Any) -> Figures:
    """Of examples with labels."""
    from fedspzo.api.models import evaluate
    from fedspzo.device_runtime.model.metrics import format_score

    found = evaluate(model, store, **how)
    uncertainty = describe_uncertainty(found)
    error = "".join(f" (standard error {value:.4f})" for value in uncertainty.values())
    scores = ", ".join(format_score(*score) for score in found.scores.items())
    return {"loss": found.loss, **uncertainty, **found.scores}, f"loss {found.loss:.4f}{error}, {scores}"


def _estimate(model: Model, store: DataStore, **how: Any) -> Figures:
    """Of reactions."""
    from fedspzo.api.models import estimate_reward

    found = estimate_reward(model, store, **how).record()
    said = {name: f"{value:.4f}" if math.isfinite(value) else "unknown" for name, value in found.items()}
    line = (
        "estimated reward {reward} (standard error {reward_uncertainty}), self-normalised {normalised} (standard error"
        " {normalised_uncertainty})"
    ).format(**said)
    return found, f"{line}; {found['effective']:.1f} reactions count fully"
