"""Write the model of a run as a Hugging Face checkpoint, which transformers loads."""

from __future__ import annotations

import argparse
from pathlib import Path


def configure(parser: argparse.ArgumentParser) -> None:
    """Describe the options."""
    parser.add_argument("folder", type=Path, metavar="RUN", help="a run's folder, as the demo makes")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to make")
    parser.add_argument("--source", help="the original model, if it has moved since the export")


def run(options: argparse.Namespace) -> None:
    """Write the checkpoint."""
    from export.materialize import write_checkpoint
    from fedspzo.run_folder import open_run

    replica = open_run(options.folder)
    write_checkpoint(replica, options.out, options.source)
    print(f"checkpoint of round {replica.round} written to {options.out}")
