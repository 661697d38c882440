"""What a device sends: signed, and sent again until it is acknowledged where it must be."""

from __future__ import annotations

import random
import secrets
import sys
import time

from fedspzo.device_runtime.device.trust import Trust
from fedspzo.device_runtime.link.client import Will
from fedspzo.device_runtime.link.transport import Transport
from fedspzo.device_runtime.platform.conditions import Conditions
from fedspzo.device_runtime.platform.memory import peak_rss_bytes
from fedspzo.device_runtime.platform.profiling import NETWORK, Recorder
from fedspzo.device_runtime.protocol.codec import encode
from fedspzo.device_runtime.protocol.masked import Masked, Ready
from fedspzo.device_runtime.protocol.messages import (
    CAPABILITIES,
    Decline,
    Energy,
    Message,
    Presence,
    Report,
    Result,
    Sync,
)
from fedspzo.device_runtime.protocol.server_keys import ServerKeys
from fedspzo.device_runtime.protocol.signing import SIGNATURE_BYTES, Scope
from fedspzo.device_runtime.protocol.topics import Topics
from fedspzo.device_runtime.replica.state import DeviceState

#: Seconds without an acknowledgement after which a result or a report is sent again.
RESEND_S = 5.0
#: Times that a report is sent before the device ends without an acknowledgement.
REPORTS = 12
#: Seconds without sending after which the device says where it stands, to show that it is there.
IDLE_S = 60.0
#: Version of the program. The package is not imported for it: to checkers of imports it leads to all that is exported.
_PROGRAM: str = sys.modules["fedspzo"].__version__


class Outbox:
    """A device's messages to its server.

    Attributes:
        session: number of this process, drawn at random.
        link: the connection that they take.
        trust: has the authorities that the link trusts.
        pending: what waits for an acknowledgement, and is sent again meanwhile.
    """

    def __init__(self, access: Transport, job: str, state: DeviceState, recorder: Recorder, keys: ServerKeys) -> None:
        """Prepare to connect."""
        self._keys, self.trust = keys, Trust(state.folder, access)
        access = self.trust.access
        self._state = state
        self._recorder = recorder
        self._topics = Topics(job)
        self.session = secrets.randbits(63)
        self.link = access.link(
            client_id=state.device,
            subscriptions=[self._topics.round, self._topics.result, self._topics.down(state.device)],
            will=Will(self._topics.state(state.device), self._sign(Presence(False, self.session))),
        )
        self.pending: Result | Masked | Decline | Report | None = None
        self._reports = 0
        self._sent_at = time.monotonic()
        self._haste = random.uniform(0.8, 1.2)  # devices that lost the server together do not come back in step

    @property
    def due(self) -> float:
        """When to send something if nothing happens, by the monotonic clock."""
        return self._sent_at + self._haste * (RESEND_S if self.pending else IDLE_S)

    @property
    def room(self) -> int:
        """Bytes of entries that fit into a message to the server: signed, and with a few bytes of a head each."""
        return 15 * (self.link.packets.room(self._topics.up(self._state.device)) - 2 * SIGNATURE_BYTES) // 16

    def announce(self, online: bool) -> None:
        """Say that this session is there, or ends."""
        self.send(Presence(online, self.session))

    def send(self, message: Message) -> None:
        """Send what needs no acknowledgement."""
        device, retain = self._state.device, isinstance(message, Presence)
        topic = self._topics.state(device) if retain else self._topics.up(device)
        self._sent_at = time.monotonic()
        useful = IDLE_S if isinstance(message, Sync) else 0.0  # by then it has sent a new one
        with self._recorder.phase(NETWORK):
            self.link.publish(topic, self._sign(message), retain, useful)

    def sync(self, examples: int, now: Conditions, willing: bool) -> None:
        """Say where the replica stands, how many examples there are, and how the device fares."""
        replica = self._state.replica
        self.send(
            Sync(
                key=self._state.signer.public,
                session=self.session,
                bundle=replica.bundle.identity,
                round=replica.round,
                head=replica.head,
                examples=examples,
                battery=now.battery,
                charging=now.charging,
                willing=willing,
                version=_PROGRAM,
                can=CAPABILITIES,
                hand_overs=len(self._keys.hand_overs),
                authorities=self.trust.fingerprint,
                hand_overs_to_key=self._state.hand_overs_to_key,
            )
        )

    def report(self, results: int, energy: tuple[Energy, ...]) -> None:
        """Say at the end of a job what came of it, and what the work cost."""
        self.send_until_acknowledged(
            Report(
                round=self._state.replica.round,
                digest=self._state.replica.digest(),
                rss_bytes=peak_rss_bytes(),
                bytes_up=self.link.bytes_up,
                bytes_down=self.link.bytes_down,
                results=results,
                energy=energy,
            )
        )

    def send_once(self, message: Ready) -> None:
        """Send what the server asks for again where it does not arrive, in place of what was sent until now."""
        self.pending = None
        self.send(message)

    def send_until_acknowledged(self, message: Result | Masked | Decline | Report) -> bool:
        """Send something, and again until it is acknowledged; False where a report has been sent often enough."""
        self._reports += isinstance(message, Report)
        if self._reports > REPORTS:
            self.pending = None
            return False
        self.pending = message
        self.send(message)
        return True

    def acknowledge(self, round: int) -> None:
        """Stop sending what a round's acknowledgement or entry answers."""
        if self.pending is not None and self.pending.round <= round:
            self.pending = None

    def _sign(self, message: Message) -> bytes:
        scope = Scope(self._topics.job, self._state.replica.bundle.identity, self._state.device)
        return self._state.signer.sign(encode(message), scope)
