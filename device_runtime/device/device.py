"""A device as an object: started and stopped in your own process, as many side by side as there are state folders."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Iterator
from concurrent import futures
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType

from fedspzo.device_runtime.data.live import LiveData
from fedspzo.device_runtime.data.sources import HUB
from fedspzo.device_runtime.data.store import DataStore
from fedspzo.device_runtime.device.agent import Agent
from fedspzo.device_runtime.device.events import Event, Started
from fedspzo.device_runtime.energy.book import Book
from fedspzo.device_runtime.energy.sampler import Sampler
from fedspzo.device_runtime.energy.source import Source
from fedspzo.device_runtime.engines.watched import WatchedEngine
from fedspzo.device_runtime.errors import StateError
from fedspzo.device_runtime.link.transport import Transport
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.model.modes import MODES
from fedspzo.device_runtime.platform.background import in_background
from fedspzo.device_runtime.platform.conditions import UNLIMITED, Limits, Watch
from fedspzo.device_runtime.privacy.certificates import keep_certificate
from fedspzo.device_runtime.privacy.ledger import SUFFIX, Ledger
from fedspzo.device_runtime.replica.state import DeviceState
from fedspzo.device_runtime.step.budget import AUTO, open_engine

log = logging.getLogger(__name__)


class Device:
    """Takes part in one job with the examples of one file until the job ends, or it is stopped.

    A context manager: it starts, and is stopped at the end. It sets no signal handlers and prints nothing. What it
    needs to continue is in its state folder, so that it may be started again, also after a kill.
    """

    def __init__(
        self,
        bundle: Bundle,
        access: Transport,
        state: Path,
        data: str | DataStore,
        *,
        job: str = "default",
        name: str | None = None,
        engine: str = "litert",
        threads: int = 1,
        memory: str = AUTO,
        ahead: bool = False,
        afresh: bool = False,
        limits: Limits = UNLIMITED,
        energy: Source | None = None,
        idle_s: float = 0.0,
        least: str = MODES[0],
        certificates: Collection[bytes] = (),
        budget: float = math.inf,
        ledger: Path | None = None,
        observe: Callable[[Event], None] = lambda event: None,
        alive: Callable[[], None] = lambda: None,
    ) -> None:
        """Describe a device, without starting it.

        Args:
            access: the broker, and the login there.
            state: its folder, made at the first start.
            data: labelled examples, see :func:`fedspzo.device_runtime.data.sources.parse_examples`; a file is read
                again when it has changed.
            job: the job's name in topics.
            name: the device's id; by default its login's, or one drawn at random at the first start.
            engine: runs the graphs; one of ``engines.protocol.ENGINES``.
            threads: of the engine, and for weights.
            memory: most memory that the process should take, see ``step.budget.parse_memory``: a frozen base that
                does not fit is read from files as it is needed.
            ahead: perturb the next stage's weights while the engine runs, on another thread.
            afresh: forget all but the id and the key, and begin at the bundle's weights.
            limits: within which it takes part in rounds; outside it only follows the journal.
            energy: reads the joules of its work.
            idle_s: seconds to stay idle at first and at the end, so that ``energy`` knows what idling takes.
            least: the weakest mode in which it takes part, one of ``protocol.plan.MODES``; a bundle may pin a stricter.
            certificates: of some devices by the bundle's enrolment key; its own is kept in the state folder.
            budget: ε, at δ = 1e-5, of what all jobs together may cost of the data; infinite for no limit. With a
                limit it answers no plans without noise.
            ledger: file that keeps account of it; by default beside a data file, else in the state folder.
            observe: told of what happens, on the device's thread; what it raises ends the device.
            alive: told of each graph that has run and of each turn of the agent: of a device that hangs it hears
                nothing.
        """
        self.bundle, self.state = bundle, state
        self._access, self._data, self._job, self._name = access, data, job, name or access.user or None
        self._engine, self._threads, self._ahead, self._afresh = engine, threads, ahead, afresh
        self._memory = memory
        self._limits, self._energy, self._idle_s = limits, energy, idle_s
        own = f"{data}{SUFFIX}" if isinstance(data, str) and not data.startswith(HUB) else state / f"data{SUFFIX}"
        self._ledger = Ledger(ledger or Path(own), budget)
        self._least = max(least, bundle.manifest.least, key=MODES.index)
        self._certificates = certificates
        self._observe, self._alive = observe, alive
        self._agent: Agent | None = None
        self._running: futures.Future[int | None] | None = None

    def start(self) -> None:
        """Connect, and take part on a thread of its own.

        Raises:
            BrokerError: the broker cannot be reached, or refuses.
            BundleError, EngineError: the graphs cannot run, or the bundle names no server.
            DataError: the examples cannot be read.
            StateError: the state folder cannot be used, or the device runs already.
        """
        if self._running is not None and not self._running.done():
            raise StateError("device.running", "the device runs already; stop it first")
        with ExitStack() as stack:
            agent = stack.enter_context(self._connected())
            closing = stack.pop_all()

        def run() -> int | None:
            with closing:
                return agent.run()

        self._running = in_background(run, f"device {self.state.name}")

    def stop(self) -> None:
        """Have the device end after the round's work that is at hand; any thread may call this."""
        if self._agent is not None:
            self._agent.stop()

    def wait(self, timeout: float | None = None) -> int | None:
        """Wait until the device has ended, for ``timeout`` seconds at most.

        Returns:
            The job's last round; None where the job is not over.

        Raises:
            StateError: the server refuses this device, or the disk does.
        """
        if self._running is None or not futures.wait([self._running], timeout).done:
            return None
        running, self._running = self._running, None
        return running.result()

    def run(self) -> int | None:
        """Take part on the calling thread, and return as :meth:`wait` does. Raises as it and :meth:`start` do."""
        with self._connected() as agent:
            return agent.run()

    def flops(self) -> int:
        """Operations of matrix products since it was started."""
        return self._agent.forward.flops if self._agent is not None else 0

    def __enter__(self) -> Device:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        try:
            self.wait()
        except Exception:
            if error is None:
                raise

    @contextmanager
    def _connected(self) -> Iterator[Agent]:
        """An agent that is connected, with all that it needs."""
        with ExitStack() as stack:
            opened = open_engine(self.bundle.manifest, self._engine, self._threads, self._memory)
            engine = WatchedEngine(opened, self._alive)
            state = DeviceState(self.state, self.bundle, self._name, self._afresh, self._threads, self._ahead)
            stack.callback(state.close)
            if self._certificates:
                enrolment = bytes.fromhex(self.bundle.manifest.enrolment_key)
                keep_certificate(self.state, state.signer.public, enrolment, self._certificates)
            examples = self._examples()
            store = examples()
            log.info("device '%s': %d examples, round %d", state.device, len(store), state.replica.round)
            if store.truncated:
                longest = self.bundle.manifest.length
                log.info("of the examples %d had more than %d tokens, which were cut", store.truncated, longest)
            self._observe(Started(state.device, state.replica.round, len(store)))
            book = Book(self._energy, self.state, self._idle_s, self._alive) if self._energy else None
            watch = Watch(self._limits)
            self._agent = agent = Agent(
                self._access,
                self._job,
                engine,
                state,
                examples,
                self._observe,
                self._turned,
                watch,
                book,
                self._least,
                self._ledger,
            )
            if book is not None:
                stack.enter_context(Sampler(book.sample))
                book.rest()
            agent.connect()
            yield agent

    def _turned(self) -> None:
        self._alive()
        if self.bundle.replaced():
            log.warning(
                "%s has another bundle by now; this device keeps to the one that it has opened: to change, stop it,"
                " and start it once with --afresh, which keeps its id and key",
                self.bundle.folder,
            )

    def _examples(self) -> Callable[[], DataStore]:
        data = self._data
        if isinstance(data, DataStore):
            return lambda: data
        return LiveData(data, self.bundle, cache=self.state / "tokens.npz").current
