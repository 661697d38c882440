"""Change the broker's certificate authority without losing a device: run this three times, and it does what is next.

First there is another authority beside the old one, and servers have their devices trust both. When all do, the broker
shows a certificate by the new one. Then the old one is trusted no more. Server, devices and broker run meanwhile.
"""

from __future__ import annotations

import argparse
from pathlib import Path


def configure(parser: argparse.ArgumentParser) -> None:
    """Describe the options."""
    parser.add_argument("broker", type=Path, metavar="BROKER", help="the broker's --state folder")
    parser.add_argument(
        "--server", type=Path, nargs="+", required=True, metavar="DIR",
        help="state folders of all servers at this broker, or backups of today: they know which devices trust the new"
        " authority",
    )  # fmt: skip


def run(options: argparse.Namespace) -> None:
    """Take the next step, and say what comes then."""
    from functools import partial

    from fedspzo.broker.mqtt.authority_change import change_authority
    from fedspzo.broker.mqtt.certificates import AUTHORITY, Step
    from fedspzo.broker.mqtt.mosquitto import ManagedBroker
    from fedspzo.broker.server.authorities import check_trust

    step = change_authority(ManagedBroker(options.broker), partial(check_trust, options.server))
    file = options.broker / AUTHORITY
    if step is Step.ADD:
        print(
            f"1 of 3: {file} has another authority beside the old one, and devices are told to trust both", flush=True
        )
    elif step is Step.USE:
        print("2 of 3: the broker shows a certificate by the new authority, which all devices trust", flush=True)
    else:
        print(f"3 of 3: the old authority is trusted no more; copy {file} to where else it is used", flush=True)
