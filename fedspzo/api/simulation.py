"""A job with virtual devices, from start to end in one call."""

from __future__ import annotations

import math
from collections import Counter
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from fedspzo import run_folder
from fedspzo.api.models import open_bundle
from fedspzo.broker.rounds.adaptive import MakePlans, Pace
from fedspzo.broker.rounds.aggregate import Aggregate
from fedspzo.broker.rounds.job import Job, check_job
from fedspzo.broker.rounds.objective import find_objective
from fedspzo.broker.rounds.sampling import Sample, choose_cohort
from fedspzo.broker.server.controls import read_settings, store_job
from fedspzo.broker.server.evaluation import Evaluated, Schedule
from fedspzo.broker.server.held_out import HeldOut, check_patience
from fedspzo.broker.server.progress import JobResult, Observer, ignore
from fedspzo.broker.server.state_folder import link_bundle
from fedspzo.broker.server.store import ServerStore
from fedspzo.broker.simulation import driver
from fedspzo.broker.simulation.driver import SimulatedRound, Training
from fedspzo.broker.simulation.first_order import ALGORITHMS, FirstOrder, check_first_order
from fedspzo.broker.simulation.fleet import CALM, Behaviour, Fleet
from fedspzo.broker.simulation.gradient import Backpropagation
from fedspzo.broker.simulation.hostile import Attack
from fedspzo.broker.simulation.partition import Partition, Skew
from fedspzo.broker.simulation.workers import Work, start_workers
from fedspzo.broker.simulation.zeroth_order import ZerothOrder, check_snapshot
from fedspzo.device_runtime.data.store import DataStore, load_data
from fedspzo.device_runtime.engines.protocol import create_engine
from fedspzo.device_runtime.errors import PlanError, StateError
from fedspzo.device_runtime.files import write_atomically
from fedspzo.device_runtime.log import printable
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.replica.weights import Replica
from fedspzo.device_runtime.step.prefix_cache import Prefix, PrefixCache
from fedspzo.device_runtime.step.runner import Forward
from fedspzo.device_runtime.step.scores import Evaluation, check_labels, evaluate

#: In the state folder: how the examples of its rounds were split among devices.
PARTITION = "partition"


@dataclass(frozen=True)
class Simulation:
    """A simulated job that was run to its end.

    Attributes:
        model: after the last round; :func:`fedspzo.predict`, ``evaluate`` and ``materialize_model`` take it.
        rounds: that were closed in this call, in order.
        evaluations: round → how the model did on the held-out examples after it, also in earlier calls in the same
            folder.
        result: the model's digest, what happened how often, and the best evaluation.
        best_model: after the round of the best evaluation, which earlier calls in the same folder may have made;
            ``model`` itself where there is no better one.
    """

    model: Replica
    rounds: tuple[SimulatedRound, ...]
    evaluations: dict[int, Evaluation]
    result: JobResult
    best_model: Replica

    @property
    def evaluation(self) -> Evaluation:
        """Of the model after the last round. Raises PlanError when there were no held-out examples."""
        if not self.evaluations:
            raise PlanError("simulation.no-held-out", "the model was not evaluated; simulate with held_out=FILE")
        return self.evaluations[max(self.evaluations)]


