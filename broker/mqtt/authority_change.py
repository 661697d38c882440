"""A managed broker's authority is changed in three steps, unnoticed by clients that trust both meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Collection

from fedspzo.broker.mqtt.certificates import Step, next_step, take_step
from fedspzo.broker.mqtt.logins import SERVER_USER, job_of
from fedspzo.broker.mqtt.mosquitto import ManagedBroker
from fedspzo.device_runtime.files import lock_folder
from fedspzo.device_runtime.link.authorities import fingerprint, read_certificates


def change_authority(broker: ManagedBroker, check: Callable[[Collection[str], bytes], None]) -> Step:
    """Take the next step; a running mosquitto follows at once, and so does the server's access file.

    Args:
        check: raises an error while a device of these names does not trust the authorities with this fingerprint; asked
            before the broker shows a certificate by the new one.

    Returns:
        The step that was taken.

    Raises:
        BrokerError: no broker was ever started in the folder, or its files are damaged.
    """
    broker.check_started()
    with lock_folder(broker.folder, wait=True):
        step = next_step(broker.folder)
        if step is Step.USE:
            devices = [name for name in sorted(broker.users()) if name != SERVER_USER and job_of(name) is None]
            check(devices, fingerprint(read_certificates(broker.authority)))
        if step is Step.DROP:
            broker.renew_certificate()  # where the step before was broken off
        take_step(broker.folder, step)
        broker.renew_certificate()
    broker.server_access()
    return step
