"""What a device and its server say to each other: signed, and what must be answered again and again until it is."""

from __future__ import annotations

import random
import secrets
import time

from fedspzo.device_runtime.link.access import Access
from fedspzo.device_runtime.link.client import Will
from fedspzo.device_runtime.link.connection import Link
from fedspzo.device_runtime.platform.profiling import NETWORK, Recorder
from fedspzo.device_runtime.protocol.messages import Decline, Message, Presence, Report, Result, Sync, encode
from fedspzo.device_runtime.protocol.signing import Scope, check, read_pin
from fedspzo.device_runtime.protocol.topics import Topics
from fedspzo.device_runtime.replica.state import DeviceState

#: Seconds without an acknowledgement after which a result or a report is sent again.
RESEND_S = 5.0
#: Times that a report is sent before the device ends without an acknowledgement.
REPORTS = 12
#: Seconds of its own silence after which the device says where it stands, to show that it is there.
IDLE_S = 60.0


class Correspondence:
    """A device's side.

    Attributes:
        link: the connection.
        session: of this process.
        unanswered: what waits for an acknowledgement, and is said again meanwhile.
    """

    def __init__(self, access: Access, job: str, state: DeviceState, recorder: Recorder) -> None:
        """Prepare to connect. Raises BundleError when the bundle names no server."""
        self._state = state
        self._recorder = recorder
        self._server = read_pin(state.replica.bundle.folder)
        self._topics = Topics(job)
        self.session = secrets.randbits(63)
        self.link = Link(
            access,
            client_id=state.device,
            subscriptions=[self._topics.round, self._topics.result, self._topics.down(state.device)],
            will=Will(self._topics.state(state.device), self._sign(Presence(False, self.session))),
        )
        self.unanswered: Result | Decline | Report | None = None
        self._reports = 0
        self._said_at = time.monotonic()
        self._haste = random.uniform(0.8, 1.2)  # devices that lost the server together do not come back in step

    def appear(self, online: bool) -> None:
        """Say that this session is there, or ends."""
        self.say(Presence(online, self.session))

    def say(self, message: Message) -> None:
        """Say something that waits for no acknowledgement."""
        device, retain = self._state.device, isinstance(message, Presence)
        topic = self._topics.state(device) if retain else self._topics.up(device)
        self._said_at = time.monotonic()
        useful = IDLE_S if isinstance(message, Sync) else 0.0  # by then it has said so anew
        with self._recorder.phase(NETWORK):
            self.link.publish(topic, self._sign(message), retain, useful)

    def insist(self, message: Result | Decline | Report) -> bool:
        """Say something, and again until it is settled; False where a report has been said often enough."""
        self._reports += isinstance(message, Report)
        if self._reports > REPORTS:
            self.unanswered = None
            return False
        self.unanswered = message
        self.say(message)
        return True

    def settle(self, round: int) -> None:
        """Stop saying what a round's acknowledgement or entry answers."""
        if self.unanswered is not None and self.unanswered.round <= round:
            self.unanswered = None

    @property
    def due(self) -> float:
        """When to say something if nothing happens, by the monotonic clock."""
        return self._said_at + self._haste * (RESEND_S if self.unanswered else IDLE_S)

    def check(self, signed: bytes, to: str = "", head: bytes = b"") -> None:
        """Raise MessageError unless the server has said this, to whom it is for, after this journal."""
        check(signed, self._scope(to, head), self._server)

    def _sign(self, message: Message) -> bytes:
        return self._state.signer.sign(encode(message), self._scope(self._state.device))

    def _scope(self, device: str, head: bytes = b"") -> Scope:
        return Scope(self._topics.job, self._state.replica.bundle.identity, device, head)
