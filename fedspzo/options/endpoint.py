"""The options that say where something is served over HTTP."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_endpoint_options(parser: argparse.ArgumentParser, what: str, default: str | None = None) -> None:
    """Address, certificate and key; ``what`` is served there."""
    parser.add_argument(
        "--http", metavar="HOST:PORT", default=default,
        help=f"serve {what} there (HTTPS with --http-certificate{'; %(default)s' if default else ''})",
    )  # fmt: skip
    parser.add_argument("--http-certificate", type=Path, metavar="FILE", help="certificate for HTTPS (PEM)")
    parser.add_argument("--http-key", type=Path, metavar="FILE", help="its private key (PEM)")


def read_address(options: argparse.Namespace) -> tuple[str, int, tuple[Path, Path] | None]:
    """Host, port, and certificate with key where they are given. Raises BrokerError when they cannot be."""
    from fedspzo.device_runtime.errors import BrokerError

    host, _, port = options.http.rpartition(":")
    if not port.isdecimal() or int(port) >= 1 << 16:
        raise BrokerError("option.http", f"--http is '{options.http}'; write HOST:PORT, such as 0.0.0.0:8443")
    if bool(options.http_certificate) != bool(options.http_key):
        raise BrokerError("option.half-a-certificate", "--http-certificate and --http-key need each other; give both")
    tls = (options.http_certificate, options.http_key) if options.http_certificate else None
    return host or "127.0.0.1", int(port), tls
