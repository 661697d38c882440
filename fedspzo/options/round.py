"""The options about the rounds of a run: after which one its model is taken, and how long it waits for a better one."""

from __future__ import annotations

import argparse


def add_round_option(parser: argparse.ArgumentParser) -> None:
    """``--round``: a number, or a name of :mod:`fedspzo.run_folder`."""
    parser.add_argument(
        "--round", type=_round, default="last", metavar="N",
        help="the model after round N, after the last one (last, the default), or after the one with the best"
        " evaluation on held-out examples (best)",
    )  # fmt: skip


def add_patience_option(parser: argparse.ArgumentParser) -> None:
    """``--patience``: evaluations without a better one."""
    parser.add_argument(
        "--patience", type=int, metavar="N",
        help="stop after N evaluations in a row that are no better than the best before them: by the first score, and"
        " of equal scores by the loss (default: run all rounds)",
    )  # fmt: skip


def _round(text: str) -> int | str:
    if text.isdecimal():
        return int(text)
    if text not in ("best", "last"):
        raise argparse.ArgumentTypeError(f"'{text}' is neither a round's number nor 'best' nor 'last'")
    return text
