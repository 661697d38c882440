"""A proxy between MQTT clients and a broker that does harm on demand, for chaos tests.

It reads MQTT 3.1.1 and 5 packet by packet, so that it can lose or repeat a single acknowledgement, and it knows its
connections by client id. It can stand still after a message of choice, to do harm right there. A fault strikes the
connections that stand when it is asked for (several, when a client has come back before its old connection ended),
never those that a client opens later.
"""

from __future__ import annotations

import asyncio
import math
import socket
import ssl
import struct
import threading
from collections import Counter
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeVar

from patience import PATIENCE_S

HOST = "127.0.0.1"
ALL: Final = None
"""In place of a client id: every connection, also one that has not sent its CONNECT yet."""

Direction = Literal["up", "down", "both"]
"""From client to broker, from broker to client, or whichever packets come first."""

_BACKLOG = 1024
_RESET = struct.pack("ii", 1, 0)
_CONNECT, _PUBLISH_AT_QOS_1, _PUBACK = 0x10, 0x32, 0x40
_KIND = 0xF6  # a packet's first byte without DUP and RETAIN
_DUP = 0x08
_PUBLISH, _QOS = 0x30, 0x06
_MQTT_5 = 5
_T = TypeVar("_T")

_ALTERATIONS: dict[str, tuple[int, Callable[[bytes], bytes]]] = {
    "swallow_acknowledgements": (_PUBACK, lambda packet: b""),
    "duplicate_acknowledgements": (_PUBACK, lambda packet: packet + packet),
    "duplicate_publishes": (_PUBLISH_AT_QOS_1, lambda packet: packet + bytes([packet[0] | _DUP]) + packet[1:]),
}
"""Of each fault that changes packets: of which kind, and what is forwarded in their place."""


