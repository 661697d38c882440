"""What carries messages between a server and its devices: an MQTT broker, or whatever else a program brings along."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from fedspzo.device_runtime.link.client import Will
    from fedspzo.device_runtime.link.events import Events
    from fedspzo.device_runtime.link.packets import PacketLimit


class Connection(Protocol):
    """One end's connection, as :class:`fedspzo.device_runtime.link.connection.Link` has it for MQTT.

    Attributes:
        events: what happened, in order; other threads of the owner may put events of their own.
        bytes_up, bytes_down: payload bytes published and received.
        packets: how large they may be.
    """

    events: Events
    bytes_up: int
    bytes_down: int
    packets: PacketLimit

    @property
    def connected(self) -> bool:
        """Whether it stands."""

    def connect(self, timeout: float = 15.0, stopped: Callable[[], bool] = lambda: False) -> None:
        """Connect, for ``timeout`` seconds at most. Raises BrokerError when nobody answers, or refuses."""

    def publish(self, topic: str, payload: bytes, retain: bool = False, useful: float = 0.0) -> None:
        """Send a message, or lose it: whoever needs it sent sends it again."""

    def next(self, timeout: float) -> Any | None:
        """The next event, or None when ``timeout`` seconds pass without one."""

    def certificate_end(self) -> float | None:
        """When the certificate of the other end ends, as Unix time; None where it shows none."""

    def trust(self, authority: str) -> None:
        """Trust other authorities (PEM text) from the next time on that it connects.

        Raises:
            BrokerError: the other end shows no certificate by one of them; all is as before.
        """

    def close(self, timeout: float = 5.0) -> None:
        """End it, when what was sent has left."""


class Transport(Protocol):
    """A way to the other end, as :class:`fedspzo.device_runtime.link.access.Access` is one to a broker.

    Attributes:
        user: the name there, or "" for none.
        authority: PEM text of the certificate authority to trust, or "".
        place: as people are told of it.
        packet_bytes: the largest packet; 0 for no limit but the protocol's.
    """

    @property
    def user(self) -> str: ...

    @property
    def authority(self) -> str: ...

    @property
    def place(self) -> str: ...

    @property
    def packet_bytes(self) -> int: ...

    def link(
        self, client_id: str, subscriptions: Sequence[str], will: Will | None = None, events: Events | None = None
    ) -> Connection:
        """A connection that is yet to be made.

        Args:
            client_id: unique there.
            subscriptions: filters of the topics to hear.
            will: what others are told when the connection breaks.
            events: where messages wait; by default in the order of their arrival.

        Raises:
            BrokerError: the way cannot be taken.
        """
