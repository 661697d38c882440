"""Ask the model of a run: print labels for a text with their probabilities, or the answer that it generates."""

from __future__ import annotations

import argparse
from pathlib import Path


def configure(parser: argparse.ArgumentParser) -> None:
    """Describe the options."""
    parser.add_argument("folder", type=Path, metavar="RUN", help="a run's folder, as the demo makes, or a bundle")
    parser.add_argument("text", nargs="+", metavar="TEXT", help="one text for each field of the task's template")
    parser.add_argument("--engine", default="litert", help="litert, executorch, torch or tflite (%(default)s)")
    parser.add_argument("--top", type=int, default=3, help="labels to print (%(default)s)")


def run(options: argparse.Namespace) -> None:
    """Print the most probable labels, or the answer."""
    import numpy as np

    from fedspzo.device_runtime.data.sources import Example, check_text
    from fedspzo.device_runtime.data.store import tokenise
    from fedspzo.device_runtime.engines.protocol import create_engine
    from fedspzo.device_runtime.errors import DataError
    from fedspzo.device_runtime.model.task import GENERATION
    from fedspzo.device_runtime.step.runner import Forward
    from fedspzo.device_runtime.step.scores import generate, predict
    from fedspzo.run_folder import open_model

    replica = open_model(options.folder)
    task = replica.bundle.manifest.task
    if len(options.text) != len(task.fields):
        raise DataError(
            "option.texts",
            f"task '{task.name}' takes {len(task.fields)} texts; give one each for {', '.join(task.fields)}",
        )
    for field, text in zip(task.fields, options.text, strict=True):
        check_text(field, text)
    if options.top < 1:
        raise DataError("option.top", f"--top is {options.top}; give at least 1")
    store = tokenise(replica.bundle, [Example(dict(zip(task.fields, options.text, strict=True)), 0)])
    forward = Forward(create_engine(options.engine), replica)
    if task.form == GENERATION:
        print(generate(forward, store)[0])
        return
    logits = predict(forward, store)[1][0].astype(np.float64)
    shares = np.exp(logits - logits.max())
    shares /= shares.sum()
    for index in np.argsort(-shares)[: options.top]:
        print(f"{shares[index]:6.1%}  {task.labels[index].name}")
