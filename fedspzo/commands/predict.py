"""Ask the model of a run: its labels for a text with their probabilities, or the answer that it generates."""

from __future__ import annotations

import argparse
from pathlib import Path

from fedspzo.options.round import add_round_option


def configure(parser: argparse.ArgumentParser) -> None:
    """Describe the options."""
    parser.add_argument("folder", type=Path, metavar="RUN", help="a run's folder, as the demo makes, or a bundle")
    parser.add_argument(
        "text", nargs="+", metavar="TEXT", help="one text for each field of the task; of a dialogue all turns"
    )
    parser.add_argument("--engine", default="litert", help="litert, executorch, torch or tflite (%(default)s)")
    add_round_option(parser)
    parser.add_argument("--top", type=int, default=3, help="labels to print (%(default)s)")
    parser.add_argument(
        "--temperature", type=float, default=0.0, help="draw a generated answer's tokens; 0 takes the likeliest"
    )
    parser.add_argument("--top-p", type=float, default=1.0, help="draw from the likeliest that have this probability")
    parser.add_argument("--seed", type=int, default=0, help="of the draws (%(default)s)")


def run(options: argparse.Namespace) -> None:
    """Print the most probable labels, or the answer as it comes."""
    from fedspzo.api.models import open_model, predict, stream_answer
    from fedspzo.device_runtime.errors import DataError
    from fedspzo.device_runtime.model.task import GENERATION
    from fedspzo.device_runtime.step.sampling import Sampling

    if options.top < 1:
        raise DataError("option.top", f"--top is {options.top}; give at least 1")
    sampling = Sampling(options.temperature, top_p=options.top_p, seed=options.seed)
    model = open_model(options.folder, options.round)
    if model.bundle.manifest.task.form == GENERATION:
        for piece in stream_answer(model, *options.text, engine=options.engine, sampling=sampling):
            print(piece, end="", flush=True)
        print()
        return
    found = predict(model, *options.text, engine=options.engine)
    for label, share in list(found.probabilities.items())[: options.top]:
        print(f"{share:6.1%}  {label}")
    if not found.probabilities:
        print(found.answer)
