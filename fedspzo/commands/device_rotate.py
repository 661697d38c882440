"""Give a stopped device another key. The old one signs which is the new one, so that the device keeps its name."""

from __future__ import annotations

import argparse
from pathlib import Path


def configure(parser: argparse.ArgumentParser) -> None:
    """Describe the options."""
    parser.add_argument("state", type=Path, metavar="DIR", help="the device's state folder; the device must be stopped")


def run(options: argparse.Namespace) -> None:
    """Change the key, and show it as ``fedspzo device --show-key`` does."""
    from fedspzo.device_runtime.replica.device_key import change_key

    device, key = change_key(options.state)
    print(f"{device} {key.hex()}", flush=True)
