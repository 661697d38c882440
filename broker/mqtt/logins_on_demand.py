"""Logins that a server makes for devices at managed brokers of its own machine, each known by its state folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fedspzo.broker.mqtt.logins import check_device
from fedspzo.broker.mqtt.mosquitto import ManagedBroker
from fedspzo.device_runtime.errors import BrokerError
from fedspzo.device_runtime.link.access import Access


class LoginsOnDemand:
    """See :class:`fedspzo.broker.server.enrolment.requests.BrokerLogins`."""

    def access(self, broker: Path) -> Access:
        """How devices reach a broker, by its first host. Raises BrokerError where none was ever started."""
        managed = ManagedBroker(broker)
        managed.check_started()
        return Access(managed.url, authority=managed.authority)

    def check(self, name: str) -> None:
        """Raise BrokerError when a name cannot be a device's, or is kept for servers."""
        check_device(name)

    def known(self, broker: Path) -> frozenset[str]:
        """Names that have a login; none where no broker was ever started in the folder, which :meth:`give` says."""
        try:
            return ManagedBroker(broker).users()
        except BrokerError:
            return frozenset()

    def give(self, broker: Path, passwords: Mapping[str, str], job: str) -> None:
        """Have a broker know devices by their passwords. Raises BrokerError where there is no broker."""
        ManagedBroker(broker).set_passwords(passwords, [job])
