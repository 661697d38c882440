"""Ask the model of a run: the labels that it gives to a text, with their probabilities."""

from __future__ import annotations

import argparse
from pathlib import Path


def configure(parser: argparse.ArgumentParser) -> None:
    """Describe the options."""
    parser.add_argument("folder", type=Path, metavar="RUN", help="a run's folder, as the demo makes")
    parser.add_argument("text", nargs="+", metavar="TEXT", help="one text for each field of the task's template")
    parser.add_argument("--engine", default="litert", help="litert, executorch or torch (%(default)s)")
    parser.add_argument("--top", type=int, default=3, help="labels to print (%(default)s)")


def run(options: argparse.Namespace) -> None:
    """Print the most probable labels."""
    import numpy as np

    from device_runtime.data import tokenise
    from device_runtime.engines import create_engine
    from device_runtime.errors import DataError
    from device_runtime.forward import Forward
    from fedspzo.run_folder import open_run

    replica = open_run(options.folder)
    task = replica.bundle.manifest.task
    if len(options.text) != len(task.fields):
        raise DataError(f"task '{task.name}' takes {len(task.fields)} texts: {', '.join(task.fields)}")
    store = tokenise(replica.bundle, [(dict(zip(task.fields, options.text, strict=True)), 0)])
    logits = Forward(create_engine(options.engine), replica).evaluate(store).logits[0].astype(np.float64)
    shares = np.exp(logits - logits.max())
    shares /= shares.sum()
    for index in np.argsort(-shares)[: options.top]:
        print(f"{shares[index]:6.1%}  {task.labels[index].name}")
