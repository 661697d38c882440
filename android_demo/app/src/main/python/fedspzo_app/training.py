"""The runtime's agent in a thread of its own, from start to stop, with what the screen shows of it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import nullcontext

from fedspzo.device_runtime.device.agent import Agent
from fedspzo.device_runtime.device.events import Acknowledged, Declined, Event, Waiting
from fedspzo.device_runtime.energy.book import Book
from fedspzo.device_runtime.energy.sampler import Sampler
from fedspzo.device_runtime.energy.source import Source
from fedspzo.device_runtime.engines.protocol import Engine
from fedspzo.device_runtime.errors import BrokerError, FedSPZOError
from fedspzo.device_runtime.link.invitation import Invitation
from fedspzo.device_runtime.platform.conditions import Conditions, Limits, Watch
from fedspzo.device_runtime.replica.state import DeviceState
from fedspzo_app.held_back import SplitExamples
from fedspzo_app.history import History, Round
from fedspzo_app.improvement import Improvement

log = logging.getLogger(__name__)

#: Seconds before the broker is tried again that could not be reached at the start, first and at most.
_WAIT_S, _LONGEST_WAIT_S = 2.0, 60.0
#: Kinds of messages that no error has: a plan that cannot be carried out, a server that is not heard, a bug.
DECLINED, WAITING, PROGRAM = "round.declined", "server.silent", "program"
#: Seconds of idleness before and after all work, where joules are measured.
_IDLE_S = 10.0


class Training:
    """Takes part in a job until it ends, the server refuses, or :meth:`stop` is called.

    Attributes:
        message: what last went wrong, or "".
        kind: of it, as errors have one.
        finished: whether the job has ended.
        running: whether the agent is at work, or waits for the broker.
    """

    def __init__(
        self,
        invitation: Invitation,
        engine: Engine,
        state: DeviceState,
        examples: SplitExamples,
        history: History,
        improvement: Improvement,
        limits: Limits,
        conditions: Callable[[], Conditions],
        energy: Source | None,
        changed: Callable[[], None],
    ) -> None:
        """Prepare; nothing runs yet.

        Args:
            limits: within which the phone takes part.
            conditions: tells how the phone fares.
            energy: reads the phone's joules; None where nothing does.
            changed: called when there is something new to show, from any thread.
        """
        self.message = self.kind = ""
        self.finished = self.running = False
        self._invitation, self._engine, self._state, self._examples = invitation, engine, state, examples
        self._watch = Watch(limits, conditions)
        self._history, self._improvement, self._changed = history, improvement, changed
        self._book = Book(energy, state.folder, _IDLE_S) if energy else None
        self._stopping = threading.Event()
        self._agent: Agent | None = None
        self._seen = (0, 0)  # bytes up and down at the last round
        self._rested = False  # whether the idle power was looked at
        self._worked = False  # what was told last of :attr:`working`
        self._thread = threading.Thread(target=self._run, name="training", daemon=True)

    def start(self) -> None:
        """Begin, once."""
        self.running = True
        self._thread.start()

    def stop(self) -> None:
        """End after the round's work that is at hand, and wait for that."""
        self._stopping.set()
        if (agent := self._agent) is not None:
            agent.stop()
        if self._thread.is_alive():
            self._thread.join()

    def set_limits(self, limits: Limits) -> None:
        """Take part within other limits from now on."""
        self._watch.limits = limits

    @property
    def connected(self) -> bool:
        """Whether the connection to the broker stands."""
        agent = self._agent
        return agent is not None and agent.link.connected

    @property
    def working(self) -> bool:
        """Whether the processor is needed: the phone takes part, and waits for neither broker nor conditions."""
        return self.running and self.connected and not self._watch.limits.refusal(self._watch.seen)

    @property
    def rounds(self) -> int:
        """How many the job has at most; 0 where the server has not said so."""
        agent = self._agent
        return agent.rounds if agent is not None else 0

    def _run(self) -> None:
        wait = _WAIT_S
        try:
            while not (self.finished or self._stopping.is_set()):
                try:
                    self._take_part()
                except BrokerError as error:
                    self._say(str(error), error.kind)
                    self._stopping.wait(wait)
                    wait = min(2 * wait, _LONGEST_WAIT_S)
        except FedSPZOError as error:
            self._say(str(error), error.kind)
        except Exception as error:  # the screen must tell; a thread that ends without a word tells nobody
            log.exception("the training ended with an error of the program")
            self._say(f"an error of the program: {error!r}", PROGRAM)
        finally:
            self._agent, self.running = None, False  # before anybody is told: nobody is told again
            self._changed()

    def _take_part(self) -> None:
        self._seen = (0, 0)
        access, job = self._invitation.access, self._invitation.job
        agent = Agent(
            access,
            job,
            self._engine,
            self._state,
            self._examples.training,
            self._observe,
            self._turn,
            watch=self._watch,
            book=self._book,
        )
        self._agent = agent
        if self._stopping.is_set():  # before there was an agent to stop
            return
        self._changed()
        with Sampler(self._book.sample) if self._book else nullcontext():
            if self._book and not self._rested:
                self._rested = True
                self._book.rest()
            agent.connect()
            if agent.run() is not None:
                self._measure(last=True)
                self.finished = True
                self._changed()  # while it runs: what has stopped, and has not finished, would be begun again
        self.message = self.kind = ""

    def _turn(self) -> None:
        if self.working != self._worked:
            self._worked = not self._worked
            self._changed()
        self._measure()

    def _observe(self, event: Event) -> None:
        if isinstance(event, Acknowledged):
            self._keep(event)
        self.message = event.reason if isinstance(event, Declined | Waiting) else ""
        self.kind = "" if not self.message else DECLINED if isinstance(event, Declined) else WAITING
        self._changed()

    def _measure(self, last: bool = False) -> None:
        """See whether the model has got better, where the phone may work now; in the agent's thread."""
        round = self._state.replica.round
        if self._agent is None or self._stopping.is_set() or not self._improvement.due(round, last):
            return
        if not self._watch.look():
            self._improvement.measure(self._agent.forward, round, self._examples.held_back())
            self._changed()

    def _keep(self, event: Acknowledged) -> None:
        assert self._agent is not None
        result = event.result
        link, (up, down) = self._agent.link, self._seen
        self._seen = (link.bytes_up, link.bytes_down)
        energy = result.energy or (self._book.spent(result.round) if self._book else ())
        joules = energy[0].joules if energy else None
        self._history.add(
            Round(result.round, result.loss, event.counted, link.bytes_up - up, link.bytes_down - down, joules)
        )

    def _say(self, message: str, kind: str) -> None:
        log.warning("%s", message)
        self.message, self.kind = message, kind
        self._changed()
