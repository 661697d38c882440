"""A mosquitto without TLS or logins on a loopback port, with settings of a test's own."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from patience import wait_until
from ports import free_port

from fedspzo.broker.mqtt.mosquitto_program import find


@contextmanager
def plain_mosquitto(folder: Path, *settings: str) -> Iterator[str]:
    """Its URL, while it runs.

    Args:
        settings: further lines of its configuration.
    """
    port = free_port()
    lines = (f"listener {port} 127.0.0.1", "allow_anonymous true", "log_dest none", *settings)
    (folder / "mosquitto.conf").write_text("".join(f"{line}\n" for line in lines))
    process = subprocess.Popen([find("mosquitto"), "-c", str(folder / "mosquitto.conf")])
    try:
        wait_until(lambda: _listens(port))
        yield f"mqtt://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def _listens(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0):
        return True
    return False
