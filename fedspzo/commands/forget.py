"""Free the names of devices that lost their state folder, and with it their key, so that new keys can use them."""

from __future__ import annotations

import argparse
from pathlib import Path


def configure(parser: argparse.ArgumentParser) -> None:
    """Describe the options."""
    parser.add_argument("state", type=Path, metavar="DIR", help="the server's state folder; the server must be stopped")
    parser.add_argument("names", nargs="+", metavar="NAME", help="a device's id")


def run(options: argparse.Namespace) -> None:
    """Forget all of them or none."""
    from fedspzo.broker.server.forgetting import forget_devices

    forget_devices(options.state, options.names)
    for name in options.names:
        print(f"{name} is forgotten; whoever comes first by that name has it", flush=True)