def simulate(
    bundle: Bundle | str | Path,
    data: str | Path,
    job: Job | None = None,
    *,
    devices: int = 100,
    partition: str = "dirichlet:0.5",
    examples_per_device: int | None = None,
    held_out: str | Path | DataStore | None = None,
    evaluate_every: int = 20,
    patience: int | None = None,
    state: str | Path | None = None,
    name: str = "default",
    behaviour: Behaviour = CALM,
    engine: str = "litert",
    threads: int = 1,
    workers: int = 1,
    ray: bool | str = False,
    observe: Observer = ignore,
    aggregate: Aggregate | None = None,
    sample: Sample = choose_cohort,
    plans: MakePlans = Pace,
    first_order: str | None = None,
    attack: str | None = None,
) -> Simulation:
    """Run a job's rounds with virtual devices: the plans, estimator and journal are those of a live job.

    Args:
        data: labelled examples to share out among the devices, or a folder with a file for each device.
        job: by default ``Job()``, a hundred rounds.
        devices: how many, where data are a file.
        partition: how unlike their labels are, ``iid`` or ``dirichlet:ALPHA``.
        examples_per_device: each device draws this many, which others may have too; by default all are shared out.
        held_out: examples to evaluate on.
        evaluate_every: rounds between evaluations; there is one before the first round and one after the last.
        patience: stop after this number of evaluations in a row without a better one than before them; None for never.
        state: folder of the journal and of snapshots, as a server's; a run in it is continued. By default a temporary
            one, which is gone afterwards.
        name: of the job.
        behaviour: who is there, who answers, and when.
        engine: litert, executorch, torch or tflite.
        threads: of each worker.
        workers: processes that share the devices' work.
        ray: whether workers are actors of a Ray cluster on this machine, or the address of one.
        observe: told of rounds (as :class:`SimulatedRound`), evaluations and the end; a :class:`fedspzo.Callback`, say.
        aggregate: makes a round's journal entry of its results; by default their mean, weighted by examples.
        sample: chooses the devices that a round asks.
        plans: makes the rounds' plans.
        attack: NAME or NAME:N, what the first N devices (1) send instead of what they measured: one of
            ``simulation.hostile.ATTACKS``.
        first_order: fedavg, fedsgd or fedadam, to compare with: devices then use backpropagation.

    Raises:
        PlanError: the job does not fit the bundle, the devices or the journal, the model diverges, or
            ``patience`` has no examples to judge by.
        DataError: the data cannot be read, or are too few for the devices.
        StateError: the state folder is in use, or of another job.
        BundleError, EngineError: the bundle is damaged, or the engine is not installed or has no graphs in it.
    """
    if min(evaluate_every, workers, threads) < 1:
        raise PlanError("simulation.not-positive", "evaluate_every, workers and threads are at least 1")
    check_patience(patience, held_out is not None, job.guard if job else 0.0)
    found = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
    checked = check_job(job or Job(), found)
    shared = Partition(
        Path(data), devices, Skew.parse(partition), examples_per_device, checked.seed, find_objective(checked)
    )
    shares = shared(found)
    if checked.cohort > len(shares.devices):
        raise PlanError(
            "option.cohort-above-devices",
            f"cohort is {checked.cohort}, and there are {len(shares.devices)} devices; choose at most that number",
        )
    fleet = Fleet(shares.devices, behaviour, checked.seed)
    examples = held_out if isinstance(held_out, DataStore) or held_out is None else load_data(held_out, found)
    if examples is not None:
        check_labels(examples)
    hostile = Attack.parse(attack, shares.devices) if attack else None
    with ExitStack() as stack:
        folder = Path(state) if state else Path(stack.enter_context(TemporaryDirectory(prefix="fedspzo-")))
        store = stack.enter_context(ServerStore(folder, found.identity, name))
        link_bundle(folder, found.folder)
        with store.transaction() as execute:
            earlier = read_settings(execute)
        if earlier is not None and earlier.seed != checked.seed and (store.journal.last_round or store.snapshot):
            raise StateError(
                "state.rounds-of-another-seed",
                f"{folder} has rounds of a run with the seed {earlier.seed}, and this one has {checked.seed}; give that"
                " seed, or a state folder of its own",
            )
        _keep_partition(folder, shared, bool(store.journal.last_round or store.snapshot))
        store_job(store, checked)
        replica = Replica(found, store.snapshot, threads)
        training: Training
        if first_order is not None:
            check_first_order(first_order, checked)
            if workers > 1 or ray:
                raise PlanError(
                    "simulation.workers-of-first-order",
                    f"{first_order} is computed in this process alone: leave out workers and ray",
                )
            if store.journal.last_round or replica.round:
                raise StateError(
                    "state.rounds-of-another-run",
                    f"{folder} has rounds of another run, which {first_order} cannot continue;"
                    " give it a state folder of its own",
                )
            training = FirstOrder(checked, ALGORITHMS[first_order], shares, Backpropagation(found, threads))
        else:
            check_snapshot(store, replica)
            work = Work(found.folder, engine, threads, store.snapshot, shared)
            measuring = stack.enter_context(closing(start_workers(work, workers, ray)))
            training = ZerothOrder(checked, store, measuring, replica.round, aggregate, plans, hostile)
        rounds = []
        schedule = Schedule(max(checked.rounds, training.round), evaluate_every, checked.digest_every)
        forward = Forward(create_engine(engine, threads), replica)
        prefix = Prefix(forward, checked.frozen, PrefixCache(store.activations))
        judged = HeldOut(store, examples, patience, checked.guard)

        def attend() -> None:
            """Do what is due after the last closed round, and is not done yet."""
            if not schedule.due(training.round):
                return
            training.advance(replica)
            if examples is not None and schedule.evaluation(training.round) and replica.round not in judged.evaluations:
                evaluated = Evaluated(replica.round, evaluate(forward, examples, prefix))
                judged.add(evaluated)
                observe(evaluated)
            best = judged.best.round if judged.best else None
            wanted = replica.round and (replica.round == best or schedule.snapshot(replica.round))
            if wanted and replica.round not in store.snapshots():
                replica.save_snapshot(store.new_snapshot(replica.round, best))

        attend()  # an earlier call may have been killed before it did
        counts: Counter[str] = Counter()
        for closed in driver.simulate(checked, fleet, training, sample) if not judged.stalled else ():
            counts["results accepted"] += len(closed.devices)
            counts["devices asked"] += closed.asked
            rounds.append(closed)
            observe(closed)
            if first_order and not math.isfinite(closed.loss):
                raise PlanError(
                    "simulation.diverged", f"{first_order} diverged in round {closed.round}; lower the learning rate"
                )
            attend()
            if judged.stalled:
                break
        schedule = replace(schedule, last=training.round)  # which patience or the privacy budget may have made it
        attend()
        result = JobResult(replica.digest(), {}, dict(counts), judged.best)
        observe(result)
        better = judged.best is not None and judged.best.round != replica.round
        best_model = run_folder.open_run(folder, run_folder.BEST) if better else replica
    return Simulation(replica, tuple(rounds), judged.evaluations, result, best_model)


def _keep_partition(folder: Path, shared: Partition, begun: bool) -> None:
    """Keep how examples are split. Raises StateError where rounds that were simulated here had another split."""
    if shared.data.is_dir():
        return  # each device has a file of its own
    own, kept = str(shared), folder / PARTITION
    earlier = kept.read_text(encoding="utf-8", errors="replace") if begun and kept.exists() else own
    if earlier != own:
        raise StateError(
            "state.rounds-of-another-partition",
            f"{folder} has rounds of a run with {printable(earlier)}, and this one has {own}; give what that run had,"
            " or a state folder of its own",
        )
    write_atomically(kept, own.encode())
