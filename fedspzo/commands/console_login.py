"""Make a login for the console of a server, or take it away; a running server follows at once."""

from __future__ import annotations

import argparse
from pathlib import Path


def configure(parser: argparse.ArgumentParser) -> None:
    """Describe the options."""
    parser.add_argument("state", type=Path, metavar="DIR", help="the server's state folder; the server may be running")
    parser.add_argument("name", metavar="NAME", help="who logs in; a known one gets a new password")
    parser.add_argument(
        "--role", choices=("look", "operate"), default="look",
        help="look: see all; operate: also pause, resume and end the job, change its settings, label and block devices,"
        " and back up (%(default)s)",
    )  # fmt: skip
    parser.add_argument("--remove", action="store_true", help="take the login away, and end its sessions")


def run(options: argparse.Namespace) -> None:
    """Change the file of logins, and print the password that was made."""
    from fedspzo.broker.server.console.logins import Logins
    from fedspzo.device_runtime.files import make_folder

    make_folder(options.state, 0o700)
    logins = Logins(options.state)
    if options.remove:
        logins.remove(options.name)
        print(f"'{options.name}' cannot log in any more", flush=True)
        return
    password = logins.add(options.name, options.role)
    print(f"'{options.name}' may {options.role}; the password is shown this once:\n{password}", flush=True)
