"""Block devices: their logins are taken away, and neither their names nor their keys take part any more."""

from __future__ import annotations

import argparse
from pathlib import Path

from fedspzo.options.logins import add_login_options, make_login_broker


def configure(parser: argparse.ArgumentParser) -> None:
    """Describe the options."""
    parser.add_argument("state", type=Path, metavar="DIR", help="the server's state folder; the server may run")
    parser.add_argument("names", nargs="+", metavar="NAME", help="a device's id")
    add_login_options(parser)
    parser.add_argument("--undo", action="store_true", help="let them take part again; fedspzo enroll makes new logins")


def run(options: argparse.Namespace) -> None:
    """Block all of them, first at the server, so that no round asks one whose login has gone."""
    from fedspzo.broker.server.blocking import block, unblock

    if options.undo:
        unblock(options.state, options.names)
        for name in options.names:
            print(f"{name} may take part again; fedspzo enroll makes its login", flush=True)
        return
    broker = make_login_broker(options)
    block(options.state, options.names, broker.users() if broker else ())
    gone = broker.remove_users(options.names) if broker else ()
    for name in options.names:
        print(f"{name} is blocked" + (", and its login is taken away" if name in gone else ""), flush=True)
