"""A device as a systemd service: it reports that it has started, that it makes progress, and what it does.

The words are datagrams to the socket that ``$NOTIFY_SOCKET`` names (sd_notify(3)); elsewhere nothing is said. The
watchdog hears of work that is done, of each graph that has run and of each turn of the agent, so that a device that
hangs is restarted and one that is slow is not.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from contextlib import suppress

READY, ALIVE = "READY=1", "WATCHDOG=1"


class ServiceManager:
    """Who started this process, if it wants to be told."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        address = environment.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) if address else None
        self._ready = False

    def alive(self) -> None:
        """Say that the program gets on; the first time also that it has started."""
        self.say(*([] if self._ready else [READY]), ALIVE)
        self._ready = True

    def say(self, *words: str) -> None:
        """Say something like ``STATUS=round 3``; what the manager does not take is lost, and no work waits for it."""
        if self._socket is not None:
            with suppress(OSError):
                self._socket.sendto("\n".join(words).encode(), socket.MSG_DONTWAIT, self._address)
