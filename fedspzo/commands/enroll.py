"""Give devices or servers logins at the managed broker, each in an access file, or take logins away."""

from __future__ import annotations

import argparse
from pathlib import Path


def configure(parser: argparse.ArgumentParser) -> None:
    """Describe the options."""
    parser.add_argument("names", nargs="+", metavar="NAME", help="a device's id; known ones get a new password")
    parser.add_argument("--broker", type=Path, required=True, metavar="DIR", help="the broker's --state folder")
    parser.add_argument(
        "--out", type=Path, default=Path(), metavar="FOLDER", help="where NAME.json goes (default: here)"
    )
    parser.add_argument("--url", help="how devices reach the broker (default: by the first host in its certificate)")
    parser.add_argument(
        "--server", action="store_true", help="the names are jobs: make logins for their servers, for their topics only"
    )
    parser.add_argument(
        "--qr", action="store_true", help="also print invitations for phones, as QR codes and as text; they are secret"
    )
    parser.add_argument(
        "--bundle-url", default="", metavar="URL",
        help="with --qr: the server's HTTP endpoint (--http), from which a phone then gets the bundle itself",
    )  # fmt: skip
    parser.add_argument(
        "--job", action="append", metavar="JOB",
        help="a job that devices' logins are for; give it again for more, --qr invites to the first (default: default)",
    )  # fmt: skip
    parser.add_argument("--remove", action="store_true", help="take the logins away, and end their connections")


def run(options: argparse.Namespace) -> None:
    """Add or remove users; a running broker follows at once."""
    from dataclasses import replace

    from fedspzo.broker.mqtt.logins import check_device, server_login
    from fedspzo.broker.mqtt.mosquitto import ManagedBroker
    from fedspzo.device_runtime.device.transfer import RemoteFile
    from fedspzo.device_runtime.errors import BrokerError
    from fedspzo.device_runtime.link.access import Access
    from fedspzo.device_runtime.link.invitation import Invitation
    from fedspzo.options.qr import print_code

    if options.bundle_url:
        if not options.qr:
            raise BrokerError("option.bundle-url", "--bundle-url is for invitations; add --qr")
        RemoteFile.parse(options.bundle_url, "")
    broker = ManagedBroker(options.broker)
    jobs = options.job or ["default"]
    if options.server:
        jobs, names = [], [server_login(job) for job in options.names]
    else:
        names = options.names
        for name in names:
            check_device(name)
    if options.remove:
        for name in names:
            broker.remove_user(name)
            print(f"{name} has no rights any more", flush=True)
        return
    url = Access.parse(options.url or broker.url).url
    options.out.mkdir(parents=True, exist_ok=True)
    known = broker.users()
    for access in broker.add_users(names, jobs):
        path = options.out / f"{access.user}.json"
        access = replace(access, url=url)
        access.save(path)
        print(f"{path} lets {access.user} in at {url}; keep it secret", flush=True)
        if access.user in known:
            print(f"{access.user} had a login: its password and its jobs are replaced", flush=True)
        if options.qr:
            print_code(Invitation(access, (options.job or ["default"])[0], options.bundle_url).text())
