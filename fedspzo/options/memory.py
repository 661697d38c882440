"""The option for how much memory a process may take."""

from __future__ import annotations

import argparse


def add_memory_option(parser: argparse.ArgumentParser) -> None:
    """``--memory``: see :func:`fedspzo.device_runtime.step.budget.parse_memory`."""
    parser.add_argument(
        "--memory", default="auto", metavar="SIZE",
        help="memory that the process should keep to, as 300MB or 2GB: a frozen base that does not fit is read from"
        " files as it is needed (litert); all keeps it in memory, and auto, the default, does so where enough is free",
    )  # fmt: skip
