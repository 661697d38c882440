"""Show what is in a bundle and what a step will cost on a device: FLOPs and memory for a given plan."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from fedspzo.broker.rounds.job import Job, plan_round
from fedspzo.device_runtime.model.modes import MODES
from fedspzo.options.fields import add_options
from fedspzo.options.job import STEP, make_step

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fedspzo.device_runtime.model.manifest import Manifest
    from fedspzo.device_runtime.protocol.plan import Plan


def configure(parser: argparse.ArgumentParser) -> None:
    """Describe the options."""
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="the bundle's folder")
    add_options(parser, Job, STEP)


def run(options: argparse.Namespace) -> None:
    """Print tables."""
    from fedspzo.device_runtime.model.bundle import Bundle
    from fedspzo.device_runtime.model.metrics import SINGLE
    from fedspzo.tables import format_comparison, format_stages, format_trained

    bundle = Bundle(options.bundle)
    bundle.check_base()
    manifest = bundle.manifest
    task = manifest.task
    labels = ", ".join(f"{label.name} = {label.text!r}" for label in task.labels) or f"answers as {task.answer!r}"
    kind = f" ({task.kind})" if task.kind != SINGLE else ""
    devices = f"devices: mode {manifest.least}{' or a stricter one' * (manifest.least != MODES[-1])}"
    devices += f", summed only with those that {manifest.enrolment_key} certifies" * bool(manifest.enrolment_key)
    print(
        f"model: {manifest.model['name']} ({manifest.model['family']}), bundle {bundle.identity.hex()[:16]}\n"
        f"task: {task.name}, {task.form}{kind}: {task.template!r}\n      {labels}\n"
        f"formats: {', '.join(bundle.formats)}\n{devices}\n{format_stages(manifest)}\n{format_comparison(manifest)}\n"
    )
    plan = plan_round(make_step(options, bundle), 1)
    cut = "; ".join(
        f"block {number} = stages {stages.start} to {stages.stop - 1}, fan-out {block.fanout}"
        for number, (stages, block) in enumerate(zip(plan.stages(), plan.blocks, strict=True), start=1)
    )
    print(f"a step of this plan: {cut}; {format_trained(manifest, plan)}\n")
    print(_costs(manifest, plan, bundle.formats))
    print(_memory(manifest))


def _memory(manifest: Manifest) -> str:
    """Where the frozen base is on this machine, unless --memory says otherwise."""
    from fedspzo.device_runtime.engines.protocol import STREAMING
    from fedspzo.device_runtime.platform.memory import available_bytes
    from fedspzo.device_runtime.step.budget import AUTO, streams_within
    from fedspzo.device_runtime.step.cost import forecast_inference

    engine, free = STREAMING[0], available_bytes()
    kept, streamed = (forecast_inference(manifest, engine, way).total / 1e6 for way in (False, True))
    place = "is read from files as it is needed" if streams_within(manifest, engine, AUTO) else "stays in memory"
    here = "" if free is None else f" ({free / 1e6:,.0f} MB are free here)"
    return (
        f"with --memory {AUTO} a frozen base {place} ({engine}): all in memory, a process takes up to {kept:,.0f}"
        f" MB{here}; read as needed, {streamed:,.0f} MB or more"
    )


def _costs(manifest: Manifest, plan: Plan, formats: Sequence[str]) -> str:
    """FLOPs and memory of a step in each shape."""
    from fedspzo.device_runtime.step.cost import forecast_memory, step_flops
    from fedspzo.tables import format_table

    parts = ("weights", "frozen", "buffers", "activations", "workspace")
    shapes = [shape for shape in manifest.shapes if shape.groups == 1]
    flops = [step_flops(manifest, shape, plan) / 1e9 for shape in shapes]
    rows = [["GFLOP", *(f"{count:,.2f}" for count in flops)]]
    per_token = (count / (shape.batch * shape.length) for count, shape in zip(flops, shapes, strict=True))
    rows.append(["GFLOP a token", *(f"{count:,.4f}" for count in per_token)])
    forecasts = {name: [forecast_memory(manifest, shape, plan, name) for shape in shapes] for name in formats}
    for part in parts:
        rows.append([f"MB for {part}", *(f"{getattr(f, part) / 1e6:,.0f}" for f in forecasts[formats[0]])])
    for name in formats:
        rows.append([f"MB in all, {name}", *(f"{forecast.total / 1e6:,.0f}" for forecast in forecasts[name])])
    return format_table(["batch × tokens", *(f"{shape.batch} × {shape.length}" for shape in shapes)], rows)
