"""Write the model of a run as a Hugging Face checkpoint, which transformers loads."""

from __future__ import annotations

import argparse
from pathlib import Path

from fedspzo.options.round import add_round_option
from fedspzo.progress import describe_evaluation


def configure(parser: argparse.ArgumentParser) -> None:
    """Describe the options."""
    parser.add_argument("folder", type=Path, metavar="RUN", help="a run's folder, as the demo makes, or a state folder")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to make")
    parser.add_argument("--peft", action="store_true", help="write only the adapters, as a folder that peft loads")
    parser.add_argument(
        "--base-model", metavar="NAME",
        help="with --peft: what the folder calls the original model (default: its hub id, or else its path from here)",
    )  # fmt: skip
    parser.add_argument("--source", help="the original model, if it has moved since the export")
    parser.add_argument(
        "--push", metavar="REPO", help="also upload it to the Hugging Face hub, as USER/NAME; a new one is private"
    )
    add_round_option(parser)


def run(options: argparse.Namespace) -> None:
    """Write the checkpoint."""
    from fedspzo.api.models import materialize_model
    from fedspzo.progress import steps
    from fedspzo.run_folder import best_evaluation, open_run

    with steps("applying the journal") as progress:
        replica = open_run(options.folder, options.round)
        progress("writing the adapter" if options.peft else "writing the checkpoint")
        materialize_model(
            replica, options.out, peft=options.peft, source=options.source, base_model=options.base_model,
            run=options.folder,
        )  # fmt: skip
    print(f"{'adapter' if options.peft else 'checkpoint'} of round {replica.round} written to {options.out}")
    if options.push:
        from fedspzo.export.hub import push_folder

        with steps("uploading"):
            address = push_folder(options.out, options.push)
        print(f"uploaded to {address}; complete its model card")
    best = best_evaluation(options.folder)
    if options.round == "last" and best is not None and best.round != replica.round:
        print(f"the best on the held-out examples was {describe_evaluation(best.record())}; --round best gives it")
