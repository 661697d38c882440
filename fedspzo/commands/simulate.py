"""Run a job's rounds with thousands of virtual devices, with the plans, estimator and journal of a live job."""

from __future__ import annotations

import argparse
import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from fedspzo.broker.rounds.methods import FIRST_ORDER, SIMULATED, Method
from fedspzo.options.job import add_job_options, make_job
from fedspzo.progress import show

if TYPE_CHECKING:
    from fedspzo.broker.rounds.aggregate import ClosedRound
    from fedspzo.broker.rounds.job import Job
    from fedspzo.broker.server.evaluation import Schedule
    from fedspzo.broker.server.store import ServerStore
    from fedspzo.broker.simulation.driver import Training
    from fedspzo.broker.simulation.fleet import Fleet
    from fedspzo.broker.simulation.partition import Shares
    from fedspzo.broker.simulation.workers import Work, Workers
    from fedspzo.device_runtime.data.store import DataStore
    from fedspzo.device_runtime.model.bundle import Bundle
    from fedspzo.device_runtime.replica.weights import Replica
    from fedspzo.device_runtime.step.runner import Forward


def configure(parser: argparse.ArgumentParser) -> None:
    """Describe the options."""
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="the bundle's folder")
    add_share_options(parser)
    parser.add_argument(
        "--state", type=Path, required=True, metavar="DIR", help="where the journal is kept, as a server's"
    )
    parser.add_argument("--held-out", metavar="FILE", help="examples to evaluate on")
    parser.add_argument("--evaluate-every", type=int, default=20, metavar="N", help="rounds (%(default)s)")
    parser.add_argument("--job", default="default", help="the job's name (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print progress as JSON lines")
    add_job_options(parser, SIMULATED)
    behaviour = parser.add_argument_group(
        "how devices behave", "a distribution is a number, uniform:LOW,HIGH or lognormal:MEDIAN,SIGMA"
    )
    behaviour.add_argument("--step-seconds", default="1", metavar="DIST", help="of each device (%(default)s)")
    behaviour.add_argument("--battery", default="1", metavar="DIST", help="charge, 0 to 1, in each round (%(default)s)")
    behaviour.add_argument("--available", type=float, default=1.0, help="chance to be there in a round (%(default)s)")
    behaviour.add_argument("--dropout", type=float, default=0.0, help="chance not to answer (%(default)s)")
    machine = parser.add_argument_group("what computes")
    machine.add_argument("--engine", default="litert", help="litert, executorch, torch or tflite (%(default)s)")
    machine.add_argument("--threads", type=int, default=1, help="of each worker (%(default)s)")
    machine.add_argument("--workers", type=int, default=1, help="processes that share the devices (%(default)s)")
    machine.add_argument("--ray", action="store_true", help="workers are actors of a Ray cluster on this machine")
    machine.add_argument(
        "--ray-address", metavar="ADDRESS",
        help="address of a Ray cluster whose machines all have bundle and data at the same paths",
    )  # fmt: skip


def add_share_options(parser: argparse.ArgumentParser) -> None:
    """The options that say which examples virtual devices hold; see :func:`make_shares`."""
    parser.add_argument(
        "--data", type=Path, required=True, metavar="PATH",
        help="labelled examples to split among the devices, or a folder with a file for each device",
    )  # fmt: skip
    parser.add_argument("--devices", type=int, help="virtual devices (default: 100, or as many as the method has)")
    parser.add_argument(
        "--partition", default="dirichlet:0.5", help="how labels are split: iid or dirichlet:ALPHA (%(default)s)"
    )
    parser.add_argument(
        "--examples-per-device", type=int, metavar="N",
        help="each device draws N examples, which others may have too (default: each example goes to one device)",
    )  # fmt: skip


def run(options: argparse.Namespace) -> None:
    """Run the rounds that are not closed yet, printing progress."""
    course = prepare(options)
    if options.method in FIRST_ORDER:
        run_first_order(options, course)
    else:
        run_zeroth_order(options, course)


