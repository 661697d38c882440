"""Admit or refuse devices that ask to take part by an invitation, or list who asks. The server may run.

Each line of the list is a device's name and public key, as fedspzo device --show-key prints them: compare them.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path


def configure(parser: argparse.ArgumentParser) -> None:
    """Describe the options."""
    parser.add_argument("state", type=Path, metavar="DIR", help="the server's state folder")
    parser.add_argument("names", nargs="*", metavar="NAME", help="a device's id; without any, list who asks")
    parser.add_argument("--refuse", action="store_true", help="refuse them; they can be admitted later")
    parser.add_argument("--admitted", action="store_true", help="list the devices that invitations have let in")


def run(options: argparse.Namespace) -> None:
    """Decide of all of them or none, or print the list."""
    from fedspzo.broker.server.enrolment.invitations import decide, list_askers
    from fedspzo.device_runtime.protocol.enrolment import ADMITTED, ASKED

    if options.names:
        decide(options.state, options.names, not options.refuse)
        for name in options.names:
            print(f"{name} is {'refused' if options.refuse else 'admitted'}", flush=True)
        return
    askers = list_askers(options.state, ADMITTED if options.admitted else ASKED)
    if not askers:
        print("no device has been let in" if options.admitted else "no device asks to take part", file=sys.stderr)
    for asker in askers:
        group = f", group {asker.group}" if asker.group else ""
        print(
            f"{asker.name} {asker.key.hex()}  # by '{asker.invitation}'{group}, {time.time() - asker.asked:.0f} s ago",
            flush=True,
        )
