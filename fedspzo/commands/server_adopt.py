"""Take the entries that a stopped server lacks, as after an old backup was restored, from devices or state folders."""

from __future__ import annotations

import argparse

from fedspzo.options.recovery import add_recovery_options, open_sources


def configure(parser: argparse.ArgumentParser) -> None:
    """Describe the options."""
    add_recovery_options(parser)


def run(options: argparse.Namespace) -> None:
    """Adopt what there is, and say how far the journal goes now."""
    from fedspzo.broker.server.recovery import adopt, open_stopped
    from fedspzo.device_runtime.errors import StateError

    if not (options.sources or options.broker or options.access):
        raise StateError(
            "option.no-source",
            "there is no place to take entries from; give backups or devices' state folders with --from, or the"
            " server's access file with --access",
        )
    with open_stopped(options.state) as own, open_sources(options, own) as sources:
        adopted = list(adopt(own, sources))
        last = own.journal.last_round
    for name in dict.fromkeys(name for _, name in adopted):
        rounds = [round for round, source in adopted if source == name]
        print(f"rounds {rounds[0]} to {rounds[-1]} are from {name}", flush=True)
    print(f"the journal goes up to round {last}; {len(adopted)} rounds are new", flush=True)
