"""Who measures for virtual devices: this process, other processes, or Ray's on many machines.

All replicas of a job are the same bits, so one replica serves all of a worker's devices.
"""

from __future__ import annotations

import math
import multiprocessing
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

from fedspzo.broker.simulation.partition import Shares
from fedspzo.device_runtime.engines.protocol import create_engine
from fedspzo.device_runtime.errors import EngineError, FedSPZOError, install_hint
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.protocol.codec import fingerprint
from fedspzo.device_runtime.protocol.entry import Entry
from fedspzo.device_runtime.protocol.messages import Result
from fedspzo.device_runtime.protocol.plan import Plan
from fedspzo.device_runtime.replica.state import PREFIX
from fedspzo.device_runtime.replica.weights import Replica
from fedspzo.device_runtime.step.estimator import measure
from fedspzo.device_runtime.step.prefix_cache import PrefixCache
from fedspzo.device_runtime.step.runner import Forward


@dataclass(frozen=True)
class Measured:
    """What a virtual device answers.

    Attributes:
        result: as a device's own; the time that it took is not this machine's to say, and 0.
        flops: floating-point operations of matrix products that it took.
    """

    result: Result
    flops: int

    @property
    def finite(self) -> bool:
        """Whether the loss and all scalars are numbers; where they are not, a live device declines."""
        return all(map(math.isfinite, (self.result.loss, *self.result.scalars)))


@dataclass(frozen=True)
class Work:
    """What a worker needs to begin; it can be sent to another process.

    Attributes:
        bundle: the bundle's folder.
        engine: name of the engine.
        threads: of the engine and for weights.
        snapshot: of the job, where there is one; it starts there.
        shares: makes the devices' examples.
    """

    bundle: Path
    engine: str
    threads: int
    snapshot: Path | None
    shares: Callable[[Bundle], Shares]


class Workers(Protocol):
    """Measures for virtual devices."""

    def measure(self, plan: Plan, devices: Mapping[str, int]) -> dict[str, Measured]:
        """Each device's answer to the plan of the next round.

        Args:
            devices: with the rounds that each has measured in before.

        Raises:
            FedSPZOError: a worker failed.
        """

    def follow(self, entries: Sequence[Entry]) -> None:
        """Take the replicas on by some rounds."""

    def close(self) -> None:
        """Let go of other processes."""


class Worker:
    """One replica and the devices that it stands for."""

    def __init__(self, work: Work) -> None:
        """Raises FedSPZOError when the bundle, the engine or the data cannot be used."""
        bundle = Bundle(work.bundle)
        self._shares = work.shares(bundle)
        replica = Replica(bundle, work.snapshot, work.threads)
        self._scratch = TemporaryDirectory(prefix="fedspzo-")  # goes when the worker does
        self._cache = PrefixCache(Path(self._scratch.name) / PREFIX)
        self._forward = Forward(create_engine(work.engine, work.threads), replica)

    def measure(self, plan: Plan, devices: Mapping[str, int]) -> list[Measured]:
        """The devices' answers, in their order."""
        answers = []
        for device, measured in devices.items():
            before = self._forward.flops
            found = measure(self._forward, self._shares.of(device), plan, device, self._cache, measured)
            result = Result(plan.round, fingerprint(plan), found.scalars, found.loss, found.examples, 0.0, b"")
            answers.append(Measured(result, self._forward.flops - before))
        return answers

    def follow(self, entries: Sequence[Entry]) -> None:
        """Take the replica on by those of some rounds that it does not have yet."""
        replica = self._forward.weights
        replica.apply_all([entry for entry in entries if entry.round > replica.round])


class LocalWorkers:
    """This process alone."""

    def __init__(self, work: Work) -> None:
        self._worker = Worker(work)

    def measure(self, plan: Plan, devices: Mapping[str, int]) -> dict[str, Measured]:
        """See :class:`Workers`."""
        return dict(zip(devices, self._worker.measure(plan, devices), strict=True))

    def follow(self, entries: Sequence[Entry]) -> None:
        """See :class:`Workers`."""
        self._worker.follow(entries)

    def close(self) -> None:
        """See :class:`Workers`."""


