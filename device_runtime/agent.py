"""The device's agent: it keeps its replica up with the journal and answers plans, over MQTT.

Everything it needs to go on after a kill is in its state folder. A result is sent again until the server acknowledges
it or the round is over; entries are applied exactly once and in order, and a gap is asked for.
"""

from __future__ import annotations

import logging
import math
import resource
import secrets
import time
from pathlib import Path

from device_runtime.data import DataStore
from device_runtime.engines import Engine
from device_runtime.errors import FedSPZOError, MessageError, PlanError, StateError
from device_runtime.estimator import measure
from device_runtime.forward import Forward
from device_runtime.link import Connected, Link, Received, Topics, Will
from device_runtime.plan import Entry, Plan
from device_runtime.state import DeviceState
from device_runtime.wire import (
    Ack,
    Decline,
    Finish,
    Hello,
    Message,
    Presence,
    Refusal,
    Report,
    Result,
    Sync,
    decode,
    encode,
)

log = logging.getLogger(__name__)

#: Seconds without an acknowledgement after which a result or a report is sent again, and between syncs.
RESEND_S = 5.0
#: Times that a report is sent before the device ends without an acknowledgement.
REPORTS = 12
#: Seconds without any message after which the device asks whether it missed something.
IDLE_S = 30.0


class Agent:
    """One device of one job."""

    def __init__(self, url: str, job: str, engine: Engine, state: DeviceState, store: DataStore) -> None:
        """Raises BrokerError when the URL is not a broker's, BundleError or EngineError when the graphs cannot run."""
        self._state = state
        self._store = store
        self._forward = Forward(engine, state.replica)
        self._topics = Topics(job)
        self._session = secrets.randbits(63)
        device = state.device
        self._link = Link(
            url,
            client_id=device,
            subscriptions=[self._topics.round, self._topics.result, self._topics.down(device)],
            will=Will(self._topics.state(device), self._presence(online=False)),
        )
        self._plan: Plan | None = None
        self._answered: tuple[Plan, Result | Decline] | None = None
        self._results = 0
        self._reports = 0
        self._unanswered: Result | Decline | Report | None = None
        self._sent_at = 0.0
        self._synced_at = -RESEND_S
        self._last_round: int | None = None

    def run(self) -> None:
        """Take part until the job ends.

        Raises:
            BrokerError: the broker cannot be reached at the start, or refuses.
            StateError: the server refuses this device, or the disk does.
        """
        self._link.connect()
        try:
            while not self._finished:
                wait = self._sent_at + RESEND_S - time.monotonic() if self._unanswered else IDLE_S
                self._handle(self._link.next(wait))
                if self._link.events.empty():  # what waits may be this round's entry
                    self._answer_plan()
        finally:
            self._announce(online=False)
            self._link.close()

    @property
    def _finished(self) -> bool:
        return self._last_round is not None and self._unanswered is None

    def _handle(self, event: object) -> None:
        if isinstance(event, Connected):
            self._announce(online=True)
            self._sync(at_once=True)
        elif isinstance(event, Received):
            try:
                self._receive(decode(event.payload))
            except (MessageError, PlanError) as error:
                log.warning("a message on %s was dropped: %s", event.topic, error)
        elif self._unanswered is None:
            self._sync()
        elif self._reports < REPORTS:
            self._send(self._unanswered)
        else:
            log.warning("the server has not acknowledged the report of device '%s'", self._state.device)
            self._unanswered = None

    def _receive(self, message: Message) -> None:
        replica = self._state.replica
        if isinstance(message, Entry):
            if message.round == replica.round + 1:
                self._state.apply(message)
                self._settle(message.round)
            elif message.round > replica.round + 1:
                self._sync()
        elif isinstance(message, Plan):
            if message.round > replica.round:
                self._plan = message
            if message.round > replica.round + 1:
                self._sync()
        elif isinstance(message, Hello):
            self._sync(at_once=True)
        elif isinstance(message, Ack):
            self._settle(message.round)
        elif isinstance(message, Finish):
            self._finish(message.round)
        elif isinstance(message, Refusal):
            raise StateError(f"the server refuses device '{self._state.device}': {message.reason}")

    def _answer_plan(self) -> None:
        """Measure for the plan at hand, or send the result again when its round was measured already."""
        plan = self._plan
        if plan is None or plan.round != self._state.replica.round + 1:
            return
        self._plan = None
        if self._answered is None or self._answered[0] != plan:
            self._answered = plan, self._measure(plan)
            self._results += 1
        self._send(self._answered[1])

    def _measure(self, plan: Plan) -> Result | Decline:
        start = time.perf_counter()
        digest = self._state.replica.digest() if plan.digest else b""
        try:
            measured = measure(self._forward, self._store, plan, self._state.device)
        except FedSPZOError as error:
            log.warning("the plan of round %d cannot be carried out: %s", plan.round, error)
            return Decline(plan.round, str(error)[:200])
        if not all(map(math.isfinite, (measured.loss, *measured.scalars))):
            return Decline(plan.round, "its loss is not finite: the model has diverged; lower the learning rates")
        seconds = time.perf_counter() - start
        return Result(plan.round, measured.scalars, measured.loss, measured.examples, seconds, digest)

    def _settle(self, round: int) -> None:
        """Stop sending what a round's acknowledgement or entry answers."""
        if self._unanswered is not None and self._unanswered.round <= round:
            self._unanswered = None

    def _finish(self, last_round: int) -> None:
        replica = self._state.replica
        if replica.round < last_round:
            self._sync()
        elif self._last_round is None:
            self._last_round = last_round
            self._state.snapshot()
            self._send(
                Report(
                    round=replica.round,
                    digest=replica.digest(),
                    rss_bytes=peak_rss_bytes(),
                    bytes_up=self._link.bytes_up,
                    bytes_down=self._link.bytes_down,
                    results=self._results,
                )
            )

    def _presence(self, online: bool) -> bytes:
        return encode(Presence(online, self._session))

    def _announce(self, online: bool) -> None:
        self._link.publish(self._topics.state(self._state.device), self._presence(online), retain=True)

    def _sync(self, at_once: bool = False) -> None:
        """Say where the replica stands, to be sent what it lacks; not in a burst, since each is answered in full."""
        if at_once or time.monotonic() >= self._synced_at + RESEND_S:
            self._synced_at = time.monotonic()
            replica = self._state.replica
            sync = Sync(replica.bundle.identity, replica.round, replica.head, len(self._store))
            self._link.publish(self._topics.up(self._state.device), encode(sync))

    def _send(self, message: Result | Decline | Report) -> None:
        self._reports += isinstance(message, Report)
        self._unanswered = message
        self._sent_at = time.monotonic()
        self._link.publish(self._topics.up(self._state.device), encode(message))


def peak_rss_bytes() -> int:
    """Largest resident memory that this process has had.

    Linux's own count is asked for: ``getrusage`` also remembers what the parent held when it forked.
    """
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    except (OSError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
