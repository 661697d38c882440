"""Flower's grid in one process, with nodes that fail, are late, or lie: `python flower_grid.py SCENARIO FOLDER`.

It runs in an environment with Flower in it, on a bundle, the devices' data and a job's settings in a folder. Scenario
``restart`` loses the grid in the middle of the job and runs the job again; ``hostile`` has liars among the nodes.
"""

from __future__ import annotations

import logging
import math
import sys
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

from flwr.app import Context, Error, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from fedspzo.device_runtime.errors import BrokerError
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.protocol.codec import decode, encode
from fedspzo.device_runtime.protocol.messages import Result
from fedspzo.device_runtime.protocol.signing import Scope, Signer, split
from fedspzo.flower.client_app import app as client_app
from fedspzo.flower.content import pack, unpack
from fedspzo.flower.server_app import app as server_app

Node = Callable[[Message], Message]
HONEST = 8


class LocalGrid(Grid):
    """Nodes that are functions, each called on a thread of its own; it breaks after ``most`` messages."""

    def __init__(self, nodes: dict[int, Node], most: float = math.inf) -> None:
        self._nodes, self._left = nodes, most
        self._replies: dict[str, Message] = {}

    def set_run(self, run: object) -> None: ...

    @property
    def run(self) -> None: ...

    def create_message(self, *_: object, **__: object) -> Message:
        raise NotImplementedError

    def get_node_ids(self) -> Iterable[int]:
        return list(self._nodes)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        return [self._push(message) for message in messages]

    def _push(self, message: Message) -> str:
        self._left -= 1
        if self._left < 0:
            raise ConnectionError("the SuperLink is gone")
        name = message.metadata.__dict__["_message_id"] = str(uuid4())
        threading.Thread(target=self._answer, args=[name, message], daemon=True).start()
        return name

    def _answer(self, name: str, message: Message) -> None:
        try:
            self._replies[name] = self._nodes[message.metadata.dst_node_id](message)
        except Exception as error:  # as Flower has it
            self._replies[name] = Message(Error(code=2, reason=f"{type(error)}:<'{error}'>"), reply_to=message)

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        return [self._replies.pop(name) for name in message_ids if name in self._replies]

    def send_and_receive(self, *_: object, **__: object) -> list[Message]:
        raise NotImplementedError


class Fleet:
    """The nodes of a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.bundle = folder, Bundle(folder / "bundle")
        self._alone = threading.Lock()  # Flower gives each call a process
        self.run_config = {
            "client.bundle": str(folder / "bundle"), "client.state": f"{folder}/nodes/{{partition}}",
            "client.data": f"{folder}/data/{{partition}}.jsonl", "client.id": "{partition}",
        }  # fmt: skip

    def node(self, name: str) -> Node:
        """An honest one."""
        config = {"partition-id": name}

        def call(message: Message) -> Message:
            with self._alone:
                return client_app(message, Context(1, 1, config, RecordDict(), self.run_config))

        return call

    def liar(self, name: str, lie: Callable[[Result], Result]) -> Node:
        """One that signs other results than its device measured."""
        honest = self.node(name)

        def call(message: Message) -> Message:
            device, said = unpack(honest(message).content)
            signer, scope = (
                Signer(self.folder / "nodes" / name / "device.key"),
                Scope("default", self.bundle.identity, name),
            )
            changed = [
                signer.sign(encode(lie(found)), scope) if isinstance(found := decode(split(signed)), Result) else signed
                for signed in said
            ]
            return Message(pack(changed, device), reply_to=message)

        return call

    def nodes(self, count: int = HONEST) -> dict[int, Node]:
        return {number + 1: self.node(str(number)) for number in range(count)}

    def serve(self, grid: LocalGrid, **settings: object) -> None:
        own = {"bundle": str(self.folder / "bundle"), "state": str(self.folder / "server"), "devices": HONEST}
        config = {f"server.{key}": value for key, value in {**own, **settings}.items()}
        server_app(grid, Context(1, 0, {}, RecordDict(), config))


def restart(fleet: Fleet) -> None:
    settings = {"config": str(fleet.folder / "job.toml")}
    try:
        fleet.serve(LocalGrid(fleet.nodes(), most=40), **settings)
    except BrokerError as error:
        print(error)
    else:
        raise AssertionError("the job ended before the grid did")
    fleet.serve(LocalGrid(fleet.nodes()), **settings)


def hostile(fleet: Fleet) -> None:
    nodes = fleet.nodes()

    def fail(message: Message) -> Message:
        raise RuntimeError("out of memory\nand more")

    def foreign(message: Message) -> Message:
        return Message(RecordDict(), reply_to=message)

    def junk(message: Message) -> Message:
        return Message(pack([b"\x00" * 100, b""], "junk"), reply_to=message)

    def thief(message: Message) -> Message:
        return Message(pack([b"\x01" * 100], "0"), reply_to=message)

    late = nodes[HONEST]

    def slow(message: Message) -> Message:
        found = late(message)
        if any(isinstance(decode(split(signed)), Result) for signed in unpack(found.content)[1]):
            time.sleep(3)
        return found

    nodes[HONEST] = slow
    nodes |= {11: fail, 12: foreign, 13: junk, 14: thief}
    nodes[15] = fleet.liar("8", lambda result: replace(result, round=result.round + 7))
    nodes[16] = fleet.liar("9", lambda result: replace(result, scalars=(math.nan,) * len(result.scalars)))
    fleet.serve(
        LocalGrid(nodes), config=str(fleet.folder / "job.toml"), cohort=10, quorum=7, devices=10, deadline=1.5, rounds=4
    )  # fmt: skip


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    TaskIdentity.run_id = TaskIdentity.task_id = 1
    TaskIdentity.node_id = 0
    {"restart": restart, "hostile": hostile}[sys.argv[1]](Fleet(Path(sys.argv[2])))
