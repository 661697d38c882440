"""The device's agent: it keeps its replica up with the journal and answers plans, over MQTT.

Everything it needs to go on after a kill is in its state folder. A result is sent again until the server acknowledges
it or the round is over; entries are applied exactly once and in order, and a gap is asked for. What the broker brings
is believed only with the signature of the server that the bundle names.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable

from fedspzo.device_runtime.data.store import DataStore
from fedspzo.device_runtime.device.catch_up import Planner
from fedspzo.device_runtime.device.measuring import Answers
from fedspzo.device_runtime.device.outbox import Correspondence
from fedspzo.device_runtime.energy.book import NoBook
from fedspzo.device_runtime.engines.protocol import Engine
from fedspzo.device_runtime.errors import MessageError, PlanError, StateError
from fedspzo.device_runtime.link.access import Access
from fedspzo.device_runtime.link.connection import Connected, Received
from fedspzo.device_runtime.log import Complaints
from fedspzo.device_runtime.platform.conditions import Watch
from fedspzo.device_runtime.platform.memory import peak_rss_bytes
from fedspzo.device_runtime.platform.profiling import APPLY, IDLE, NETWORK, OTHER
from fedspzo.device_runtime.protocol.messages import (
    Ack,
    Batch,
    Dismissal,
    Finish,
    Hello,
    Message,
    Offer,
    Rebase,
    Refusal,
    Report,
    Result,
    Sync,
    decode,
)
from fedspzo.device_runtime.protocol.plan import Entry, Plan
from fedspzo.device_runtime.protocol.signing import split
from fedspzo.device_runtime.replica.journal import chain
from fedspzo.device_runtime.replica.state import DeviceState

log = logging.getLogger(__name__)

#: Seconds between syncs that are not asked for.
SYNC_S = 5.0


class Agent:
    """One device of one job.

    Attributes:
        link: the connection: whether it stands, and how many bytes it took.
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
        watch: Watch | None = None,
        book: NoBook | None = None,
    ) -> None:
        """Prepare to take part.

        Args:
            examples: gives those to measure on, asked anew for each round.
            observe: told of each acknowledgement, with the result that it answers.
            turned: told of each turn of :meth:`run`, once it is connected: where nothing happens, every minute or so.
            watch: tells how the device fares, and when it takes part in rounds; it follows the journal in any case.
            book: keeps account of its joules.

        Raises:
            BundleError, EngineError: the graphs cannot run, or the bundle names no server.
        """
        self._state = state
        self._examples = examples
        self._observe, self._turned = observe, turned
        self._authority = access.authority
        self._watch = watch or Watch()
        self._book = book or NoBook()
        self._recorder = self._book.recorder
        self._answers = Answers(engine, state, examples, self._watch.look, self._recorder, self._book.spent)
        self._server = Correspondence(access, job, state, self._recorder)
        self.link = self._server.link
        self._planner = Planner()
        self._complaints = Complaints(log)
        self._plan: Plan | None = None
        #: A plan, or the end of the job, that follows a round which the replica has yet to come to.
        self._ahead: bytes | None = None
        self._synced_at = -SYNC_S
        self._last_round: int | None = None
        self._stopping = False

    def stop(self) -> None:
        """Have :meth:`run` return after the round's work that is at hand; may be called from any thread."""
        self._stopping = True
        self.link.events.put(None)  # wakes it

    def run(self) -> None:
        """Take part until the job ends, or :meth:`stop` is called.

        Raises:
            BrokerError: the broker cannot be reached at the start, or refuses.
            StateError: the server refuses this device, or the disk does.
        """
        self._recorder.turn_to(self._state.replica.round + 1)
        with self._recorder.phase(OTHER):
            self.link.connect()
            try:
                while not (self._finished or self._stopping):
                    self._turned()
                    with self._recorder.phase(IDLE):
                        event = self.link.next(self._server.due - time.monotonic())
                    self.turn(event)
                    self._remind()
                    if self.link.events.empty() and not self._stopping:  # what waits may be this round's entry
                        self._answer_plan()
            finally:
                self._server.appear(False)
                self.link.close()

    @property
    def flops(self) -> int:
        """Operations of matrix products so far."""
        return self._answers.forward.flops

    def turn(self, event: object) -> None:
        """Take in what happened."""
        if isinstance(event, Connected):
            self._server.appear(True)
            self._sync(at_once=True)
        elif isinstance(event, Received):
            try:
                with self._recorder.phase(NETWORK):
                    self._receive(event.payload)
            except (MessageError, PlanError) as error:
                self._complaints.add(event.topic, f"a message on {event.topic} was dropped: {error}")

    def _remind(self) -> None:
        """Say again what was not answered, or after a long silence of its own that this device is there."""
        if time.monotonic() < self._server.due:
            return
        if self._server.unanswered is None:
            self._sync(at_once=True)
        elif not self._server.insist(self._server.unanswered):
            log.warning("the server has not acknowledged the report of device '%s'", self._state.device)

    @property
    def _identity(self) -> tuple[bytes, int]:
        """What tells this process from any other that has its name."""
        return self._state.signer.public, self._server.session

    @property
    def _finished(self) -> bool:
        return self._last_round is not None and self._server.unanswered is None

    def _receive(self, signed: bytes) -> None:
        message = decode(split(signed))
        if isinstance(message, Entry):
            self._follow([signed])
        elif isinstance(message, Plan | Finish):
            self._expect(message, signed)
        elif isinstance(message, Rebase):
            self._rebase(message, signed)
        elif isinstance(message, Hello):
            self._server.check(signed)
            self._sync(at_once=True)
        else:
            self._server.check(signed, to=self._state.device)
            self._obey(message)

    def _obey(self, message: Message) -> None:
        """Do what the server has said to this device."""
        if isinstance(message, Batch):
            self._sync(at_once=self._follow(message.entries))
        elif isinstance(message, Ack):
            said = self._server.unanswered
            if isinstance(said, Result) and said.round == message.round:
                self._observe(message, said)
            if not isinstance(said, Report):
                self._server.settle(message.round)
        elif isinstance(message, Offer):
            self._consider(message)
        elif isinstance(message, Dismissal) and message.session == self._server.session:
            self._server.unanswered = None
        elif isinstance(message, Refusal) and (message.key, message.session) == self._identity:
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
                    self._server.check(signed, head=head)
                    replica.check(entry, len(fresh))
                    fresh.append(entry)
                    head = chain(head, entry)
        finally:
            if fresh:  # what came before a wrong one is good
                with self._recorder.phase(APPLY):
                    self._state.apply_all(fresh)
                self._recorder.turn_to(replica.round + 1)
                self._book.write(self._watch.seen)
                self._server.settle(replica.round)
        if gap:
            self._sync()
        self._planner.applied(replica.round - before, time.perf_counter() - started)
        if replica.round > before and self._ahead is not None:
            ahead, self._ahead = self._ahead, None
            self._receive(ahead)
        return replica.round > before

    def _rebase(self, message: Rebase, signed: bytes) -> None:
        """Go to a later round by what the journal adds up to there."""
        replica = self._state.replica
        if message.round > replica.round:
            self._server.check(signed, to=self._state.device, head=replica.head)
            with self._recorder.phase(APPLY):
                self._state.rebase(message.round, message.head, message.sums)
            self._recorder.turn_to(replica.round + 1)
            self._server.settle(replica.round)
            self._sync(at_once=True)

    def _expect(self, message: Plan | Finish, signed: bytes) -> None:
        """Take a plan or the end of the job, when the replica has come to where it belongs."""
        replica = self._state.replica
        follows = message.round - 1 if isinstance(message, Plan) else message.round
        if follows > replica.round:
            self._ahead = signed
            self._sync()
        elif follows == replica.round and isinstance(message, Plan):
            self._server.check(signed, to=self._state.device, head=replica.head)
            self._plan = message
        elif follows == replica.round:
            self._server.check(signed, head=replica.head)
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
            self._server.insist(answer)

    def _finish(self, last_round: int) -> None:
        if self._last_round is None:
            self._last_round = last_round
            self._state.snapshot()
            energy = self._book.total()
            self._book.write(self._watch.seen)
            self._server.insist(
                Report(
                    round=last_round,
                    digest=self._state.replica.digest(),
                    rss_bytes=peak_rss_bytes(),
                    bytes_up=self.link.bytes_up,
                    bytes_down=self.link.bytes_down,
                    results=self._answers.given,
                    energy=energy,
                )
            )

    def _sync(self, at_once: bool = False) -> None:
        """Say where the replica stands, to be sent what it lacks; not in a burst, since each is answered in full."""
        if at_once or time.monotonic() >= self._synced_at + SYNC_S:
            self._synced_at = time.monotonic()
            replica, unwilling = self._state.replica, self._watch.look()
            self._server.say(
                Sync(
                    key=self._state.signer.public,
                    session=self._server.session,
                    bundle=replica.bundle.identity,
                    round=replica.round,
                    head=replica.head,
                    examples=len(self._examples()),
                    battery=self._watch.seen.battery,
                    charging=self._watch.seen.charging,
                    willing=not unwilling,
                )
            )
