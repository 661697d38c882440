"""A job's server as an object: start and stop it in your process; several run side by side, each in its folder."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from fedspzo.broker.rounds.adaptive import MakePlans, Pace
from fedspzo.broker.rounds.aggregate import Aggregate
from fedspzo.broker.rounds.job import Job, check_job
from fedspzo.broker.rounds.sampling import Sample, choose_cohort
from fedspzo.broker.server.admission import Admission
from fedspzo.broker.server.budgets import CutOff
from fedspzo.broker.server.enrolment.requests import BrokerLogins, Enrolment
from fedspzo.broker.server.evaluation import Evaluator, Schedule
from fedspzo.broker.server.held_out import HeldOut, check_patience
from fedspzo.broker.server.loop import Loop
from fedspzo.broker.server.progress import JobResult, Observer, Waiting, ignore
from fedspzo.broker.server.shared.file import Place
from fedspzo.broker.server.shared.holding import Held
from fedspzo.broker.server.state_folder import DATABASE, link_bundle, pin_bundle, told_address
from fedspzo.broker.server.status import ServerStatus
from fedspzo.broker.server.store import ServerStore
from fedspzo.broker.server.upkeep import Upkeep, certificate_end, look
from fedspzo.device_runtime.data.store import DataStore
from fedspzo.device_runtime.engines.protocol import create_engine
from fedspzo.device_runtime.errors import StateError
from fedspzo.device_runtime.link.transport import Transport
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.replica.weights import Replica
from fedspzo.device_runtime.step.scores import check_labels


@dataclass(frozen=True)
class Endpoint:
    """Where bundle, snapshots and metrics are served over HTTP.

    Attributes:
        host, port: where to listen; port 0 is a free one.
        url: how devices reach it; by default as it is bound.
        tls: for HTTPS, PEM files of the certificate (with its chain) and of its private key.
    """

    host: str = "127.0.0.1"
    port: int = 0
    url: str = ""
    tls: tuple[Path, Path] | None = None


log = logging.getLogger(__name__)


class Server:
    """Runs one job: opens rounds, closes them into the journal, and serves the finished job until it is stopped.

    A context manager: it starts, and is stopped at the end. It sets no signal handlers and prints nothing. What it has
    done is in its state folder, so that it may be started again, also after a kill.
    """

    def __init__(
        self,
        bundle: Bundle,
        job: Job,
        access: Transport,
        state: str | Path,
        *,
        name: str = "default",
        held_out: DataStore | None = None,
        engine: str = "litert",
        devices: int = 1,
        evaluate_every: int = 20,
        patience: int | None = None,
        serve_after: float | None = None,
        admission: Admission | None = None,
        endpoint: Endpoint | None = None,
        observe: Observer = ignore,
        aggregate: Aggregate | None = None,
        sample: Sample = choose_cohort,
        plans: MakePlans = Pace,
        trust_journal: bool = False,
        cut_off: CutOff | None = None,
        logins: BrokerLogins | None = None,
        broker: Path | None = None,
        authority: Callable[[], str] | None = None,
        database: str = "",
        standby: bool = False,
    ) -> None:
        """Describe a server, without starting it.

        Args:
            access: the broker, and the login there.
            state: its folder, made at the first start.
            name: the job's name in topics.
            held_out: examples to evaluate on.
            engine: evaluates; one of ``engines.protocol.ENGINES``.
            devices: how many to wait for before the first round.
            evaluate_every: rounds between evaluations.
            patience: the job stops after this number of evaluations in a row without a better one than before them; an
                open round is closed first. None for never.
            serve_after: seconds to continue when the job is over and the devices that are there have reported; None
                for until it is stopped.
            admission: the devices that may take part; by default whoever the broker lets in.
            observe: told of progress, on the server's thread; what it raises ends the server.
            aggregate: makes a round's journal entry; by default :func:`fedspzo.broker.rounds.aggregate.close_round`.
            sample: chooses which devices a round asks.
            plans: makes the rounds' plans; by default the job's own.
            trust_journal: open rounds at once, though the state folder was restored or copied.
            cut_off: takes the logins of devices that flood, or that the console blocks, away at the broker, and gives
                those that there were; called on threads of its own.
            logins: makes logins for devices that come by an invitation for many; without it, or without an endpoint
                that others cannot listen to, the server takes none.
            broker: for ``logins``, the state folder of the broker to which the console may invite devices.
            authority: gives the authority in ``access`` (PEM text) as it is by now, where it may change: devices are
                told to trust the same. Raises BrokerError where it is not known.
            database: URL of the PostgreSQL database where the state is shared with servers on other machines; the
                folder then has a copy, and remembers the URL.
            standby: wait while another server has the job, and take it over when that has ended.

        Raises:
            PlanError: the job does not fit the bundle, or ``patience`` has no examples to judge by.
            DataError: these have reactions in place of labels.
        """
        check_patience(patience, held_out is not None, job.guard)
        if held_out is not None:
            check_labels(held_out)
        self.bundle, self.job, self.state = bundle, check_job(job, bundle), Path(state)
        self._access, self._name = access, name
        self._held_out, self._engine = held_out, engine
        self._devices, self._evaluate_every, self._serve_after = devices, evaluate_every, serve_after
        self._patience = patience
        self._admission, self._endpoint, self._observe = admission, endpoint, observe
        self._aggregate, self._sample, self._plans = aggregate, sample, plans
        self._trust_journal, self._cut_off, self._logins = trust_journal, cut_off, logins
        self._broker, self._authority = broker, authority
        self._place = Place(database, name) if database else None
        self._standby, self._waited, self._stopping = standby, False, threading.Event()
        self._url = ""
        self._loop: Loop | None = None
        self._thread: threading.Thread | None = None
        self._ended = threading.Event()
        self._result: JobResult | None = None
        self._error: BaseException | None = None

    @property
    def url(self) -> str:
        """By which devices reach the HTTP endpoint of a running server; "" for a server without one."""
        return self._url

    def start(self) -> None:
        """Connect, and run the job on a thread of its own; a standby first waits until it has the job.

        Raises:
            BrokerError: the broker cannot be reached, or refuses; or the endpoint's port is taken.
            BundleError: the bundle belongs to another server.
            EngineError: the engine is not installed, or refuses a graph.
            PlanError: the job's settings do not fit the journal.
            StateError: the state folder cannot be used, or the server runs already; or it was stopped while it waited.
        """
        if self._thread is not None:
            raise StateError("server.running", "the server runs already; stop it first")
        self._stopping.clear()
        with ExitStack() as stack:
            self._loop, self._url = stack.enter_context(self._opened())
            self._loop.connect()
            closing = stack.pop_all()
        self._ended.clear()
        self._result = self._error = None
        self._thread = threading.Thread(target=self._run, args=(self._loop, closing), name="server", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Have the server end after what it is at; any thread may call this, its own too."""
        self._stopping.set()
        if self._loop is not None:
            self._loop.stop()

    def wait(self, timeout: float | None = None) -> JobResult | None:
        """Wait until the server has ended, for ``timeout`` seconds at most.

        Returns:
            What the job left behind; None where it is not over.

        Raises:
            FedSPZOError, OSError: what ended the server, as its cause.
        """
        if self._thread is None or not self._ended.wait(timeout):  # an event's wait is broken off by signals
            return None
        self._thread.join()
        self._thread = None
        if self._error is not None:
            raise self._error
        return self._result

    def run(self) -> JobResult | None:
        """Start, and wait until the server has ended. Raises as :meth:`start` and :meth:`wait` do."""
        with self:
            return self.wait()

    def status(self) -> ServerStatus:
        """Where it is; any thread may ask. Raises StateError before the first start."""
        if self._loop is None:
            raise StateError("server.not-started", "the server has not been started; call start() first")
        return self._loop.status()

    def __enter__(self) -> Server:
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
    def _opened(self) -> Iterator[tuple[Loop, str]]:
        """The loop with all that it needs, and the endpoint's URL for devices."""
        with ExitStack() as stack:
            wait = self._wait if self._standby else None
            held = stack.enter_context(closing(Held(self.state, self.state / DATABASE, wait, self._place)))
            pin_bundle(self.bundle.folder, self.state)  # before the weights are read: devices beside it may be waiting
            store = stack.enter_context(ServerStore(self.state, self.bundle.identity, self._name, held))
            if self._waited:
                log.info("has the job now, after round %d", store.journal.last_round)
            link_bundle(self.state, self.bundle.folder)
            last = max(self.job.rounds, store.journal.last_round)  # a journal may be longer than the job is now
            schedule = Schedule(last, self._evaluate_every, self.job.digest_every)
            held_out = HeldOut(store, self._held_out, self._patience, self.job.guard)
            engine, replica = create_engine(self._engine), Replica(self.bundle, store.snapshot)
            loop = Loop(
                access=self._access,
                name=self._name,
                job=self.job,
                store=store,
                evaluator=lambda report: Evaluator(
                    engine, replica, self._held_out, store, schedule, report, held_out.best, self.job.frozen
                ),
                devices=self._devices,
                observe=self._observe,
                admission=self._admission,
                serve_after=self._serve_after,
                aggregate=self._aggregate,
                sample=self._sample,
                plans=self._plans,
                held_out=held_out,
                trust_journal=self._trust_journal,
                cut_off=self._cut_off,
                enrolment=bytes.fromhex(self.bundle.manifest.enrolment_key),
                check=lambda job: check_job(job, self.bundle),
                authority=self._authority,
            )
            stack.callback(loop.close)
            url = stack.enter_context(self._serve(store, loop)) if self._endpoint else ""
            if url:
                loop.offer_snapshots(f"{url}/snapshot")
            yield loop, url

    def _wait(self, who: str) -> None:
        """Another server has the job."""
        if self._stopping.is_set():
            raise StateError("server.stopped", f"stopped while {who} had the job; start it again to stand by")
        self._waited = True
        self._observe(Waiting(who))

    @contextmanager
    def _serve(self, store: ServerStore, loop: Loop) -> Iterator[str]:
        from fedspzo.broker.server.http import may_serve_console, serve  # first: it says what to install

        assert self._endpoint is not None
        from fedspzo.broker.server.console.app import make_console, make_refusal
        from fedspzo.broker.server.console.enrolling import Enrolling
        from fedspzo.broker.server.console.gate import Gate
        from fedspzo.broker.server.console.job_view import JobView
        from fedspzo.broker.server.console.logins import Logins
        from fedspzo.broker.server.console.recent_log import recent_log
        from fedspzo.broker.server.console.running import Backups, DeviceControls, Running
        from fedspzo.broker.server.enrolment.route import enrolment_route
        from fedspzo.broker.server.metrics import make_registry

        place = self._endpoint
        certificate = place.tls[0] if place.tls else None

        def upkeep() -> Upkeep:
            status, shown = loop.status(), certificate_end(certificate) if certificate else None
            ends = {"https": shown, "broker": status.broker_certificate_end, "authority": status.authority_end}
            return look(self.state, ends)

        registry = make_registry(loop.status, upkeep)
        safe = may_serve_console(place.host, place.tls is not None)
        console = make_refusal(
            "the console is served to this machine, or over HTTPS: give --http-certificate, --http-key"
        )
        with ExitStack() as stack:
            enrolment = None
            if safe:
                log, devices = stack.enter_context(recent_log()), DeviceControls(self.state, self._cut_off)
                enrolling = Enrolling(self.state, self._logins, self._broker, lambda: self._url)
                running = Running(loop.window, log, devices, enrolling, Backups(self.state), certificate)
                console = make_console([JobView(self.state, running)], Gate(Logins(self.state)), place.tls is not None)
                if self._logins:
                    enrolment = stack.enter_context(Enrolment(self.state, self._name, self._logins, self._admission))
            routes = [enrolment_route(enrolment)] if self._logins else []
            url = stack.enter_context(
                serve(self.bundle, registry, store.snapshots, place.host, place.port, place.tls, console, routes)
            )
            reached = (place.url or url).rstrip("/")
            stack.enter_context(told_address(self.state, f"{reached}/console/" if safe else ""))
            yield reached

    def _run(self, loop: Loop, closing: ExitStack) -> None:
        try:
            with closing:
                self._result = loop.run()
        except BaseException as error:  # raised where somebody waits
            self._error = error
        finally:
            self._ended.set()
