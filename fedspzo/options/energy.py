"""The options that say how joules are measured, for every command that has them."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedspzo.device_runtime.energy.find import Places
    from fedspzo.device_runtime.energy.source import Source


def add_root_option(parser: argparse._ActionsContainer) -> None:
    """Where sensors are looked for."""
    parser.add_argument(
        "--energy-root", type=Path, metavar="DIR", help="look for sensors under DIR/sys, as in a container (default: /)"
    )


def add_price_option(parser: argparse._ActionsContainer) -> None:
    """The way to an estimate."""
    parser.add_argument(
        "--joules-per-flop", type=float, metavar="X", help="do not measure: ESTIMATE by counted operations at X J each"
    )


def make_places(options: argparse.Namespace) -> Places:
    """Where to look for sensors."""
    from fedspzo.device_runtime.energy.find import Places

    return Places.under(options.energy_root.resolve()) if options.energy_root else Places()


def make_source(options: argparse.Namespace, flops: Callable[[], int]) -> Source | None:
    """The source that ``--energy`` names, or the estimate of what ``flops`` counts; None when neither is asked for.

    Raises:
        EnergyError: there is no such source, or the options contradict each other.
    """
    from fedspzo.device_runtime.energy.find import choose_source
    from fedspzo.device_runtime.energy.flops import Estimate
    from fedspzo.device_runtime.errors import EnergyError

    if options.joules_per_flop is None:
        return choose_source(options.energy, make_places(options)) if options.energy else None
    if options.energy:
        raise EnergyError(
            "option.source-and-estimate", "a source measures and --joules-per-flop estimates; give only one of them"
        )
    if not 0 < options.joules_per_flop < 1:
        raise EnergyError(
            "option.joules-per-flop",
            f"--joules-per-flop is {options.joules_per_flop:g}; give joules for each operation, such as 2e-10",
        )
    return Estimate(flops, options.joules_per_flop)