@dataclass(frozen=True)
class Course:
    """A simulated job, ready to be run by methods of either kind.

    Attributes:
        bundle, job, fleet, shares: the model, the rounds, the devices and their examples.
        store: the state folder.
        schedule: what is due after which rounds.
        forward: through the model as it is after the last round that was told.
        held_out: examples to evaluate on, if there are any.
        started: when it began, by the monotonic clock.
        json: whether progress is printed as JSON.
    """

    bundle: Bundle
    job: Job
    fleet: Fleet
    shares: Shares
    store: ServerStore
    schedule: Schedule
    forward: Forward[Replica]
    held_out: DataStore | None
    started: float
    json: bool

    def attend(self, training: Training) -> None:
        """Do what is due after the last closed round."""
        from fedspzo.device_runtime.step.scores import evaluate

        if not self.schedule.due(training.round):
            return
        training.advance(self.forward.weights)
        if self.held_out is not None and self.schedule.evaluation(training.round):
            evaluation = evaluate(self.forward, self.held_out)
            show(self.json, round=training.round, held_out_loss=evaluation.loss, **evaluation.scores)
        if self.schedule.snapshot(training.round):
            self.forward.weights.save_snapshot(self.store.new_snapshot(training.round))

    def run(self, training: Training, check: Callable[[ClosedRound], None] | None = None, **more: int) -> None:
        """Run the rounds that are not closed yet, and print each, with ``more`` beside it, and what came of all.

        Args:
            check: raises when a closed round is not worth continuing from.
        """
        from fedspzo.broker.simulation.driver import simulate

        counts: Counter[str] = Counter()
        if not training.round:
            self.attend(training)
        for made in simulate(self.job, self.fleet, training):
            counts["results accepted"] += len(made.closed.devices)
            counts["devices asked"] += made.asked
            show(
                self.json,
                round=made.closed.round,
                loss=made.closed.loss,
                results=len(made.closed.devices),
                virtual_seconds=made.closed.seconds,
                gflop=made.flops / 1e9,
                seconds=time.monotonic() - self.started,
                **more,
            )
            if check:
                check(made.closed)
            self.attend(training)
        training.advance(self.forward.weights)
        show(
            self.json,
            finished=True,
            seconds=time.monotonic() - self.started,
            server_digest=self.forward.weights.digest().hex(),
            counts=dict(counts),
        )


def prepare(options: argparse.Namespace) -> Course:
    """All that a job needs, as the options say. Raises FedSPZOError when they contradict each other."""
    from fedspzo.broker.rounds.job import check_job
    from fedspzo.broker.server.evaluation import Schedule
    from fedspzo.broker.server.store import ServerStore, link_bundle
    from fedspzo.broker.simulation.fleet import Behaviour, Fleet, parse_quantile
    from fedspzo.device_runtime.data.store import load_data
    from fedspzo.device_runtime.engines.protocol import create_engine
    from fedspzo.device_runtime.errors import PlanError
    from fedspzo.device_runtime.model.bundle import Bundle
    from fedspzo.device_runtime.replica.weights import Replica
    from fedspzo.device_runtime.step.runner import Forward

    settings, bundle = make_job(options, SIMULATED), Bundle(options.bundle)
    job = check_job(settings, bundle)
    method = SIMULATED.get(options.method)
    if options.devices is None:
        options.devices = (method.devices if isinstance(method, Method) else None) or 100
    if min(options.evaluate_every, options.workers) < 1:
        raise PlanError("simulation.not-positive", "--evaluate-every and --workers are at least 1")
    profile = Behaviour(
        step_seconds=parse_quantile(options.step_seconds, "--step-seconds"),
        battery=parse_quantile(options.battery, "--battery"),
        available=options.available,
        dropout=options.dropout,
    )
    shares = make_shares(options, job.seed, bundle)
    store = ServerStore(options.state, bundle.identity, options.job)
    link_bundle(options.state, bundle.folder)
    replica = Replica(bundle, store.snapshot, options.threads)
    return Course(
        bundle=bundle,
        job=job,
        fleet=Fleet(shares.devices, profile, job.seed),
        shares=shares,
        store=store,
        schedule=Schedule(max(job.rounds, store.journal.last_round), options.evaluate_every, job.digest_every),
        forward=Forward(create_engine(options.engine, options.threads), replica),
        held_out=load_data(options.held_out, bundle) if options.held_out else None,
        started=time.monotonic(),
        json=options.json,
    )


