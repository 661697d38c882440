"""Measure what a device's work costs on this machine: each figure, its physical bound, and their ratio."""

from __future__ import annotations

import argparse
from pathlib import Path

from fedspzo.broker.rounds.job import Job
from fedspzo.device_runtime import plain_json
from fedspzo.options.fields import add_options
from fedspzo.options.job import STEP, make_step
from fedspzo.options.memory import add_memory_option

WHAT = ("step", "apply", "memory", "startup")


def configure(parser: argparse.ArgumentParser) -> None:
    """Describe the options."""
    parser.add_argument("what", choices=WHAT, help="a step, adding directions, peak memory, or the start of a device")
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="the bundle's folder")
    parser.add_argument("--engine", default="litert", help="litert, executorch, torch or tflite (%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="threads (%(default)s)")
    add_memory_option(parser)
    parser.add_argument("--ahead", action="store_true", help="make the next weights while the engine runs")
    parser.add_argument("--shape", metavar="BATCHxLENGTH", help="one of the bundle's shapes (default: the largest)")
    parser.add_argument("--repeats", type=int, default=5, help="timed runs; their median counts (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON object for each figure")
    add_options(parser, Job, STEP)


def run(options: argparse.Namespace) -> None:
    """Measure and print."""
    from dataclasses import asdict

    from fedspzo.bench.figures import FIGURES
    from fedspzo.bench.workload import Setting, choose_shape
    from fedspzo.device_runtime.errors import PlanError
    from fedspzo.device_runtime.model.bundle import Bundle

    bundle = Bundle(options.bundle)
    job = make_step(options, bundle)
    if options.repeats < 1:
        raise PlanError("bench.repeats", f"--repeats is {options.repeats}; give at least 1")
    try:
        shape = choose_shape(bundle.manifest, options.shape)
    except ValueError as error:
        raise PlanError(
            "bench.shape", f"--shape is not a shape of this bundle ({error}); choose one of its shapes"
        ) from None
    setting = Setting(
        options.bundle, options.engine, options.memory, options.threads, options.ahead, job.blocks, job.sides, shape
    )
    for figure in FIGURES[options.what](setting, options.repeats):
        if options.json:
            print(plain_json.dumps(asdict(figure) | {"ratio": figure.ratio}), flush=True)
        else:
            print(
                f"{figure.name}: {figure.value:.4g} {figure.unit}; bound {figure.bound:.4g} ({figure.bound_is});"
                f" ratio {figure.ratio:.2f}",
                flush=True,
            )
