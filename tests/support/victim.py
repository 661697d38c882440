"""A device whose broker is the test: nothing is connected, messages are handed to it."""

from __future__ import annotations

from pathlib import Path

from fedspzo.device_runtime.data.store import DataStore
from fedspzo.device_runtime.device.agent import Agent
from fedspzo.device_runtime.engines.protocol import create_engine
from fedspzo.device_runtime.link.access import Access
from fedspzo.device_runtime.link.events import Received
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.protocol.codec import encode
from fedspzo.device_runtime.protocol.messages import Message
from fedspzo.device_runtime.protocol.plan import Block
from fedspzo.device_runtime.protocol.signing import Scope, Signer
from fedspzo.device_runtime.protocol.topics import Topics
from fedspzo.device_runtime.replica.state import DeviceState

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
