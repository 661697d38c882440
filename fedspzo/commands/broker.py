"""Run an MQTT broker: mosquitto with TLS and a login for each device, or an embedded one for demos on this machine."""

from __future__ import annotations

import argparse
from pathlib import Path

from fedspzo.options.log import add_log_options


def configure(parser: argparse.ArgumentParser) -> None:
    """Describe the options."""
    parser.add_argument("--state", type=Path, metavar="DIR", help="run mosquitto, and keep its files and logins here")
    parser.add_argument(
        "--host", nargs="+", default=[], metavar="NAME",
        help="names and addresses by which devices reach mosquitto, the main one first (default: this machine only)",
    )  # fmt: skip
    parser.add_argument("--port", type=int, default=0, help="TCP port (default: 8883, or a free one when embedded)")
    parser.add_argument("--embedded", action="store_true", help="the embedded broker: this machine only, no logins")
    add_log_options(parser)


def run(options: argparse.Namespace) -> None:
    """Serve until SIGTERM or Ctrl-C."""
    from fedspzo.broker.mqtt.mosquitto_program import installed
    from fedspzo.device_runtime.errors import BrokerError

    if not 0 <= options.port < 1 << 16:
        raise BrokerError("option.port", f"{options.port} is not a port; choose one from 0 to 65535")
    if options.host and options.state is None:
        raise BrokerError("option.host-without-state", "--host needs --state; add --state DIR, which runs mosquitto")
    if options.embedded or options.state is None:
        _serve_embedded(options.port, "--embedded" if options.embedded else "no --state")
    elif not installed():
        _serve_embedded(options.port, "mosquitto is not installed")
    else:
        _serve_mosquitto(options.state, options.host, options.port)


def _serve_mosquitto(folder: Path, hosts: list[str], port: int) -> None:
    from fedspzo.broker.mqtt.mosquitto import ManagedBroker
    from fedspzo.device_runtime.platform.systemd import READY, ServiceManager

    with ManagedBroker(folder, hosts, port) as broker:
        broker.server_access()
        print(f"broker at {broker.url}, with a certificate for {', '.join(broker.hosts)}", flush=True)
        print(f"the server's access is {folder / 'server.json'}", flush=True)
        print(f"enroll devices with: fedspzo enroll NAME --broker {folder}", flush=True)
        ServiceManager().say(READY)
        broker.wait()


def _serve_embedded(port: int, reason: str) -> None:
    from fedspzo.broker.mqtt.embedded import HOST, run

    def ready(port: int) -> None:
        print(f"broker at mqtt://{HOST}:{port} (embedded: {reason}; this machine only, no logins)", flush=True)

    run(port, ready)
