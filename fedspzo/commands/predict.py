"""Ask the model of a run: its labels for a text with their probabilities, or the answer that it generates."""

from __future__ import annotations

import argparse
from pathlib import Path

from fedspzo.options.round import add_round_option


def configure(parser: argparse.ArgumentParser) -> None:
    """Describe the options."""
    parser.add_argument("folder", type=Path, metavar="RUN", help="a run's folder, as the demo makes, or a bundle")
    parser.add_argument("text", nargs="+", metavar="TEXT", help="one text for each field of the task's template")
    parser.add_argument("--engine", default="litert", help="litert, executorch, torch or tflite (%(default)s)")
    add_round_option(parser)
    parser.add_argument("--top", type=int, default=3, help="labels to print (%(default)s)")


def run(options: argparse.Namespace) -> None:
    """Print the most probable labels, or the answer."""
    from fedspzo.api.models import open_model, predict
    from fedspzo.device_runtime.errors import DataError

    if options.top < 1:
        raise DataError("option.top", f"--top is {options.top}; give at least 1")
    found = predict(open_model(options.folder, options.round), *options.text, engine=options.engine)
    for label, share in list(found.probabilities.items())[: options.top]:
        print(f"{share:6.1%}  {label}")
    if not found.probabilities:
        print(found.answer)
