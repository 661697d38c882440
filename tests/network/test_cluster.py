"""A job over a RabbitMQ cluster of which a node dies in the middle of a round."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from federation import Processes, finish, read_rounds
from rabbitmq_cluster import NODES, Cluster, cluster, running_cluster  # noqa: F401

from fedspzo.broker.server.state_folder import read_history, read_journal
from fedspzo.cli import main
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.replica.state import DeviceState
from fedspzo.device_runtime.replica.weights import Replica

pytestmark = pytest.mark.slow


@contextmanager
def balancer(ports: Sequence[int]) -> Iterator[int]:
    """What stands before a cluster: a port whose connections go to the first of the nodes that is there."""
    loop = asyncio.new_event_loop()

    async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for port in ports:
            with suppress(OSError):
                up_reader, up_writer = await asyncio.open_connection("127.0.0.1", port)
                await asyncio.gather(pipe(reader, up_writer), pipe(up_reader, writer))
                return
        writer.close()

    server = loop.run_until_complete(asyncio.start_server(accept, "127.0.0.1", 0))
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    yield server.sockets[0].getsockname()[1]
    loop.call_soon_threadsafe(loop.stop)
    thread.join()


def replay(bundle: Bundle, folder: Path) -> list[bytes]:
    """Digest after each round, from θ₀ on."""
    replica = Replica(bundle)
    digests = [replica.digest()]
    for entry in read_journal(folder / "server"):
        replica.apply(entry)
        digests.append(replica.digest())
    return digests


def test_a_node_dies_in_a_round(
    cluster: Cluster,  # noqa: F811
    bundle_folder: Path,
    bundle: Bundle,
    tmp_path: Path,
    write_examples: Callable[[Path, int], Path],
) -> None:
    devices = ("a", "b", "c")
    with balancer([cluster.ports[node] for node in NODES]) as port:
        processes = Processes(bundle_folder, tmp_path, "", write_examples)
        access = tmp_path / "access"
        enroll = ["enroll", *cluster.enroll_option, "--url", f"mqtt://127.0.0.1:{port}", "--out", str(access)]
        assert main([*enroll, "--server", "default"]) == 0
        assert main([*enroll, *devices]) == 0
        processes.logins = {name: access / f"{name}.json" for name in devices}
        processes.logins["server"] = access / "server-default.json"
        try:
            running = {name: processes.device(name) for name in devices}
            server = processes.server("--rounds", "120", "--deadline", "4", "--seeds", "device")
            read_rounds(server, 20)
            cluster.kill(1)  # all of them were connected to this one
            _, last, errors = finish(server)
        finally:
            said = {name: log for name, (_, log) in zip(running, processes.stop(), strict=False)}
    digests = replay(bundle, tmp_path)
    assert last["server_digest"] == digests[120].hex()
    for name in devices:  # one that was still on its way back when the job ended has a part of the journal
        replica = DeviceState(tmp_path / name, bundle, name).replica
        assert replica.digest() == digests[replica.round]
    counted = {(closed.round, name) for closed in read_history(tmp_path / "server") for name in closed.devices}
    for name, text in said.items():
        acknowledged = {int(round) for round in re.findall(r"round (\d+) of \d+: counted", text)}
        assert len(acknowledged) > 20, errors
        assert {(round, name) for round in acknowledged} <= counted
