"""Get a job's bundle from its server, or what has changed of it; an interrupted download continues where it stopped."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

#: Seconds between changes of the line that shows progress.
_SHOW_EVERY_S = 0.2


def configure(parser: argparse.ArgumentParser) -> None:
    """Describe the options."""
    parser.add_argument(
        "url", metavar="URL",
        help="the server's HTTP endpoint, such as https://host:8443, or a file from fedspzo invite, which says it",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="the bundle's folder, new or not")
    parser.add_argument(
        "--authority", type=Path, metavar="FILE", help="certificate to trust (PEM; default: the system's)"
    )


def run(options: argparse.Namespace) -> None:
    """Download, check and say what it is."""
    from fedspzo.device_runtime.device.download import fetch_bundle
    from fedspzo.device_runtime.link.invitation import Invitation

    url, authority = options.url, ""
    if os.path.isfile(url):  # a URL may be too long for a path
        invitation = Invitation.load(Path(url))
        url, authority = invitation.bundle_url, invitation.access.authority
    if options.authority:
        authority = options.authority.read_text(encoding="ascii", errors="replace")
    started = time.monotonic()
    show = _show_progress() if sys.stderr.isatty() else lambda name, done, total: None
    fetched = fetch_bundle(url, options.out, authority, show)
    print(
        f"bundle {fetched.bundle.identity.hex()[:16]} in {options.out}: {fetched.received:,} bytes received in"
        f" {time.monotonic() - started:.1f} s"
    )


def _show_progress() -> Callable[[str, int, int], None]:
    """What keeps a line of standard error up to date."""
    shown = 0.0

    def show(name: str, done: int, total: int) -> None:
        nonlocal shown
        now = time.monotonic()
        if done == total or now - shown >= _SHOW_EVERY_S:
            shown = now
            text = f"\r\033[K{name}: {done / 1e6:.1f} of {total / 1e6:.1f} MB"
            print(text, end="\n" if done == total else "", file=sys.stderr, flush=True)

    return show
