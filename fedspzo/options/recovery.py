"""The options that say where a server's lost entries may be."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedspzo.broker.server.recovery import Own, Source


def add_recovery_options(parser: argparse.ArgumentParser) -> None:
    """The state folder, and the places."""
    parser.add_argument("state", type=Path, metavar="DIR", help="the server's state folder; the server must be stopped")
    parser.add_argument(
        "--from", dest="sources", type=Path, nargs="+", default=[], metavar="FOLDER",
        help="backups, or state folders of devices",
    )  # fmt: skip
    parser.add_argument("--broker", metavar="URL", help="also ask the devices that are connected to this broker")
    parser.add_argument("--access", type=Path, metavar="FILE", help="the server's login there, from fedspzo enroll")
    parser.add_argument(
        "--wait",
        type=float,
        default=5.0,
        metavar="SECONDS",
        help="for devices to say that they are there (%(default)s)",
    )


@contextmanager
def open_sources(options: argparse.Namespace, own: Own) -> Iterator[list[Source]]:
    """The places that the options name, folders first."""
    from fedspzo.broker.server.fleet import reach_devices
    from fedspzo.broker.server.recovery import FolderSource
    from fedspzo.options.broker import make_access

    folders = [FolderSource(folder) for folder in options.sources]
    for folder in folders:
        folder.check_job(own.check)
    if options.broker is None and options.access is None:
        yield [*folders]
        return
    with reach_devices(make_access(options), own, options.wait) as devices:
        yield [*folders, *devices]
