"""Ask the model of a run: its labels for a text with their probabilities, or the answer that it generates.

With ``--record``, what is shown is written down with what you say of it, for a device to learn from.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from fedspzo.options.memory import add_memory_option
from fedspzo.options.round import add_round_option

if TYPE_CHECKING:
    from fedspzo.device_runtime.data.suggestion import Suggestion
    from fedspzo.device_runtime.model.task import Task


def configure(parser: argparse.ArgumentParser) -> None:
    """Describe the options."""
    parser.add_argument("folder", type=Path, metavar="RUN", help="a run's or a state folder, or a bundle")
    parser.add_argument(
        "text", nargs="+", metavar="TEXT", help="one text for each field of the task; of a dialogue all turns"
    )
    parser.add_argument("--engine", default="litert", help="litert, executorch, torch or tflite (%(default)s)")
    add_memory_option(parser)
    add_round_option(parser)
    parser.add_argument("--top", type=int, default=3, help="labels to print (%(default)s)")
    parser.add_argument(
        "--temperature", type=float, default=0.0, help="draw a generated answer's tokens; 0 takes the likeliest"
    )
    parser.add_argument("--top-p", type=float, default=1.0, help="draw from the likeliest that have this probability")
    parser.add_argument("--seed", type=int, default=0, help="of the draws (%(default)s)")
    parser.add_argument(
        "--record", type=Path, metavar="FILE",
        help="ask whether the answer is right (y, n, or the right answer), and add that to this file of feedback",
    )  # fmt: skip
    parser.add_argument(
        "--explore", type=float, default=0.0, metavar="P",
        help="with --record: show any label, each alike, with this probability, which is written down (%(default)s)",
    )  # fmt: skip


def run(options: argparse.Namespace) -> None:
    """Print the most probable labels, or the answer as it comes."""
    from fedspzo.api.models import open_model, predict, stream_answer
    from fedspzo.device_runtime.data.feedback import takes_feedback
    from fedspzo.device_runtime.data.suggestion import Suggestion, suggest
    from fedspzo.device_runtime.errors import DataError
    from fedspzo.device_runtime.model.task import GENERATION
    from fedspzo.device_runtime.step.sampling import Sampling

    if options.top < 1:
        raise DataError("option.top", f"--top is {options.top}; give at least 1")
    if options.explore and not options.record:
        raise DataError("option.explore", "--explore is for what is written down; add --record FILE")
    if options.record and options.temperature:
        raise DataError(
            "option.record", "the probability of a drawn text is not known; leave out --temperature, or --record"
        )
    sampling = Sampling(options.temperature, top_p=options.top_p, seed=options.seed)
    model = open_model(options.folder, options.round)
    task = model.bundle.manifest.task
    if options.record and not takes_feedback(task):
        raise DataError(
            "option.record", f"feedback is on one label, or on the text for a template; task '{task.name}' has neither"
        )
    if task.form == GENERATION:
        if options.explore:
            raise DataError("option.explore", "--explore is for labels; leave it out")
        pieces = []
        for piece in stream_answer(
            model, *options.text, engine=options.engine, memory=options.memory, sampling=sampling
        ):
            print(piece, end="", flush=True)
            pieces.append(piece)
        print()
        if options.record:
            _record(options, task, Suggestion("".join(pieces).strip(), 1.0, {}, model.round))
        return
    found = predict(model, *options.text, engine=options.engine, memory=options.memory)
    for label, share in list(found.probabilities.items())[: options.top]:
        print(f"{share:6.1%}  {label}")
    if not found.probabilities:
        print(found.answer)
    if options.record:
        suggestion = suggest(found.probabilities, model.round, options.explore)
        print(suggestion.shown)
        _record(options, task, suggestion)


def _record(options: argparse.Namespace, task: Task, suggestion: Suggestion) -> None:
    """Ask what the person says of an answer, and write it down; nothing is written where they say nothing.

    An empty answer cannot be accepted or rejected; what is right in its place is written as an example.
    """
    from fedspzo.device_runtime.data.feedback import ACCEPTED, REJECTED
    from fedspzo.device_runtime.data.sources import parse_record
    from fedspzo.device_runtime.data.suggestion import append_record

    print("is that right? (y, n, or the right answer) ", end="", flush=True)
    said = sys.stdin.readline().strip()
    fields = dict(zip(task.fields, options.text, strict=True))
    rewards = {} if said in {label.name for label in task.labels} else {"y": ACCEPTED, "n": REJECTED}
    if rewards and task.labels:  # where texts are written, these may be right answers
        rewards |= {"yes": ACCEPTED, "no": REJECTED}
    corrected = "" if said.lower() in rewards else said
    if not (said if suggestion.shown else corrected):
        print("nothing is written down")
        return
    record: dict[str, object] = {**fields, task.target: corrected}  # of nothing shown, what is right
    if suggestion.shown:
        record = suggestion.record(fields, rewards.get(said.lower()), corrected)
    parse_record(record, task)  # refuses what is no label
    append_record(options.record, record)
