"""Run everything on this machine: export, broker, server and devices as processes, until the model has improved."""

from __future__ import annotations

import argparse
from pathlib import Path


def configure(parser: argparse.ArgumentParser) -> None:
    """Describe the options."""
    parser.add_argument("--name", default="demo", help="name of the run; its folder is runs/NAME (%(default)s)")
    parser.add_argument("--rounds", type=int, default=180, help="rounds to run (%(default)s)")
    parser.add_argument("--devices", type=int, default=8, help="device processes (%(default)s)")
    parser.add_argument("--cohort", type=int, default=4, help="devices asked in a round (%(default)s)")
    parser.add_argument("--seeds", choices=("shared", "device"), default="shared", help="directions (%(default)s)")
    parser.add_argument("--engine", default="litert", help="litert, executorch or torch (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of data and job (%(default)s)")


def run(options: argparse.Namespace) -> None:
    """Run the demo."""
    from fedspzo.demo.run import Settings, run_demo
    from fedspzo.device_runtime.errors import FedSPZOError
    from fedspzo.device_runtime.protocol.topics import valid_id

    if min(options.rounds, options.devices, options.cohort) < 1:
        raise FedSPZOError("demo.not-positive", "--rounds, --devices and --cohort are positive; correct these")
    if not valid_id(options.name):
        raise FedSPZOError(
            "demo.run-name", f"'{options.name}' is not a valid run name; use up to 64 letters, digits, '-' and '_'"
        )
    run_demo(
        Settings(
            folder=Path("runs") / options.name,
            rounds=options.rounds,
            devices=options.devices,
            cohort=options.cohort,
            seeds=options.seeds,
            engine=options.engine,
            seed=options.seed,
        )
    )