def run_zeroth_order(options: argparse.Namespace, course: Course) -> None:
    """Continue where the journal ends.

    Raises:
        StateError: the newest snapshot is not of the journal.
    """
    from fedspzo.broker.simulation.workers import Work
    from fedspzo.broker.simulation.zeroth_order import ZerothOrder, check_snapshot

    store, start = course.store, course.forward.weights.round
    check_snapshot(store, course.forward.weights)
    shares = partial(make_shares, options, course.job.seed)
    workers = make_workers(options, Work(options.bundle, options.engine, options.threads, store.snapshot, shares))
    try:
        course.run(ZerothOrder(course.job, store, workers, start))
    finally:
        workers.close()


def run_first_order(options: argparse.Namespace, course: Course) -> None:
    """Run all rounds from θ₀; no journal leads to the snapshot at the end.

    Raises:
        PlanError: options do not go with the method, or it diverges.
        StateError: the state folder has rounds of another run.
        EngineError, BundleError: PyTorch or its graphs are not there.
    """
    from fedspzo.broker.simulation.first_order import ALGORITHMS, FirstOrder, check_job, payload
    from fedspzo.broker.simulation.gradient import Backpropagation
    from fedspzo.device_runtime.errors import PlanError, StateError

    check_job(options.method, course.job)
    if options.workers > 1 or options.ray or options.ray_address:
        raise PlanError(
            "simulation.workers-of-first-order",
            f"{options.method} is computed in this process alone; leave out --workers and --ray",
        )
    if course.store.journal.last_round or course.forward.weights.round:
        raise StateError(
            "state.rounds-of-another-run",
            f"{options.state} has rounds of another run, which {options.method} cannot continue;"
            " give it a state folder of its own",
        )
    backpropagation = Backpropagation(course.bundle, options.threads)
    training = FirstOrder(course.job, ALGORITHMS[options.method], course.shares, backpropagation)

    def check(closed: ClosedRound) -> None:
        if not math.isfinite(closed.loss):
            raise PlanError(
                "simulation.diverged", f"{options.method} diverged in round {closed.round}; lower --learning-rates"
            )

    size = payload(training.state.weights)
    course.run(training, check, device_bytes_up=size, device_bytes_down=size)


def make_shares(options: argparse.Namespace, seed: int, bundle: Bundle) -> Shares:
    """The devices' examples as the options say; the same in each process."""
    from fedspzo.broker.simulation.partition import Skew, draw_each, read_folder, share_out
    from fedspzo.device_runtime.data.store import load_data
    from fedspzo.device_runtime.errors import PlanError

    if options.data.is_dir():
        return read_folder(options.data, bundle)
    if options.devices < 1:
        raise PlanError("option.devices", "--devices is not positive; give at least 1")
    store, skew = load_data(options.data, bundle), Skew.parse(options.partition)
    if options.examples_per_device is None:
        return share_out(store, options.devices, skew, seed)
    return draw_each(store, options.devices, options.examples_per_device, skew, seed)


def make_workers(options: argparse.Namespace, work: Work) -> Workers:
    """Who measures, as the options say."""
    from fedspzo.broker.simulation.workers import LocalWorkers, ProcessWorkers, RayWorkers

    if options.ray or options.ray_address:
        return RayWorkers(work, options.workers, options.ray_address)
    return LocalWorkers(work) if options.workers == 1 else ProcessWorkers(work, options.workers)
