"""A device whose broker is the test: nothing is connected, messages are handed to it."""

from __future__ import annotations

from pathlib import Path

from device_runtime.access import Access
from device_runtime.agent import Agent
from device_runtime.bundle import Bundle
from device_runtime.data import DataStore
from device_runtime.engines import create_engine
from device_runtime.link import Received
from device_runtime.plan import Block
from device_runtime.state import DeviceState
from device_runtime.topics import Topics
from device_runtime.trust import Scope, Signer
from device_runtime.wire import Message, encode

JOB, DEVICE = "default", "a"
TOPICS = Topics(JOB)
NOWHERE = Access("mqtt://127.0.0.1:1")
BLOCKS = (Block(3, 1, 0.25, 1e-3), Block(5, 4, 1.0, 1e-2))


class Victim:
    """A device whose broker is the test: nothing is connected, messages are handed to it."""

    def __init__(self, bundle: Bundle, folder: Path, store: DataStore) -> None:
        self.state = DeviceState(folder / "device", bundle, DEVICE)
        self.agent = Agent(NOWHERE, JOB, create_engine("litert"), self.state, lambda: store)
        self.server = Signer(folder / "server" / "server.key")
        self.identity = bundle.identity

    def sign(
        self, message: Message, to: str = "", head: bytes = b"", job: str = JOB, signer: Signer | None = None
    ) -> bytes:
        return (signer or self.server).sign(encode(message), Scope(job, self.identity, to, head))

    def hear(self, signed: bytes, topic: str = TOPICS.down(DEVICE)) -> None:
        self.agent.turn(Received(topic, signed))

    @property
    def standing(self) -> tuple[int, bytes, bytes]:
        replica = self.state.replica
        return replica.round, replica.head, replica.digest()
