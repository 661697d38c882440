"""The table of a bundle's stages, which export and inspect print."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from fedspzo.device_runtime.model.manifest import Manifest


def print_stages(console: Console, manifest: Manifest) -> None:
    """Print what a bundle says of its stages: parameters, FLOPs, delegated shares and deviations."""
    from math import prod

    from rich.table import Table

    shape = manifest.shapes[0]
    formats = list(manifest.checks[0].delegated)
    table = Table("stage", "parameters", "trainable", "MFLOP a token", *(f"{f}: delegated, deviation" for f in formats))
    for column in table.columns[1:]:
        column.justify = "right"
    for stage, check in zip(manifest.stages, manifest.checks, strict=True):
        tensors = [manifest.tensors[index] for index in (*stage.tensors, *stage.constants)]
        flops = shape.graphs[stage.graph].flops / (shape.batch * shape.length)
        table.add_row(
            stage.name,
            f"{sum(prod(t.shape) for t in tensors):,}",
            f"{sum(prod(t.shape) for t in tensors if t.trainable):,}",
            f"{flops / 1e6:,.3f}",
            *(f"{check.delegated[f]:.0%}, {check.deviation[f]:.0e}" for f in formats),
        )
    console.print(table)
