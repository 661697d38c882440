"""Certify devices' keys with an enrolment key, on a machine that can stay offline."""

from __future__ import annotations

import argparse
from pathlib import Path


def configure(parser: argparse.ArgumentParser) -> None:
    """Describe the options."""
    parser.add_argument(
        "keys", nargs="*", metavar="KEY",
        help="a device's public key, or a file of lines that fedspzo device --show-key has printed; without any, print"
        " the enrolment key's public half, for fedspzo export --enrolment-key",
    )  # fmt: skip
    parser.add_argument(
        "--key", type=Path, required=True, metavar="FILE",
        help="the enrolment key, made here the first time; it is secret, and belongs on no server",
    )  # fmt: skip


def run(options: argparse.Namespace) -> None:
    """Print a certificate a line, in the order of the keys; or else the enrolment key's public half."""
    from fedspzo.device_runtime.errors import StateError
    from fedspzo.device_runtime.privacy.certificates import certify
    from fedspzo.device_runtime.protocol.signatures import scheme
    from fedspzo.device_runtime.protocol.signing import KEY_BYTES, read_secret
    from fedspzo.options.hexadecimal import read_hex

    keys = [key for word in options.keys for key in read_hex("KEY", word, KEY_BYTES)]
    if keys and not options.key.exists():
        raise StateError(
            "certificate.no-enrolment-key",
            f"there is no enrolment key {options.key}; correct the path, or make one with fedspzo certify --key"
            f" {options.key}, and export the bundle with it",
        )
    if not options.key.absolute().parent.is_dir():
        raise StateError(
            "certificate.no-folder",
            f"there is no folder {options.key.parent} for the enrolment key; make it, or correct the path",
        )
    if options.key.exists() and (not options.key.is_file() or options.key.stat().st_size != KEY_BYTES):
        raise StateError(
            "certificate.not-an-enrolment-key",
            f"{options.key} is not an enrolment key, which is a file of {KEY_BYTES} bytes; give the file that fedspzo"
            " certify --key has made, not what it printed",
        )
    enrolment = read_secret(options.key, scheme().private_key)
    for line in [certify(enrolment, key) for key in keys] or [enrolment.public]:
        print(line.hex(), flush=True)
