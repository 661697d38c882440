"""Run the embedded MQTT broker on the loopback interface: for demos and tests, not for a network."""

from __future__ import annotations

import argparse


def configure(parser: argparse.ArgumentParser) -> None:
    """Describe the options."""
    parser.add_argument("--port", type=int, default=0, help="port on 127.0.0.1 (default: a free one)")


def run(options: argparse.Namespace) -> None:
    """Serve until SIGTERM or Ctrl-C."""
    from broker.embedded import HOST
    from broker.embedded import run as serve
    from device_runtime.errors import BrokerError

    if not 0 <= options.port < 1 << 16:
        raise BrokerError(f"{options.port} is not a port; choose one from 0 to 65535")
    serve(options.port, lambda port: print(f"broker at mqtt://{HOST}:{port} (this machine only)", flush=True))
