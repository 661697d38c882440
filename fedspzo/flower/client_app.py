"""The ClientApp: a device that takes in what a message of Flower brings, answers it, and is gone.

What it needs the next time is in its state folder, as for a device that is started again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp

from fedspzo.device_runtime.device.device import Device
from fedspzo.device_runtime.device.events import Event, Started
from fedspzo.device_runtime.errors import FedSPZOError, StateError
from fedspzo.device_runtime.link.client import Will
from fedspzo.device_runtime.link.events import Events, Received
from fedspzo.device_runtime.link.packets import PacketLimit
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.flower.content import pack, unpack
from fedspzo.flower.settings import Settings

log = logging.getLogger(__name__)

#: Flower's code of an error in a ClientApp.
_FAILED = 2
#: What stands for a node's number among the nodes of a simulation, in a setting.
PARTITION = "{partition}"

app = ClientApp()


@app.train()
def answer(message: Message, context: Context) -> Message:
    """Take the device through one message; where it cannot, the answer is an error that says why."""
    try:
        return Message(_visit(unpack(message.content)[1], context), reply_to=message)
    except FedSPZOError as error:
        log.error("%s", error, extra={"kind": error.kind})
        return Message(Error(_FAILED, str(error)), reply_to=message)


def _visit(signed: Sequence[bytes], context: Context) -> RecordDict:
    """What the device says to signed messages. Raises FedSPZOError as :class:`fedspzo.Device` does."""
    partition = context.node_config.get("partition-id")

    def fill(text: str) -> str:
        if PARTITION in text and partition is None:
            raise StateError("flower.no-partition", f"'{text}' needs the node's partition-id; set it in --node-config")
        return text.replace(PARTITION, str(partition))

    options = settings().read(context.run_config, context.node_config)
    names: list[str] = []

    def observe(event: Event) -> None:
        if isinstance(event, Started):
            names.append(event.name)

    visit = Visit(signed)
    device = Device(
        Bundle(Path(fill(options.bundle))),
        visit,
        Path(fill(options.state)),
        fill(options.data),
        job=options.job,
        name=fill(options.id) if options.id else None,
        engine=options.engine,
        threads=options.threads,
        observe=observe,
    )
    visit.stop = device.stop
    device.run()
    return pack(visit.said, names[0])


def settings() -> Settings:
    """What the table ``client`` and a node's own configuration may say: options of ``fedspzo device``."""
    known = Settings("client")
    for name in ("--bundle", "--state", "--data"):
        known.add_argument(name, required=True)
    known.add_argument("--id")
    known.add_argument("--job", default="default")
    known.add_argument("--engine", default="litert")
    known.add_argument("--threads", type=int, default=1)
    return known


class Visit:
    """A device's connection for as long as some messages last, and the way to it.

    It is a :class:`fedspzo.device_runtime.link.transport.Transport` and its ``Connection``; what is said of these
    there holds.

    Attributes:
        said: what the device has said, signed.
        stop: ends the device, when it has nothing more to say.
    """

    user = authority = ""
    place = "Flower's grid"
    packet_bytes = 0
    connected = True

    def __init__(self, messages: Sequence[bytes]) -> None:
        """``messages`` are what the server says, signed."""
        self.events = Events()
        self.packets = PacketLimit(self)
        self.bytes_up, self.bytes_down = 0, sum(map(len, messages))
        self.said: list[bytes] = []
        self.stop: Callable[[], None] = lambda: None
        for signed in messages:
            self.events.receive(Received(self.place, signed))

    def link(
        self, client_id: str, subscriptions: Sequence[str], will: Will | None = None, events: Events | None = None
    ) -> Visit:
        """This, which is the device's only one."""
        return self

    def connect(self, timeout: float = 15.0, stopped: Callable[[], bool] = lambda: False) -> None:
        """Nothing: the messages are here."""

    def publish(self, topic: str, payload: bytes, retain: bool = False, useful: float = 0.0) -> None:
        """Have a message go with the answer, but no presence: the device is there for one answer."""
        if not retain:
            self.said.append(payload)
            self.bytes_up += len(payload)

    def next(self, timeout: float) -> object | None:
        """The next message; behind the last one, the end."""
        if self.events.empty():
            self.stop()
        events = self.events.take(0.0, 1)
        return events[0] if events else None

    def certificate_end(self) -> None:
        """Not known: it is Flower's."""

    def trust(self, authority: str) -> None:
        """Nothing: the authorities are Flower's."""

    def close(self, timeout: float = 5.0) -> None:
        """Nothing."""
