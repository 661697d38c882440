"""The device's agent: it keeps its replica up with the journal and answers plans, over MQTT.

Everything it needs to go on after a kill is in its state folder. A result is sent again until the server acknowledges
it or the round is over; entries are applied exactly once and in order, and a gap is asked for. What the broker brings
is believed only with the signature of the server that the bundle names.
"""

from __future__ import annotations

import logging
import random
import secrets
import time
from collections.abc import Callable, Iterable

from device_runtime.access import Access
from device_runtime.answers import Answers
from device_runtime.catch_up import Planner
from device_runtime.client import Will
from device_runtime.complaints import Complaints
from device_runtime.conditions import UNLIMITED, Conditions, Limits, read_conditions
from device_runtime.data import DataStore
from device_runtime.energy.book import NoBook
from device_runtime.engines import Engine
from device_runtime.errors import MessageError, PlanError, StateError
from device_runtime.journal import chain
from device_runtime.link import Connected, Link, Received
from device_runtime.memory import peak_rss_bytes
from device_runtime.phases import APPLY, IDLE, NETWORK, OTHER
from device_runtime.plan import Entry, Plan
from device_runtime.state import DeviceState
from device_runtime.topics import Topics
from device_runtime.trust import Scope, check, read_pin, split
from device_runtime.wire import (
    Ack,
    Batch,
    Decline,
    Dismissal,
    Finish,
    Hello,
    Message,
    Offer,
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
#: Seconds of its own silence after which the device says where it stands, to show that it is there.
IDLE_S = 60.0


class Agent:
    """One device of one job.

    Attributes:
        limits: within which it takes part in rounds; others may be set while it runs.
    """

    def __init__(
        self,
        access: Access,
        job: str,
        engine: Engine,
        state: DeviceState,
        examples: Callable[[], DataStore],
        observe: Callable[[Ack, Result], None] = lambda ack, result: None,
        turned: Callable[[], None] = lambda: None,
        limits: Limits = UNLIMITED,
        conditions: Callable[[], Conditions] = read_conditions,
        book: NoBook | None = None,
    ) -> None:
        """Prepare to take part.

        Args:
            examples: gives those to measure on, asked anew for each round.
            observe: told of each acknowledgement, with the result that it answers.
            turned: told of each turn of :meth:`run`, once it is connected: where nothing happens, every minute or so.
            limits: within which it takes part in rounds; it follows the journal in any case.
            conditions: tells how it fares.
            book: keeps account of its joules.

        Raises:
            BundleError, EngineError: the graphs cannot run, or the bundle names no server.
        """
        self._state = state
        self._examples = examples
        self._observe, self._turned = observe, turned
        self._authority = access.authority
        self.limits = limits
        self._conditions = conditions
        self._fares = Conditions()
        self._unwilling = ""
        self._book = book or NoBook()
        self._recorder = self._book.recorder
        self._answers = Answers(
            engine, state, examples, lambda: self._judge(conditions()), self._recorder, self._book.spent
        )
        self._server = read_pin(state.replica.bundle.folder)
        self._topics = Topics(job)
        self._session = secrets.randbits(63)
        device = state.device
        self._link = Link(
            access,
            client_id=device,
            subscriptions=[self._topics.round, self._topics.result, self._topics.down(device)],
            will=Will(self._topics.state(device), self._sign(Presence(False, self._session))),
        )
        self._planner = Planner()
        self._complaints = Complaints(log)
        self._plan: Plan | None = None
        #: A plan, or the end of the job, that follows a round which the replica has yet to come to.
        self._ahead: bytes | None = None
        self._reports = 0
        self._unanswered: Result | Decline | Report | None = None
        self._said_at = time.monotonic()
        self._haste = random.uniform(0.8, 1.2)  # devices that lost the server together do not come back in step
        self._synced_at = -RESEND_S
        self._last_round: int | None = None
        self._stopping = False

    @property
    def link(self) -> Link:
        """The connection: whether it stands, and how many bytes it took."""
        return self._link

    def stop(self) -> None:
        """Have :meth:`run` return after the round's work that is at hand; may be called from any thread."""
        self._stopping = True
        self._link.events.put(None)  # wakes it

    def run(self) -> None:
        """Take part until the job ends, or :meth:`stop` is called.

        Raises:
            BrokerError: the broker cannot be reached at the start, or refuses.
            StateError: the server refuses this device, or the disk does.
        """
        self._recorder.turn_to(self._state.replica.round + 1)
        with self._recorder.phase(OTHER):
            self._link.connect()
            try:
                while not (self._finished or self._stopping):
                    self._turned()
                    with self._recorder.phase(IDLE):
                        event = self._link.next(self._due - time.monotonic())
                    self.turn(event)
                    self._remind()
                    if self._link.events.empty() and not self._stopping:  # what waits may be this round's entry
                        self._answer_plan()
            finally:
                self._publish(Presence(False, self._session))
                self._link.close()

    @property
    def flops(self) -> int:
        """Operations of matrix products so far."""
        return self._answers.forward.flops

    def turn(self, event: object) -> None:
        """Take in what happened."""
        if isinstance(event, Connected):
            self._publish(Presence(True, self._session))
            self._sync(at_once=True)
        elif isinstance(event, Received):
            try:
                with self._recorder.phase(NETWORK):
                    self._receive(event.payload)
            except (MessageError, PlanError) as error:
                self._complaints.add(event.topic, f"a message on {event.topic} was dropped: {error}")

    def _remind(self) -> None:
        """Say again what was not answered, or after a long silence of its own that this device is there."""
        if time.monotonic() < self._due:
            return
        if self._unanswered is None:
            self._sync(at_once=True)
        elif self._reports < REPORTS:
            self._send(self._unanswered)
        else:
            log.warning("the server has not acknowledged the report of device '%s'", self._state.device)
            self._unanswered = None

    @property
    def _due(self) -> float:
        """When to say something if nothing happens, by the monotonic clock."""
        return self._said_at + self._haste * (RESEND_S if self._unanswered else IDLE_S)

    @property
    def _finished(self) -> bool:
        return self._last_round is not None and self._unanswered is None

    def _receive(self, signed: bytes) -> None:
        message = decode(split(signed))
        if isinstance(message, Entry):
            self._follow([signed])
        elif isinstance(message, Plan | Finish):
            self._expect(message, signed)
        elif isinstance(message, Hello):
            self._check(signed)
            self._sync(at_once=True)
        else:
            self._check(signed, to=self._state.device)
            self._obey(message)

    def _obey(self, message: Message) -> None:
        """Do what the server has said to this device."""
        if isinstance(message, Batch):
            self._sync(at_once=self._follow(message.entries))
        elif isinstance(message, Ack):
            if isinstance(self._unanswered, Result) and self._unanswered.round == message.round:
                self._observe(message, self._unanswered)
            if not isinstance(self._unanswered, Report):
                self._settle(message.round)
        elif isinstance(message, Offer):
            self._consider(message)
        elif isinstance(message, Dismissal) and message.session == self._session:
            self._unanswered = None
        elif isinstance(message, Refusal) and (message.key, message.session) == (
            self._state.signer.public,
            self._session,
        ):
            raise StateError(f"the server refuses device '{self._state.device}': {message.reason}")

    def _follow(self, entries: Iterable[bytes]) -> bool:
        """Apply journal entries that come next, leaving out those that are known; tell whether there was one."""
        replica, started = self._state.replica, time.perf_counter()
        before, head, gap = replica.round, replica.head, False
        fresh: list[Entry] = []
        try:
            for signed in entries:
                entry = decode(split(signed))
                if not isinstance(entry, Entry):
                    raise MessageError("a batch holds something else than journal entries")
                following = before + len(fresh) + 1
                gap = entry.round > following
                if gap:
                    break
                if entry.round == following:
                    self._check(signed, head=head)
                    replica.check(entry, len(fresh))
                    fresh.append(entry)
                    head = chain(head, entry)
        finally:
            if fresh:  # what came before a wrong one is good
                with self._recorder.phase(APPLY):
                    self._state.apply_all(fresh)
                self._recorder.turn_to(replica.round + 1)
                self._book.write(self._fares)
                self._settle(replica.round)
        if gap:
            self._sync()
        self._planner.applied(replica.round - before, time.perf_counter() - started)
        if replica.round > before and self._ahead is not None:
            ahead, self._ahead = self._ahead, None
            self._receive(ahead)
        return replica.round > before

    def _expect(self, message: Plan | Finish, signed: bytes) -> None:
        """Take a plan or the end of the job, when the replica has come to where it belongs."""
        replica = self._state.replica
        follows = message.round - 1 if isinstance(message, Plan) else message.round
        if follows > replica.round:
            self._ahead = signed
            self._sync()
        elif follows == replica.round and isinstance(message, Plan):
            self._check(signed, to=self._state.device, head=replica.head)
            self._plan = message
        elif follows == replica.round:
            self._check(signed, head=replica.head)
            self._finish(message.round)

    def _consider(self, offer: Offer) -> None:
        """Take a snapshot instead of the journal's entries, where that is quicker."""
        replica, file = self._state.replica, self._state.folder / "offered.safetensors"
        behind = offer.round - replica.round
        authority = self._authority if offer.url.startswith("https:") else ""  # else the signed hash must do
        if behind > 0 and self._planner.fetch(offer, behind, file, authority):
            try:
                self._state.adopt(file)
            except StateError as error:
                log.warning("%s", error)
            self._sync(at_once=True)

    def _answer_plan(self) -> None:
        """Measure for the plan at hand, or send the result again when its round was measured already."""
        plan, self._plan = self._plan, None
        if plan is not None and plan.round == self._state.replica.round + 1:
            answer = self._answers.answer(plan)
            if isinstance(answer, Result):
                self._book.note(plan.round, answer.loss)
            self._send(answer)

    def _settle(self, round: int) -> None:
        """Stop sending what a round's acknowledgement or entry answers."""
        if self._unanswered is not None and self._unanswered.round <= round:
            self._unanswered = None

    def _finish(self, last_round: int) -> None:
        if self._last_round is None:
            self._last_round = last_round
            self._state.snapshot()
            energy = self._book.total()
            self._book.write(self._fares)
            self._send(
                Report(
                    round=last_round,
                    digest=self._state.replica.digest(),
                    rss_bytes=peak_rss_bytes(),
                    bytes_up=self._link.bytes_up,
                    bytes_down=self._link.bytes_down,
                    results=self._answers.given,
                    energy=energy,
                )
            )

    def _sync(self, at_once: bool = False) -> None:
        """Say where the replica stands, to be sent what it lacks; not in a burst, since each is answered in full."""
        if at_once or time.monotonic() >= self._synced_at + RESEND_S:
            self._synced_at = time.monotonic()
            replica, now = self._state.replica, self._conditions()
            self._publish(
                Sync(
                    key=self._state.signer.public,
                    session=self._session,
                    bundle=replica.bundle.identity,
                    round=replica.round,
                    head=replica.head,
                    examples=len(self._examples()),
                    battery=now.battery,
                    charging=now.charging,
                    willing=not self._judge(now),
                )
            )

    def _judge(self, now: Conditions) -> str:
        """Why it takes part in no round under these conditions, said when it changes; "" where it does."""
        self._fares = now
        reason = self.limits.refusal(now)
        if reason != self._unwilling:
            log.warning(f"takes part in no round now: {reason}" if reason else "takes part in rounds again")
            self._unwilling = reason
        return reason

    def _send(self, message: Result | Decline | Report) -> None:
        self._reports += isinstance(message, Report)
        self._unanswered = message
        self._publish(message)

    def _publish(self, message: Message) -> None:
        device, retain = self._state.device, isinstance(message, Presence)
        topic = self._topics.state(device) if retain else self._topics.up(device)
        self._said_at = time.monotonic()
        useful = IDLE_S if isinstance(message, Sync) else 0.0  # by then it has said so anew
        with self._recorder.phase(NETWORK):
            self._link.publish(topic, self._sign(message), retain, useful)

    def _sign(self, message: Message) -> bytes:
        return self._state.signer.sign(encode(message), self._scope(self._state.device))

    def _check(self, signed: bytes, to: str = "", head: bytes = b"") -> None:
        """Raise MessageError unless the server has said this, to whom it is for, after this journal."""
        check(signed, self._scope(to, head), self._server)

    def _scope(self, device: str, head: bytes = b"") -> Scope:
        return Scope(self._topics.job, self._state.replica.bundle.identity, device, head)
