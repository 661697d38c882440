"""Back up a server's state folder, whether the server runs or not. Devices keep the entries that no backup has."""

from __future__ import annotations

import argparse
from pathlib import Path


def configure(parser: argparse.ArgumentParser) -> None:
    """Describe the options."""
    parser.add_argument("state", type=Path, metavar="DIR", help="the server's state folder")
    parser.add_argument(
        "target", type=Path, metavar="BACKUP", help="a folder on another disk; an older backup there is replaced"
    )


def run(options: argparse.Namespace) -> None:
    """Copy, and say up to where."""
    from fedspzo.broker.server.backup import back_up

    last = back_up(options.state, options.target)
    print(f"{options.target} has the journal up to round {last}, and the server's key: keep it secret", flush=True)
