"""The options that say at which broker logins are made and taken away: the managed one, or RabbitMQ."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedspzo.broker.mqtt.mosquitto import ManagedBroker
    from fedspzo.broker.mqtt.rabbitmq import RabbitMQ


def add_login_options(parser: argparse.ArgumentParser, required: bool = False) -> None:
    """Whose logins they are; at most one broker."""
    broker = parser.add_mutually_exclusive_group(required=required)
    broker.add_argument(
        "--broker", type=Path, metavar="DIR", help="state folder of the broker that has the logins, on this machine"
    )
    broker.add_argument(
        "--rabbitmq", type=_command, metavar="COMMAND",
        help="a RabbitMQ cluster has them: how rabbitmqctl is called here, such as rabbitmqctl or 'sudo rabbitmqctl'",
    )  # fmt: skip


def make_login_broker(options: argparse.Namespace) -> ManagedBroker | RabbitMQ | None:
    """The broker that the options name, or None where they name none."""
    from fedspzo.broker.mqtt.mosquitto import ManagedBroker
    from fedspzo.broker.mqtt.rabbitmq import RabbitMQ

    if options.rabbitmq:
        return RabbitMQ(options.rabbitmq)
    return ManagedBroker(options.broker) if options.broker else None


def _command(text: str) -> list[str]:
    try:
        words = shlex.split(text)
    except ValueError:  # a quotation mark that is not closed
        words = []
    if not words:
        raise argparse.ArgumentTypeError(f"it is a command such as rabbitmqctl, not '{text}'")
    return words
