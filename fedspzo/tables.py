"""Tables that commands print, in plain text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import nan, prod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedspzo.device_runtime.model.manifest import Manifest
    from fedspzo.device_runtime.protocol.plan import Plan


def format_table(columns: Sequence[str], rows: Iterable[Sequence[object]], title: str = "") -> str:
    """Lines of a table as wide as its cells, the first column flush left and the others flush right."""
    cells = [list(columns), *(list(map(str, row)) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    cells.insert(1, ["─" * width for width in widths])
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in cells]
    return "\n".join([title, *lines] if title else lines)


def format_comparison(manifest: Manifest) -> str:
    """What a bundle says of its comparison with transformers."""
    found = manifest.comparison
    if found is None or found.skipped:
        return f"not compared with transformers{f': {found.skipped}' if found else ''}"
    deviations = ", ".join(f"{name} {deviation:.0e}" for name, deviation in found.deviation.items())
    rounding = "" if found.rounding is None else f"; rounding the weights moves them by {found.rounding:.0e}"
    return (
        f"compared with {found.reference}, on {found.texts} texts: the same tokens, and scores that deviate by"
        f" {deviations}{rounding}"
    )


def format_stages(manifest: Manifest) -> str:
    """What a bundle says of its stages: parameters, FLOPs, delegated shares and deviations."""
    shape = manifest.shapes[0]
    formats = list(manifest.checks[0].delegated)
    rows = []
    for stage, check in zip(manifest.stages, manifest.checks, strict=True):
        tensors = [manifest.tensors[index] for index in (*stage.tensors, *stage.constants)]
        flops = shape.graphs[stage.graph].flops / (shape.batch * shape.length)
        parameters, trainable = (sum(prod(t.shape) for t in tensors if t.trainable or every) for every in (True, False))
        checked = (f"{check.delegated[f]:.0%}, {check.deviation.get(f, nan):.0e}" for f in formats)
        rows.append([stage.name, f"{parameters:,}", f"{trainable:,}", f"{flops / 1e6:,.3f}", *checked])
    names = ["stage", "parameters", "trainable", "MFLOP a token", *(f"{f}: delegated, deviation" for f in formats)]
    return format_table(names, rows)


def format_trained(manifest: Manifest, plan: Plan) -> str:
    """How many parameters a plan trains, where they begin, and how many could be trained."""
    total, trainable = (sum(prod(t.shape) for t in manifest.tensors if t.trainable or every) for every in (True, False))
    moved = [stages for stages, block in zip(plan.stages(), plan.blocks, strict=True) if block.fanout]
    tensors = {index for stages in moved for number in stages for index in manifest.stages[number].tensors}
    trained = sum(prod(manifest.tensors[i].shape) for i in tensors if manifest.tensors[i].trainable)
    first = manifest.stages[moved[0].start].name
    return f"{trained:,} of {total:,} parameters are trained, from stage '{first}' on; {trainable:,} could be"
