"""Give a stopped server another key. The old one signs which is the new one, so that devices follow by themselves."""

from __future__ import annotations

import argparse
from pathlib import Path


def configure(parser: argparse.ArgumentParser) -> None:
    """Describe the options."""
    parser.add_argument("state", type=Path, metavar="DIR", help="the server's state folder; the server must be stopped")


def run(options: argparse.Namespace) -> None:
    """Change the key, and say from where on it signs."""
    from fedspzo.broker.server.key_change import change_key

    change = change_key(options.state)
    print(f"the key {change.key.hex()} signs from round {change.round} on; start the server again", flush=True)
    print("make a backup now (fedspzo server backup): devices will not believe the key in older ones", flush=True)
