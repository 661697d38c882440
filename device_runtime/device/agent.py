"""The device's agent: over MQTT it follows the journal with its replica, and answers plans.

All that it needs to continue after a kill is in its state folder. A result is sent again until the server acknowledges
it or the round is over; entries are applied exactly once and in order, and a gap is asked for. What the broker brings
is believed only with the signature of the server that the bundle names.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace

from fedspzo.device_runtime.data.store import DataStore
from fedspzo.device_runtime.device.catch_up import CatchUp
from fedspzo.device_runtime.device.events import Acknowledged, Declined, Event, Finished
from fedspzo.device_runtime.device.masking import Masker
from fedspzo.device_runtime.device.measuring import UNSAID, Measurer
from fedspzo.device_runtime.device.outbox import Outbox
from fedspzo.device_runtime.device.waiting import Silence
from fedspzo.device_runtime.energy.book import NoBook
from fedspzo.device_runtime.engines.protocol import Engine
from fedspzo.device_runtime.errors import BrokerError, MessageError, PlanError, StateError
from fedspzo.device_runtime.link.events import Connected, Received
from fedspzo.device_runtime.link.transport import Transport
from fedspzo.device_runtime.log import RateLimitedLog, printable
from fedspzo.device_runtime.model.modes import MODES
from fedspzo.device_runtime.platform.conditions import Watch
from fedspzo.device_runtime.platform.profiling import IDLE, NETWORK, OTHER
from fedspzo.device_runtime.privacy.ledger import Ledger
from fedspzo.device_runtime.protocol.codec import BATCH_BYTES, decode
from fedspzo.device_runtime.protocol.entry import Entry
from fedspzo.device_runtime.protocol.glance import glance
from fedspzo.device_runtime.protocol.masked import Group, Inquiry, Masked, Partners, Ready
from fedspzo.device_runtime.protocol.messages import (
    Ack,
    Authorities,
    Decline,
    Dismissal,
    EntryBatch,
    Finish,
    HandOver,
    Hello,
    Keep,
    Message,
    Offer,
    Rebase,
    Refusal,
    Report,
    Result,
    Wanted,
)
from fedspzo.device_runtime.protocol.plan import Plan
from fedspzo.device_runtime.protocol.server_keys import ServerKeys
from fedspzo.device_runtime.protocol.signing import read_pin, split
from fedspzo.device_runtime.replica.state import DeviceState

log = logging.getLogger(__name__)

#: Seconds between syncs that are not asked for.
SYNC_S = 5.0


class Agent:
    """One device of one job: connects once, and then runs once.

    Attributes:
        link: the connection: whether it stands, and how many bytes it took.
        forward: runs the graphs, and counts their operations.
        rounds: that the job has at most; 0 before the server has said so, as one of an older version never does.
    """

    def __init__(
        self,
        access: Transport,
        job: str,
        engine: Engine,
        state: DeviceState,
        examples: Callable[[], DataStore],
        observe: Callable[[Event], None] = lambda event: None,
        turned: Callable[[], None] = lambda: None,
        watch: Watch | None = None,
        book: NoBook | None = None,
        least: str = MODES[0],
        ledger: Ledger | None = None,
    ) -> None:
        """Prepare to take part.

        Args:
            examples: gives those to measure on, asked again for each round.
            observe: told of what happens, in the agent's thread.
            turned: told of each turn of :meth:`run`, once it is connected: where nothing happens, every minute or so.
            watch: tells how the device fares, and when it takes part in rounds; it follows the journal in any case.
            book: keeps account of its joules.
            least: the weakest mode that it takes part in, one of ``protocol.plan.MODES``.
            ledger: keeps account of what noise has promised, and says when it is enough.

        Raises:
            BundleError, EngineError: the graphs cannot run, or the bundle names no server.
        """
        bundle = state.replica.bundle
        self._job, self._state, self._examples = job, state, examples
        self._observe, self._turned = observe, turned
        self._watch = watch or Watch()
        self._book = book or NoBook()
        self._recorder = self._book.recorder
        unwilling = self._watch.look
        self._measurer = Measurer(engine, state, examples, unwilling, self._recorder, self._book.spent, ledger)
        self.forward = self._measurer.forward
        self._keys = ServerKeys(read_pin(bundle.folder), bundle.identity, job)
        with suppress(MessageError):  # those of another server, or job; this one sends its own
            for signed in state.hand_overs():
                self._keys.follow(signed)
        self._outbox = Outbox(access, job, state, self._recorder, self._keys)
        self.link = self._outbox.link
        self._silence = Silence(job, access.place, bundle.folder, observe)
        self._masker = Masker(job, state, least)
        self._catch_up = CatchUp(state, self._check, self._recorder, self._outbox.trust, self._give_back)
        self._dropped = RateLimitedLog(log)
        self.rounds = 0
        self._acknowledged: Ack | None = None  # the last one
        self._plan: Plan | None = None
        #: A plan, or the end of the job, that follows a round which the replica has yet to come to.
        self._ahead: bytes | None = None
        self._synced_at = -SYNC_S
        self._said_examples = False
        self._last_round: int | None = None
        self._stopping = False
        #: What tells this process from any other that has its name.
        self._identity = state.signer.public, self._outbox.session

    def stop(self) -> None:
        """Have :meth:`run` return after the round's work that is at hand; may be called from any thread."""
        self._stopping = True
        self._book.stop()
        self.link.events.put(None)  # wakes it

    def connect(self) -> None:
        """Connect to the broker, or until :meth:`stop`. Raises BrokerError when it cannot be reached, or refuses."""
        self.link.connect(stopped=lambda: self._stopping)

    def run(self) -> int | None:
        """Take part until the job ends, or :meth:`stop` is called.

        Returns:
            The job's last round; None where it is not over.

        Raises:
            StateError: the server refuses this device, or the disk does.
        """
        self._recorder.turn_to(self._state.replica.round + 1)
        with self._recorder.phase(OTHER):
            try:
                while not (self._finished or self._stopping):
                    self._turned()
                    with self._recorder.phase(IDLE):
                        event = self.link.next(min(self._outbox.due, self._silence.due) - time.monotonic())
                    self.turn(event)
                    self._remind()
                    if self.link.events.empty() and not self._stopping:  # what waits may be this round's entry
                        self._answer_plan()
            finally:
                self._outbox.announce(False)
                self.link.close()
        if self._last_round is not None:
            log.info("job '%s' ended at round %d", self._job, self._last_round)
            self._observe(Finished(self._last_round))
        return self._last_round

    def turn(self, event: object) -> None:
        """Take in what happened."""
        if isinstance(event, Connected):
            self._silence.begin()
            self._forget_server()
            self._outbox.announce(True)
            self._sync(at_once=True)
        elif isinstance(event, Received):
            try:
                with self._recorder.phase(NETWORK):
                    self._receive(event.payload)
            except (MessageError, PlanError) as error:
                said = f"a message on {printable(event.topic)} was dropped: {printable(str(error))}"
                self._dropped.warn(event.topic, said, error.kind)

    def _remind(self) -> None:
        """Send again what was not acknowledged, or after a long silence of its own say that this device is there."""
        now = time.monotonic()
        if now >= self._silence.due:
            self._silence.tell(self.link.connected)
        if now < self._outbox.due:
            return
        if self._outbox.pending is None:
            self._sync(at_once=True)
        elif not self._outbox.send_until_acknowledged(self._outbox.pending):
            log.warning("the server has not acknowledged the report of device '%s'", self._state.device)

    @property
    def _finished(self) -> bool:
        return self._last_round is not None and self._outbox.pending is None

    def _check(self, signed: bytes, to: str = "", head: bytes = b"") -> None:
        """Raise MessageError unless the server has signed this, for the device that it is for, after this journal."""
        try:
            self._keys.check(signed, to, head)
        except MessageError:
            self._silence.reject()
            raise
        self._silence.end()

    def _receive(self, signed: bytes) -> None:
        """Take a message in; it is decoded when its signature has been checked, and looked at no further before."""
        kind, round = glance(split(signed))
        if kind is Entry:
            self._follow([signed])
        elif kind in (Plan, Finish):
            self._expect(kind is Plan, round, signed)
        elif kind is Rebase:
            self._rebase(round, signed)
        elif kind is Hello:
            self._check(signed)
            self._forget_server()
            self._sync(at_once=True)
        elif kind is HandOver:
            self._change_key(signed)
        elif kind is Group:
            self._check(signed)
            self._join(decode(split(signed)))
        else:
            self._check(signed, to=self._state.device)
            self._obey(decode(split(signed)))

    def _change_key(self, signed: bytes) -> None:
        """Follow the server to another key; where hand-overs before this one are missing, have them sent."""
        if signed in self._keys.hand_overs:
            return
        try:
            message = self._keys.read(signed)
        except MessageError:
            self._sync()
            raise
        self._state.keep_hand_overs([*self._keys.hand_overs, signed])
        self._keys.follow(signed)
        log.info("the server of job '%s' has another key from round %d on", self._job, message.round)
        self._sync(at_once=True)

    def _forget_server(self) -> None:
        """It may have been restored meanwhile, or be of another version."""
        self._masker.forget_server()
        self._outbox.trust.forget_server()

    def _change_authorities(self, message: Authorities) -> None:
        """Trust the authorities that the server names, where the broker shows a certificate by one of them."""
        try:
            self._outbox.trust.take(message.certificates, self.link)
        except BrokerError as error:
            self._dropped.warn("authorities", str(error), error.kind)
            return
        self._sync(at_once=True)

    def _obey(self, message: Message) -> None:
        """Do what the server has said to this device."""
        if isinstance(message, EntryBatch):
            if self._follow(message.entries):
                self._sync(at_once=True)
        elif isinstance(message, Ack):
            said = self._outbox.pending
            measured = self._masker.held if isinstance(said, Masked) else said
            again = message == self._acknowledged  # of a result that the server has asked for again
            if isinstance(measured, Result) and measured.round == message.round and not again:
                self._acknowledged = message
                event = Acknowledged(measured, message.counted, self.rounds)
                log.info("%s", event)
                self._observe(event)
            if not isinstance(said, Report):
                self._outbox.acknowledge(message.round)
        elif isinstance(message, Offer):
            if self._catch_up.consider(message):
                self._sync(at_once=True)
        elif isinstance(message, Partners):
            self._send_masked(self._masker.learn(message))
        elif isinstance(message, Keep):
            self.rounds = message.rounds
            self._state.keep(message.after)
        elif isinstance(message, Authorities):
            self._change_authorities(message)
        elif isinstance(message, Wanted):
            self._give_back(message.after)
        elif isinstance(message, Dismissal) and message.session == self._outbox.session:
            self._outbox.pending = None
        elif isinstance(message, Refusal) and (message.key, message.session) == self._identity:
            reason = printable(message.reason)
            raise StateError("device.refused", f"the server refuses device '{self._state.device}': {reason}")

    def _follow(self, entries: Iterable[bytes]) -> bool:
        """Apply journal entries that come next; tell whether there was one."""
        before = self._state.replica.round
        try:
            gap = self._catch_up.follow(entries)
        finally:
            self._moved(before)
        if gap:
            self._sync()
        if self._state.replica.round > before and self._ahead is not None:
            ahead, self._ahead = self._ahead, None
            self._receive(ahead)
        return self._state.replica.round > before

    def _give_back(self, after: int) -> None:
        """Send the server entries of its own that it asks for, where they are kept here."""
        room = min(BATCH_BYTES, self._outbox.room)
        entries = self._state.kept(after, room) if after < self._state.replica.round else ()
        log.warning(
            "the server lacks or doubts what it signed after round %d (an old backup, a damaged journal, or a second"
            " server); %d entries are sent to it",
            *(after, len(entries)),
        )
        self._outbox.send(EntryBatch(entries))

    def _rebase(self, round: int, signed: bytes) -> None:
        before = self._state.replica.round
        self._catch_up.rebase(round, signed)
        if self._moved(before):
            self._sync(at_once=True)

    def _moved(self, before: int) -> bool:
        """Close the books of the rounds that the replica has gone through, if it has."""
        replica = self._state.replica
        if replica.round == before:
            return False
        self._recorder.turn_to(replica.round + 1)
        self._book.write(self._watch.seen)
        self._outbox.acknowledge(replica.round)
        return True

    def _expect(self, asks: bool, round: int, signed: bytes) -> None:
        """Take a round's plan, or else the end of the job, when the replica has come to where it belongs."""
        replica = self._state.replica
        follows = round - 1 if asks else round
        if follows > replica.round:
            self._ahead = signed
            self._sync()
        elif follows == replica.round:
            self._check(signed, to=self._state.device if asks else "", head=replica.head)
            message = decode(split(signed))
            if isinstance(message, Plan):
                self._plan = message
            else:
                self._finish(round)

    def _answer_plan(self) -> None:
        """Measure for the plan at hand, or send the result again when its round was measured already."""
        plan, self._plan = self._plan, None
        if plan is not None and plan.round == self._state.replica.round + 1:
            answer = self._answer(plan)
            if isinstance(answer, Ready):
                self._outbox.send_once(answer)
            else:
                self._outbox.send_until_acknowledged(answer)
            if isinstance(answer, Result) and not self._said_examples:
                self._sync(at_once=True)  # only now is it known that the server may know their number

    def _answer(self, plan: Plan) -> Result | Ready | Masked | Decline:
        if reason := self._masker.refusal(plan):
            log.warning("this device does not take part in round %d: %s", plan.round, reason)
            if (last := self._masker.last(plan)) is not None:
                return last
            self._observe(Declined(plan.round, reason))
            return Decline(plan.round, reason, passing=False)
        if (known := self._masker.known(plan)) is not None:
            return known
        answer = self._measurer.answer(plan)
        if isinstance(answer, Decline) and not answer.passing:
            self._observe(Declined(plan.round, self._measurer.why))
        if isinstance(answer, Result):
            self._book.note(plan.round, answer.loss)
            return self._masker.hold(plan, answer) if plan.masking else answer
        if not plan.masking:
            return answer
        return replace(answer, reason=UNSAID)  # words may tell of the examples

    def _join(self, group: Message) -> None:
        """Send the result in the sum of a group; where nothing was measured for it, ask for the plan."""
        if not isinstance(group, Group) or group.round != self._state.replica.round + 1:
            return
        answer = self._masker.join(group)
        if answer is None:
            self._sync()
        self._send_masked(answer)

    def _send_masked(self, answer: Masked | Inquiry | None) -> None:
        if isinstance(answer, Masked):
            self._outbox.send_until_acknowledged(answer)
        elif answer is not None:
            self._outbox.send(answer)

    def _finish(self, last_round: int) -> None:
        if self._last_round is None:
            self._last_round = last_round
            self._state.snapshot()
            energy = self._book.total()
            self._book.write(self._watch.seen)
            # Joules tell of the lengths of texts, which masks and noise hide.
            self._outbox.report(self._measurer.answered, energy if self._measurer.open else ())

    def _sync(self, at_once: bool = False) -> None:
        """Say where the replica stands, to be sent what it lacks; not in a burst, since each is answered in full."""
        if at_once or time.monotonic() >= self._synced_at + SYNC_S:
            self._synced_at = time.monotonic()
            unwilling = self._watch.look()
            self._said_examples = not self._masker.secret
            examples = len(self._examples()) if self._said_examples else 0
            self._outbox.sync(examples, self._watch.seen, willing=not unwilling)
