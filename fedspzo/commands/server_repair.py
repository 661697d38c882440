"""Find what is damaged in the journal of a stopped server, and take good copies back from devices or a backup."""

from __future__ import annotations

import argparse

from fedspzo.options.recovery import add_recovery_options, open_sources


def configure(parser: argparse.ArgumentParser) -> None:
    """Describe the options."""
    add_recovery_options(parser)


def run(options: argparse.Namespace) -> None:
    """Repair all or nothing, and say what was wrong."""
    from fedspzo.broker.server.recovery import open_stopped, repair
    from fedspzo.device_runtime.log import several

    with open_stopped(options.state) as own, open_sources(options, own) as sources:
        repaired = list(repair(own, sources))
        last = own.journal.last_round
    for found in repaired:
        how = f"taken from {found.source}" if found.source else "made again from the rest"
        print(f"round {found.round}: its {found.part} was damaged, and is {how}", flush=True)
    count = f"{several(len(repaired), 'round')} {'was' if len(repaired) == 1 else 'were'}"
    print(f"the journal is whole up to round {last}; {count} damaged", flush=True)
