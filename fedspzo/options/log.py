"""The options that say how commands that serve write their log."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_log_options(parser: argparse.ArgumentParser, json: str = "write the log as JSON lines") -> None:
    """How much is logged, how and where; ``json`` says what ``--json`` does."""
    parser.add_argument("-v", "--verbose", action="store_true", help="log more: also what is sent and received")
    parser.add_argument("--log-file", type=Path, metavar="FILE", help="append the log to a file too")
    parser.add_argument("--json", action="store_true", help=json)
