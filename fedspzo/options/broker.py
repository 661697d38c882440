"""The options that say how to reach the broker, for servers and devices alike."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedspzo.device_runtime.link.access import Access


def add_broker_options(parser: argparse.ArgumentParser) -> None:
    """Where the broker is, and with what right."""
    parser.add_argument("--broker", metavar="URL", help="such as mqtt://host:1883 or mqtts://host")
    parser.add_argument("--access", type=Path, metavar="FILE", help="what fedspzo enroll made: URL, login, authority")
    parser.add_argument("--job", default="default", help="the job's name (%(default)s)")


def make_access(options: argparse.Namespace) -> Access:
    """What the options give: a file, a URL, or a file of which the URL is another. Raises BrokerError when neither."""
    from dataclasses import replace

    from fedspzo.device_runtime.errors import BrokerError
    from fedspzo.device_runtime.link.access import Access

    if options.access is None and options.broker is None:
        raise BrokerError(
            "option.no-broker",
            "there is no broker to connect to; give its URL with --broker, or the file from fedspzo enroll with"
            " --access",
        )
    if options.access is None:
        return Access.parse(options.broker)
    access = Access.load(options.access)
    return replace(access, url=options.broker) if options.broker else access
