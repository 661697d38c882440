"""An embedded MQTT 3.1.1 broker for demos and tests: amqtt on 127.0.0.1, anonymous, nothing durable.

`run` serves in this process until SIGTERM or SIGINT; `spawn_broker` starts the same in a child process that ends with
its parent. Only clean sessions are relied upon, and everything is lost when the broker stops.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fedspzo.device_runtime.errors import BrokerError, FedSPZOError, install_hint

if TYPE_CHECKING:
    from amqtt.broker import Broker

HOST = "127.0.0.1"
LISTENER = "default"
BACKLOG = 1024
START_TIMEOUT_S = 20.0
STOP_TIMEOUT_S = 5.0
MQTT_5 = 5
UNACCEPTABLE_VERSION = b"\x20\x02\x00\x01"
PLUGINS: dict[str, dict[str, Any]] = {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}}


def run(port: int = 0, ready: Callable[[int], None] | None = None) -> None:
    """Serve on 127.0.0.1:port (0: a free port) until SIGTERM or SIGINT; call from the main thread.

    `ready` is called with the port once connections are accepted.
    """
    for name in ("amqtt", "asyncio", "transitions"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    asyncio.run(_serve(port, ready))


async def _serve(port: int, ready: Callable[[int], None] | None) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    broker = _new_broker()
    await broker.start()
    server = await _listen(broker, port)
    if ready is not None:
        ready(server.sockets[0].getsockname()[1])
    await stop.wait()
    server.close()  # without wait_closed, which waits for every client from Python 3.12 on
    with suppress(asyncio.TimeoutError):
        await asyncio.wait_for(broker.shutdown(), STOP_TIMEOUT_S)


async def _listen(broker: Broker, port: int) -> asyncio.Server:
    """Accept clients for the broker; the socket is ours, so that port 0 needs no probing and every failure hangs up."""
    from amqtt.adapters import StreamReaderAdapter, StreamWriterAdapter

    class Rewound(StreamReaderAdapter):
        def __init__(self, read: bytes, reader: asyncio.StreamReader) -> None:
            super().__init__(reader)
            self._read = read

        async def read(self, n: int = -1) -> bytes:
            again, self._read = self._read[:n], self._read[n:]
            return again if again else await super().read(n)

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            connect = await _read_version(reader)
            if connect[-1] == MQTT_5:  # amqtt 0.12.1 may wait forever for more of it, and its client for an answer
                writer.write(UNACCEPTABLE_VERSION)
            else:
                await broker.external_connected(Rewound(connect, reader), StreamWriterAdapter(writer), LISTENER)
        except asyncio.IncompleteReadError:
            pass  # it has gone
        finally:
            writer.close()

    try:
        return await asyncio.start_server(connected, HOST, port, backlog=BACKLOG)
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise BrokerError(
            "broker.port-in-use", f"the embedded broker cannot use {HOST}:{port} ({reason}); choose another port"
        ) from error


async def _read_version(reader: asyncio.StreamReader) -> bytes:
    """A CONNECT up to the byte that says which version of MQTT it is."""
    read = await reader.readexactly(2)
    while read[-1] & 0x80 and len(read) < 5:  # the packet's length
        read += await reader.readexactly(1)
    return read + await reader.readexactly(7)  # and the protocol's name


def _new_broker() -> Broker:
    try:
        from amqtt.broker import Broker
        from amqtt.contexts import BrokerConfig, ListenerConfig, ListenerType
        from amqtt.session import Session
    except ImportError as error:
        raise BrokerError(
            "broker.library-missing", f"the embedded broker needs amqtt; {install_hint('server')}"
        ) from error

    class EmbeddedAmqtt(Broker):
        async def _publish_retained_messages_for_subscription(
            self, subscription: tuple[str, int], session: Session
        ) -> None:
            """Send retained messages to subscribers only.

            amqtt 0.12.1 calls this at every connect with the filters of all clients, which floods the newcomer (30 000
            stray messages while 100 clients connect) and can fail if another subscribes meanwhile.
            """
            if any(subscriber is session for subscriber, _ in self.subscriptions.get(subscription[0], [])):
                await super()._publish_retained_messages_for_subscription(subscription, session)

    listener = ListenerConfig(type=ListenerType.EXTERNAL)
    return EmbeddedAmqtt(BrokerConfig(listeners={LISTENER: listener}, plugins=PLUGINS))


@dataclass(frozen=True)
class EmbeddedBroker:
    """A broker in a child process; a context manager that stops it at the end."""

    port: int
    process: subprocess.Popen[str] = field(repr=False)

    @property
    def url(self) -> str:
        return f"mqtt://{HOST}:{self.port}"

    @property
    def pid(self) -> int:
        return self.process.pid

    def close(self) -> None:
        """Stop the broker; harmless if it has ended."""
        _stop(self.process)

    def __enter__(self) -> EmbeddedBroker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def spawn_broker(port: int = 0, timeout_s: float = START_TIMEOUT_S) -> EmbeddedBroker:
    """Start a broker process and wait until it accepts connections; it ends when this process does."""
    process = subprocess.Popen(
        [sys.executable, "-m", "fedspzo.broker.mqtt.embedded", str(port)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # a Ctrl-C in the terminal is for the parent, which then stops the broker
    )
    assert process.stdout is not None
    timer = threading.Timer(timeout_s, process.kill)
    timer.start()
    try:
        answer = process.stdout.readline().strip()
    finally:
        timer.cancel()
    if answer.isdecimal():
        return EmbeddedBroker(int(answer), process)
    _stop(process)
    raise BrokerError(
        "broker.embedded-not-started",
        answer or f"the embedded broker ended or took more than {timeout_s:g} s; try again",
    )


def _stop(process: subprocess.Popen[str]) -> None:
    with process:
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT_S + 1)
        except subprocess.TimeoutExpired:
            process.kill()


def _end_with_parent() -> None:
    """Stop this process when standard input, which the parent holds open, ends."""
    while os.read(sys.stdin.fileno(), 1):
        pass
    signal.raise_signal(signal.SIGTERM)


def main() -> int:
    """Serve for `spawn_broker`: a line to standard output, the port or what went wrong; then until the parent ends."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        run(int(sys.argv[1]), lambda port: print(port, flush=True))
    except FedSPZOError as error:
        print(error, flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
