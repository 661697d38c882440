"""Give devices or servers logins at the managed broker or at RabbitMQ, each in an access file, or take logins away."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from fedspzo.options.logins import add_login_options, make_login_broker

if TYPE_CHECKING:
    from fedspzo.broker.mqtt.mosquitto import ManagedBroker
    from fedspzo.broker.mqtt.rabbitmq import RabbitMQ
    from fedspzo.device_runtime.link.access import Access


def configure(parser: argparse.ArgumentParser) -> None:
    """Describe the options."""
    parser.add_argument("names", nargs="+", metavar="NAME", help="a device's id; known ones get a new password")
    add_login_options(parser, required=True)
    parser.add_argument(
        "--out", type=Path, default=Path(), metavar="FOLDER", help="where NAME.json goes (default: here)"
    )
    parser.add_argument(
        "--url", help="how devices reach the broker; RabbitMQ needs it (default: by the first host in its certificate)"
    )
    parser.add_argument(
        "--authority", type=Path, metavar="FILE",
        help="with --rabbitmq: certificate to trust (PEM; default: the system's)",
    )  # fmt: skip
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

    from fedspzo.broker.mqtt.logins import check_device, new_password, server_login
    from fedspzo.device_runtime.device.transfer import RemoteFile
    from fedspzo.device_runtime.errors import BrokerError
    from fedspzo.device_runtime.link.invitation import Invitation
    from fedspzo.options.qr import print_code

    if options.bundle_url:
        if not options.qr:
            raise BrokerError("option.bundle-url", "--bundle-url is for invitations; add --qr")
        RemoteFile.parse(options.bundle_url, "")
    broker = make_login_broker(options)
    assert broker is not None, "one of both options is required"
    jobs = options.job or ["default"]
    if options.server:
        jobs, names = [], [server_login(job) for job in options.names]
    else:
        names = options.names
        for name in names:
            check_device(name)
    if options.remove:
        gone = broker.remove_users(names)
        for name in gone:
            print(f"{name} has no rights any more", flush=True)
        if unknown := [name for name in names if name not in gone]:
            raise BrokerError(
                "access.unknown-user", f"this broker has no login of {', '.join(unknown)}; correct the name"
            )
        return
    place = _place(options, broker)
    options.out.mkdir(parents=True, exist_ok=True)
    known = broker.users()
    passwords = {name: new_password() for name in names}
    broker.set_passwords(passwords, jobs)
    for name, password in passwords.items():
        path = options.out / f"{name}.json"
        access = replace(place, user=name, password=password)
        access.save(path)
        print(f"{path} lets {name} in at {access.url}; keep it secret", flush=True)
        if name in known:
            print(f"{name} had a login: its password and its jobs are replaced", flush=True)
        if options.qr:
            print_code(Invitation(access, (options.job or ["default"])[0], options.bundle_url).text())


def _place(options: argparse.Namespace, broker: ManagedBroker | RabbitMQ) -> Access:
    """Where devices reach the broker, and which authority they trust."""
    from fedspzo.broker.mqtt.mosquitto import ManagedBroker
    from fedspzo.device_runtime.errors import BrokerError
    from fedspzo.device_runtime.link.access import Access

    if isinstance(broker, ManagedBroker):
        if options.authority:
            raise BrokerError(
                "option.authority-beside-broker",
                "--authority is for RabbitMQ, and the managed broker has an authority of its own; leave it out",
            )
        broker.check_started()
        return Access(Access.parse(options.url or broker.url).url, authority=broker.authority)
    if not options.url:
        raise BrokerError(
            "option.no-broker-url",
            "RabbitMQ does not say how devices reach it; give that with --url, such as mqtts://HOST:8883",
        )
    access = Access.parse(options.url)
    # In a cluster only a session that is kept is at every node.
    more = "" if access.keeps_session else ("&" if "?" in access.url else "?") + "session=keep"
    return Access(access.url + more, authority=_read_authority(options.authority) if options.authority else "")


def _read_authority(path: Path) -> str:
    """The certificates in a file, without a key that may lie beside them."""
    import ssl

    from fedspzo.device_runtime.errors import BrokerError
    from fedspzo.device_runtime.link.authorities import read_certificates, write_certificates

    text = path.read_text(encoding="ascii", errors="replace")
    try:
        authority = write_certificates(read_certificates(text))
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=authority)
    except (ssl.SSLError, ValueError):
        raise BrokerError(
            "option.authority", f"{path} has no certificate; give the file of the authority's, such as ca.pem"
        ) from None
    return authority
