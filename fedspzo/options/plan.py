"""The options that say how the network is cut and perturbed, for every command that needs a plan."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedspzo.device_runtime.model.manifest import Manifest
    from fedspzo.device_runtime.protocol.plan import Block


def add_method_options(parser: argparse.ArgumentParser) -> None:
    """Blocks, fan-outs, scales and learning rates."""
    parser.add_argument("--split", help="stage where each block after the first starts (default: the last layer)")
    parser.add_argument("--fanouts", default="1,16", help="perturbations of each block (%(default)s)")
    parser.add_argument("--scales", default="0.25,1", help="perturbation scale of each block (%(default)s)")
    parser.add_argument("--learning-rates", default="1e-4,1.6e-3", help="of each block (%(default)s)")
    parser.add_argument(
        "--sides", type=int, choices=(1, 2), default=2,
        help="2: differences of + and −, as in the paper; 1: of + and the centre, whose loss all share (%(default)s)",
    )  # fmt: skip


def make_blocks(options: argparse.Namespace, manifest: Manifest) -> tuple[Block, ...]:
    """The blocks that the options describe. Raises PlanError when they contradict each other."""
    from fedspzo.device_runtime.errors import PlanError
    from fedspzo.device_runtime.protocol.plan import Block

    last = len(manifest.stages)
    try:
        fanouts = [int(text) for text in options.fanouts.split(",")]
        scales = [float(text) for text in options.scales.split(",")]
        rates = [float(text) for text in options.learning_rates.split(",")]
        split = [int(text) for text in options.split.split(",")] if options.split else [last - 2] * (len(fanouts) > 1)
        return tuple(Block(*values) for values in zip([*split, last], fanouts, scales, rates, strict=True))
    except ValueError:
        raise PlanError(
            "--fanouts, --scales and --learning-rates are comma-separated numbers, one for each block, and --split has"
            " one fewer"
        ) from None