class FaultyProxy:
    """Listens on a free port of 127.0.0.1 while its context is open, in a thread of its own.

    The faults may be called from any thread. Those that take a client id return how many connections they hit.

    Attributes:
        port: where clients connect.
        watch: told of each message of a client, in the proxy's thread, once it is forwarded: client id, and payload.
            Where it says True, nothing more is forwarded, either way, until :meth:`thaw`.
        counts: how often each fault, by its method's name, took effect: ``cut``, ``black_hole`` and ``refuse`` per
            connection, ``delay`` each time that one direction of a connection had to wait, the others per packet.
    """

    def __init__(
        self,
        upstream_host: str,
        upstream_port: int,
        upstream_tls: ssl.SSLContext | None = None,
        listen_tls: ssl.SSLContext | None = None,
    ) -> None:
        """Prepare a proxy for a broker, which may come and go.

        With ``upstream_tls`` the broker's certificate must be for "localhost"; with ``listen_tls`` clients use TLS.
        """
        self.counts: Counter[str] = Counter()
        self.watch: Callable[[str, bytes], bool] = lambda client, payload: False
        self.thawed = asyncio.Event()
        self.thawed.set()
        self._upstream = (upstream_host, upstream_port)
        self._upstream_tls = upstream_tls
        self._listen_tls = listen_tls
        self._connections: set[_Connection] = set()
        self._refused_until = 0.0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="faulty proxy", daemon=True)

    def __enter__(self) -> FaultyProxy:
        self._thread.start()
        # A socket of asyncio's own making has TCP_NODELAY, and so have those that it accepts.
        listening = asyncio.start_server(self._accept, HOST, 0, ssl=self._listen_tls, backlog=_BACKLOG)
        self._server = self._run(listening)
        self.port: int = self._server.sockets[0].getsockname()[1]
        return self

    def __exit__(self, *_: object) -> None:
        self._run(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def thaw(self) -> None:
        """Go on, where :attr:`watch` had everything stand still."""
        self._loop.call_soon_threadsafe(self.thawed.set)

    def cut(self, client: str | None) -> int:
        """Reset both sides at once."""

        def strike(connection: _Connection) -> None:
            self.counts["cut"] += 1
            self._cut(connection)

        return self._hit(client, strike)

    def black_hole(self, client: str | None, seconds: float) -> int:
        """Forward nothing, not even that a side hangs up; after ``seconds`` reset both: what was held is lost."""

        def strike(connection: _Connection) -> None:
            self.counts["black_hole"] += 1
            connection.held_until = math.inf
            self._loop.call_later(seconds, self._cut, connection)

        return self._hit(client, strike)

    def delay(self, client: str | None, seconds: float) -> int:
        """Hold everything for ``seconds``, then forward it in order.

        Nothing is lost, unless the broker uses TLS and a client has hung up meanwhile without waiting for its PUBACKs.
        """

        def strike(connection: _Connection) -> None:
            connection.held_until = max(connection.held_until, self._loop.time() + seconds)

        return self._hit(client, strike)

    def swallow_acknowledgements(self, client: str | None, count: int, direction: Direction = "both") -> int:
        """Lose the next ``count`` PUBACKs of each connection."""
        return self._alter(client, "swallow_acknowledgements", count, direction)

    def duplicate_acknowledgements(self, client: str | None, count: int, direction: Direction = "both") -> int:
        """Forward the next ``count`` PUBACKs of each connection twice."""
        return self._alter(client, "duplicate_acknowledgements", count, direction)

    def duplicate_publishes(self, client: str | None, count: int, direction: Direction = "both") -> int:
        """Forward the next ``count`` PUBLISHes at QoS 1 of each connection twice, the second with the DUP flag."""
        return self._alter(client, "duplicate_publishes", count, direction)

    def refuse(self, seconds: float) -> None:
        """For ``seconds`` from now, reset new connections at once (after the handshake, where clients use TLS)."""

        async def refuse() -> None:
            self._refused_until = self._loop.time() + seconds

        self._run(refuse())

    def _alter(self, client: str | None, fault: str, count: int, direction: Direction) -> int:
        return self._hit(client, lambda connection: connection.alterations.append(_Alteration(fault, direction, count)))

    def _hit(self, client: str | None, strike: Callable[[_Connection], None]) -> int:
        async def hit() -> int:
            chosen = [connection for connection in self._connections if client in (ALL, connection.client)]
            for connection in chosen:
                strike(connection)
            return len(chosen)

        return self._run(hit())

    def _run(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Work in the proxy's thread, the only one that touches connections."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(PATIENCE_S)

    def _cut(self, connection: _Connection) -> None:
        self._connections.discard(connection)
        connection.abort()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._loop.time() < self._refused_until:
            self.counts["refuse"] += 1
            _reset(writer)
            return
        connection = _Connection(self, [writer])
        connection.task = self._loop.create_task(self._serve(connection, reader, writer))
        self._connections.add(connection)

    async def _serve(self, connection: _Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One client's connection, from its start to its end."""
        name = "localhost" if self._upstream_tls else None
        try:
            with suppress(OSError):  # the broker is away
                opening = asyncio.open_connection(*self._upstream, ssl=self._upstream_tls, server_hostname=name)
                answers, upstream = await opening
                connection.writers.append(upstream)
                up = connection.forward(reader, upstream, "up")
                await asyncio.gather(up, connection.forward(answers, writer, "down"))
        finally:
            self._connections.discard(connection)
            for side in connection.writers:
                side.close()

    async def _stop(self) -> None:
        self._server.close()  # without wait_closed, which waits for every client from Python 3.12 on
        for connection in list(self._connections):
            self._cut(connection)
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@dataclass
class _Alteration:
    """What befalls the next ``left`` packets of its kind."""

    fault: str
    direction: Direction
    left: int

    def strikes(self, packet: bytes, direction: Direction) -> bool:
        kind, _ = _ALTERATIONS[self.fault]
        return self.left > 0 and self.direction in ("both", direction) and packet[0] & _KIND == kind


@dataclass(eq=False)
class _Connection:
    """A client's connection and its counterpart upstream, once that stands."""

    proxy: FaultyProxy
    writers: list[asyncio.StreamWriter]
    task: asyncio.Task[None] = field(init=False)
    client: str | None = None
    version: int = 0
    held_until: float = 0.0
    alterations: list[_Alteration] = field(default_factory=list)

    async def forward(self, source: asyncio.StreamReader, target: asyncio.StreamWriter, direction: Direction) -> None:
        """Forward packets until the source hangs up, or sends what is not MQTT; then hang up on the target.

        A target that is gone is no reason to stop: while the source is read, it can finish what it was sent before.
        """
        try:
            while True:
                packet = await _read_packet(source)
                if self.client is None and packet[0] == _CONNECT:
                    self.client, self.version = _introduction(packet)
                await self._wait_while_held()
                if not target.is_closing():
                    target.write(self._altered(packet, direction))
                    says = direction == "up" and packet[0] & 0xF0 == _PUBLISH and self.client
                    if says and self.proxy.watch(says, _payload(packet, self.version)):
                        self.proxy.thawed.clear()
                with suppress(OSError):
                    await target.drain()
        except (OSError, EOFError, ValueError, IndexError):
            await self._wait_while_held()
        if target.can_write_eof():
            target.write_eof()
        else:
            target.close()

    def abort(self) -> None:
        """Reset both sides, whatever waits to be sent, and end."""
        for writer in self.writers:
            _reset(writer)
        self.task.cancel()

    async def _wait_while_held(self) -> None:
        clock = asyncio.get_running_loop().time
        if clock() < self.held_until:
            while (rest := self.held_until - clock()) > 0:
                await asyncio.sleep(rest)
            self.proxy.counts["delay"] += 1
        await self.proxy.thawed.wait()

    def _altered(self, packet: bytes, direction: Direction) -> bytes:
        for alteration in self.alterations:
            if alteration.strikes(packet, direction):
                alteration.left -= 1
                self.proxy.counts[alteration.fault] += 1
                _, change = _ALTERATIONS[alteration.fault]
                return change(packet)
        return packet


def _reset(writer: asyncio.StreamWriter) -> None:
    with suppress(OSError, AttributeError):  # closed already
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    writer.transport.abort()


async def _read_packet(source: asyncio.StreamReader) -> bytes:
    """A whole packet; ValueError when its length does not end after four bytes."""
    head = await source.readexactly(2)
    while head[-1] & 0x80:
        if len(head) == 5:
            raise ValueError("not MQTT")
        head += await source.readexactly(1)
    return head + await source.readexactly(_varint(head, 1)[0])


def _varint(data: bytes, start: int) -> tuple[int, int]:
    """The variable byte integer at ``start``, and where it ends."""
    value = shift = 0
    for end, byte in enumerate(data[start:], start + 1):
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, end
        shift += 7
    raise ValueError("not MQTT")


def _introduction(connect: bytes) -> tuple[str, int]:
    """Client id and MQTT's version in a CONNECT packet; ValueError or IndexError when it is damaged."""
    _, at = _varint(connect, 1)
    at += 2 + int.from_bytes(connect[at : at + 2], "big")  # "MQTT"
    version = connect[at]
    at += 4  # version, flags, keep-alive
    if version == _MQTT_5:
        length, at = _varint(connect, at)
        at += length
    size = int.from_bytes(connect[at : at + 2], "big")
    return connect[at + 2 : at + 2 + size].decode(), version


def _payload(publish: bytes, version: int) -> bytes:
    """What a PUBLISH packet carries; ValueError or IndexError when it is damaged."""
    _, at = _varint(publish, 1)
    at += 2 + int.from_bytes(publish[at : at + 2], "big")  # the topic
    at += 2 * bool(publish[0] & _QOS)
    if version == _MQTT_5:
        length, at = _varint(publish, at)
        at += length
    return publish[at:]
