"""Make an invitation for many devices, take it back, or list those that there are. The server may run.

Whoever has an invitation's token can bring in devices until it expires or is used up. The server must run on the
broker's machine, with --http and a certificate, for it makes the logins.
"""

from __future__ import annotations

import argparse
import re
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

_UNITS = {"m": 60.0, "h": 3600.0, "d": 86400.0}


def configure(parser: argparse.ArgumentParser) -> None:
    """Describe the options."""
    parser.add_argument("state", type=Path, metavar="DIR", help="the server's state folder")
    parser.add_argument("name", nargs="?", metavar="NAME", help="of the invitation; without it, list them all")
    parser.add_argument("--uses", type=int, metavar="COUNT", help="how many devices may use it")
    parser.add_argument(
        "--expires", type=_seconds, default="7d", metavar="TIME", help="such as 30m, 12h or 7d (default: 7d)"
    )
    parser.add_argument("--group", default="", metavar="GROUP", help="of the metrics, for all of its devices")
    parser.add_argument("--ask", action="store_true", help="let no device in before fedspzo admit has named it")
    parser.add_argument("--broker", type=Path, metavar="BROKER", help="state folder of the broker on this machine")
    parser.add_argument("--broker-url", metavar="URL", help="how devices reach the broker (default: as for enroll)")
    parser.add_argument("--url", metavar="URL", help="how devices reach the server's --http: https://HOST:PORT")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the invitation's file (default: NAME.invitation)")
    parser.add_argument("--qr", action="store_true", help="also print it, as a QR code and as text")
    parser.add_argument("--remove", action="store_true", help="take it back; the devices that it let in stay")


def run(options: argparse.Namespace) -> None:
    """Change or show the server's list of invitations."""
    from fedspzo.broker.server.enrolment.invitations import list_offers, take_back
    from fedspzo.tables import format_table

    if options.name is None:
        now = time.time()
        rows = [
            (
                offer.name, offer.group or "-", offer.used, offer.uses - offer.used,
                f"{(offer.expires - now) / 3600:.1f} h" if offer.expires > now else "expired",
                "by fedspzo admit" if offer.waits else "at once",
            )
            for offer in list_offers(options.state)
        ]  # fmt: skip
        columns = ("invitation", "group", "used", "left", "expires in", "admits")
        print(format_table(columns, rows) if rows else "there is no invitation", flush=True)
    elif options.remove:
        take_back(options.state, options.name)
        print(f"nobody can use the invitation '{options.name}' any more", flush=True)
    else:
        _make(options)


def _make(options: argparse.Namespace) -> None:
    from fedspzo.broker.mqtt.logins_on_demand import LoginsOnDemand
    from fedspzo.broker.server.enrolment.invitations import invite, write_invitation
    from fedspzo.device_runtime.errors import EnrolmentError
    from fedspzo.device_runtime.link.access import Access
    from fedspzo.options.qr import print_code

    if None in (options.uses, options.broker, options.url):
        raise EnrolmentError(
            "option.invitation-incomplete",
            "an invitation needs --uses COUNT, --broker BROKER and --url https://HOST:PORT; give them",
        )
    access = LoginsOnDemand().access(options.broker)
    if options.broker_url:
        access = replace(access, url=Access.parse(options.broker_url).url)
    make = partial(
        invite, options.state, options.name, options.uses, options.expires, options.broker, options.group, options.ask
    )
    text, certified = write_invitation(options.state, access, options.url, make)
    path = options.out or Path(f"{options.name}.invitation")
    _save(path, text)
    print(f"{path} lets {options.uses} devices in at {options.url}; keep it secret", flush=True)
    if certified:
        print(
            "the bundle names an enrolment key, so that a device's results are summed only once it has a certificate"
            f" too; fedspzo admit {options.state} --admitted prints the keys for fedspzo certify",
            flush=True,
        )
    if options.qr:
        print_code(text)


def _save(path: Path, text: str) -> None:
    from fedspzo.device_runtime.files import write_atomically

    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text.encode() + b"\n", mode=0o600)


def _seconds(text: str) -> float:
    found = re.fullmatch(r"([1-9][0-9]{0,5})([mhd])", text)
    if not found:
        raise argparse.ArgumentTypeError(f"it is a number and m, h or d, such as 12h, not '{text}'")
    return int(found[1]) * _UNITS[found[2]]
