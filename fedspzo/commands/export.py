"""Make a bundle: forward-only graphs, weights, tokenizer and task of a Hugging Face model."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from export.pipeline import StageReport


def configure(parser: argparse.ArgumentParser) -> None:
    """Describe the options."""
    parser.add_argument("model", metavar="MODEL", help="a model's folder, a hub id, or 'minilm'")
    parser.add_argument("--task", required=True, help="a task that comes with the project, or a .toml file")
    parser.add_argument("--engine", default="litert", help="comma-separated: litert, executorch, torch (%(default)s)")
    parser.add_argument("--batch", type=int, default=8, help="examples in a batch (%(default)s)")
    parser.add_argument("--max-length", type=int, default=64, help="tokens in an example (%(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="folder to make")


def run(options: argparse.Namespace) -> None:
    """Export, showing progress and a table of the stages."""
    from rich.console import Console

    from export.pipeline import export_bundle
    from export.tasks import load_task

    console = Console(file=sys.stdout)  # this one, though the libraries' output is redirected meanwhile
    with console.status("starting") as status:
        reports = export_bundle(
            options.model,
            load_task(options.task),
            [name.strip() for name in options.engine.split(",")],
            options.batch,
            options.max_length,
            options.out,
            progress=lambda step: status.update(step),
        )
    print_reports(console, reports)
    console.print(f"bundle written to {options.out}")


def print_reports(console: Console, reports: Sequence[StageReport]) -> None:
    """Print what export found out, a row a stage."""
    from rich.table import Table

    engines = list(reports[0].delegated)
    table = Table("stage", "parameters", "trainable", "MFLOP a batch", *(f"{e}: delegated, deviation" for e in engines))
    for column in table.columns[1:]:
        column.justify = "right"
    for report in reports:
        table.add_row(
            report.name,
            f"{report.parameters:,}",
            f"{report.trainable:,}",
            f"{report.flops / 1e6:,.1f}",
            *(f"{report.delegated[e]:.0%}, {report.deviation[e]:.0e}" for e in engines),
        )
    console.print(table)