class ProcessWorkers:
    """Processes on this machine, each with a replica of its own."""

    def __init__(self, work: Work, count: int) -> None:
        """Start ``count`` processes. Raises FedSPZOError as :class:`Worker` does."""
        context = multiprocessing.get_context("spawn")  # an engine's threads do not survive a fork
        self._pipes: list[Connection] = []
        self._processes = []
        for _ in range(count):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(work, theirs), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)
        for pipe in self._pipes:
            _receive(pipe)

    def measure(self, plan: Plan, devices: Mapping[str, int]) -> dict[str, Measured]:
        """See :class:`Workers`."""
        shares = deal(devices, len(self._pipes))
        return _gather(shares, self._ask("measure", [(plan, share) for share in shares]))

    def follow(self, entries: Sequence[Entry]) -> None:
        """See :class:`Workers`."""
        self._ask("follow", [(entries,)] * len(self._pipes))

    def close(self) -> None:
        """See :class:`Workers`."""
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join()

    def _ask(self, method: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        for pipe, given in zip(self._pipes, arguments, strict=True):
            with suppress(OSError):  # a process that ended is told of below
                pipe.send((method, given))
        return [_receive(pipe) for pipe in self._pipes]


class RayWorkers:
    """Actors of Ray, on the machines of its cluster."""

    def __init__(self, work: Work, count: int, address: str | None) -> None:
        """Start ``count`` actors of one CPU for each thread.

        Args:
            address: of the cluster; None for one on this machine alone.

        Raises:
            EngineError: Ray is not installed, or the cluster is not there.
            FedSPZOError: as :class:`Worker`.
        """
        try:
            import ray
        except ImportError:
            raise EngineError("simulation.ray-missing", f"Ray is not installed; {install_hint('ray')}") from None
        self._ray = ray
        try:
            ray.init(address=address, ignore_reinit_error=True, include_dashboard=False, log_to_driver=False)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise EngineError(
                "simulation.ray-unreachable",
                f"the Ray cluster at {address or 'this machine'} cannot be used ({error}); check its address",
            ) from None
        actor: Any = ray.remote(num_cpus=work.threads)(Worker)  # Ray gives its methods a `remote`
        self._actors = [actor.remote(work) for _ in range(count)]

    def measure(self, plan: Plan, devices: Mapping[str, int]) -> dict[str, Measured]:
        """See :class:`Workers`."""
        shares = deal(devices, len(self._actors))
        asked = [actor.measure.remote(plan, share) for actor, share in zip(self._actors, shares, strict=True)]
        return _gather(shares, self._get(asked))

    def follow(self, entries: Sequence[Entry]) -> None:
        """See :class:`Workers`."""
        self._get([actor.follow.remote(entries) for actor in self._actors])

    def close(self) -> None:
        """See :class:`Workers`."""
        self._ray.shutdown()

    def _get(self, asked: Sequence[Any]) -> list[Any]:
        try:
            return list(self._ray.get(asked))
        except self._ray.exceptions.RayError as error:
            cause = getattr(error, "cause", None)
            raise (
                cause
                if isinstance(cause, FedSPZOError)
                else EngineError("simulation.worker-failed", f"a worker failed ({error}); see what it printed")
            ) from None


def start_workers(work: Work, count: int, ray: bool | str = False) -> Workers:
    """As many workers: this process where one is enough, others, or actors of Ray.

    Args:
        ray: whether a cluster on this machine has them, or the address of one.

    Raises:
        FedSPZOError: as :class:`Worker` and :class:`RayWorkers`.
    """
    if ray:
        return RayWorkers(work, count, ray if isinstance(ray, str) else None)
    return LocalWorkers(work) if count == 1 else ProcessWorkers(work, count)


def deal(devices: Mapping[str, int], workers: int) -> list[dict[str, int]]:
    """The devices of each worker, as even as can be."""
    pairs = list(devices.items())
    return [dict(pairs[number::workers]) for number in range(workers)]


def _gather(shares: Sequence[Mapping[str, int]], answers: Sequence[Sequence[Measured]]) -> dict[str, Measured]:
    pairs = zip(shares, answers, strict=True)
    return {device: answer for share, made in pairs for device, answer in zip(share, made, strict=True)}


def _serve(work: Work, pipe: Connection) -> None:
    """Do what is asked over a pipe until it is closed; errors of the project go back as values."""
    try:
        worker = Worker(work)
        pipe.send(None)
        while True:
            method, arguments = pipe.recv()
            pipe.send(getattr(worker, method)(*arguments))
    except FedSPZOError as error:
        pipe.send(error)
    except (EOFError, KeyboardInterrupt):
        pass


def _receive(pipe: Connection) -> Any:
    try:
        answer = pipe.recv()
    except (EOFError, OSError):
        raise EngineError(
            "simulation.worker-ended", "a worker's process ended; see what it printed, or use fewer --workers"
        ) from None
    if isinstance(answer, FedSPZOError):
        raise answer
    return answer
