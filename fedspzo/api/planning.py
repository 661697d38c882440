"""Settings for a model, its data and a fleet: measured, predicted, and tried out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fedspzo.api.models import open_bundle
from fedspzo.broker.planner.probe import probe
from fedspzo.broker.planner.profile import Profile, Unit
from fedspzo.broker.planner.propose import Proposal, Terms, make_job, propose, read_job
from fedspzo.broker.planner.trial import FEWEST_ROUNDS, MOST_RUNS, TrialResult, search
from fedspzo.broker.rounds.job import Job, check_job
from fedspzo.broker.rounds.methods import SIMULATED, choose_method
from fedspzo.broker.rounds.objective import find_objective
from fedspzo.broker.simulation.partition import Partition, Skew
from fedspzo.broker.simulation.workers import Work
from fedspzo.device_runtime.engines.protocol import create_engine
from fedspzo.device_runtime.errors import PlanError
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.protocol.objective import LOSS
from fedspzo.device_runtime.replica.weights import Replica
from fedspzo.device_runtime.step.runner import Forward

#: How many times as long as the trial a job may be whose rates do not fall.
FORESEEN = 4


@dataclass(frozen=True)
class PlannedSettings:
    """Settings that the planner proposes.

    Attributes:
        job: with these settings, ready to run.
        chosen: the proposal that it has.
        predicted_gain: how many times less it should cost than the whole model perturbed at once.
        profile: what was measured.
        proposals: all, the best by prediction first.
        trial: what came of trying them; None where that was not asked for, or is too short to tell.
        needed: how long a trial must be to tell, where the one that was asked for is too short; else 0. Then the
            settings of a job that says nothing of its steps are chosen.
        cores: whether cores are trained; nothing here tells whether their layer would learn as soon.
    """

    job: Job
    chosen: Proposal
    predicted_gain: float
    profile: Profile
    proposals: Sequence[Proposal]
    trial: TrialResult | None
    needed: int = 0
    cores: bool = False


def plan_settings(
    bundle: Bundle | str | Path,
    data: str | Path,
    *,
    devices: int = 10,
    partition: str = "dirichlet:0.5",
    examples_per_device: int | None = None,
    cohort: int = 4,
    seeds: str = "device",
    seed: int = 0,
    objective: str = LOSS,
    reward_cap: float = Job.reward_cap,
    label_weight: float = Job.label_weight,
    budget: float = 100.0,
    cost: Unit = "flops",
    trial: float = 30.0,
    directions: int = 8,
    batches: int = 20,
    engine: str = "litert",
    threads: int = 1,
    progress: Callable[[str], None] = lambda step: None,
) -> PlannedSettings:
    """Propose settings: measure the model on examples, predict, and try the best in short simulated runs.

    Args:
        data, devices, partition, examples_per_device: see :func:`fedspzo.simulate`.
        cohort: devices of a round.
        seeds: ``device`` for directions of each device's own, or ``shared``.
        seed: of all randomness.
        objective: what devices measure, of :class:`fedspzo.Job`; metrics of generated answers are not planned.
        reward_cap, label_weight: see :class:`fedspzo.Job`.
        budget: what each device of a cohort may spend over all rounds, in forward passes of the whole network with the
            largest batch.
        cost: what settings are ranked by, ``flops`` or ``seconds``.
        trial: length of a run of the trial, in the same passes; 0 for no trial.
        directions: that each segment is measured along, at least 2.
        batches: that are measured, of one device each, at least 2.
        engine, threads: see :func:`fedspzo.simulate`.
        progress: told what is being done.

    Raises:
        PlanError: a setting is out of its range, or the objective is not for the task, the data or the planner.
        DataError: the data cannot be read, or are too few to tell signal from noise, or nothing changes the objective.
        BundleError, EngineError: the bundle is damaged, or the engine is not installed or has no graphs in it.
    """
    if directions < 2 or batches < 2:
        raise PlanError(
            "option.too-few-repeats", "directions and batches are at least 2, to measure a spread; raise them"
        )
    if not (0 < budget < math.inf and 0 <= trial < math.inf):
        raise PlanError("option.budget", "budget is above 0, and trial at least 0; correct these")
    found = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
    common = Job(
        cohort=cohort, seed=seed, seeds=seeds, objective=objective, reward_cap=reward_cap, label_weight=label_weight,
        final_rate=1.0,
    )  # fmt: skip
    measured = find_objective(common)
    shared = Partition(Path(data), devices, Skew.parse(partition), examples_per_device, seed, measured)
    shares = shared(found)
    if not 1 <= cohort <= len(shares.devices):
        raise PlanError(
            "option.cohort-above-devices",
            f"cohort is {cohort}, and there are {len(shares.devices)} devices; choose at most that number",
        )
    forward = Forward(create_engine(engine, threads), Replica(found, threads=threads))
    progress("measuring the model's stages")
    profile = probe(forward, shares, directions, batches, seed, measured)
    terms = Terms(cohort, seeds == "shared", budget)
    proposals = propose(profile, terms, cost)
    whole = next(proposal for proposal in proposals if proposal.whole)
    default = read_job(check_job(replace(common, seeds=Job.seeds), found), profile, budget)
    others = [default] if default and not default.whole else []  # a plan shall not be worse than none
    full = profile.forward("flops", max(profile.batches))
    needed = max((math.ceil(FEWEST_ROUNDS * each.flops / full) for each in others), default=0)
    needed = needed if 0 < trial < needed else 0
    result, chosen = None, others[0] if needed else proposals[0]
    if trial and not needed:
        job = replace(common, rounds=1_000_000)

        def tell(runs: float) -> None:
            progress(f"trying the proposals: {runs:.0f} of up to {MOST_RUNS} simulated runs")

        tell(0.0)
        work = Work(found.folder, engine, threads, None, shared)
        result = search(work, trial * cohort * full, profile, job, [*others, *proposals], tell)
        chosen = result.proposal
    # Rates adapt. What held in a trial may still be too high for a job that is much longer: there they fall as well.
    final_rate = 1.0 if result and budget <= FORESEEN * trial else Job().final_rate
    job = make_job(chosen, profile, replace(common, rounds=chosen.rounds, final_rate=final_rate))
    gain = chosen.efficiency(cost) / whole.efficiency(cost)
    cores = found.manifest.adapters is not None and found.manifest.adapters.kind == "cores"
    return PlannedSettings(job, chosen, gain, profile, proposals, result, needed, cores)


def published_job(method: str, **settings: object) -> Job:
    """A job with the settings of a published method.

    Args:
        method: ``NAME`` or ``NAME:P`` with P directions: fedspzo, decomfl, fedzo, fedkseed, feedsign, mezo, fedavg, …
        settings: of the job; they win over the method's.

    Raises:
        PlanError: there is no such method, or a setting contradicts another.
    """
    return Job(**{**choose_method(method, SIMULATED)[1], **settings})
