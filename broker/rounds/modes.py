"""What the server of a job sees of results: the modes of docs/trust.md, and which of them a job's settings allow."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from fedspzo.broker.rounds.objective import largest_scalar
from fedspzo.broker.rounds.robust import CHOICES, LINEAR
from fedspzo.device_runtime.errors import PlanError
from fedspzo.device_runtime.model.modes import LEAST_SUMMED, MODES
from fedspzo.device_runtime.privacy.masks import seed_attempt
from fedspzo.device_runtime.privacy.words import count_words, make_grid
from fedspzo.device_runtime.protocol.codec import MAX_BYTES
from fedspzo.device_runtime.protocol.entry import GroupSum
from fedspzo.device_runtime.protocol.plan import Masking, Plan

if TYPE_CHECKING:
    from fedspzo.broker.rounds.job import Job

#: Groups that a round has at least in mode "groups", those that it has where there are many devices, and the most
#: devices in one: of 2f + 1 groups, f can have a hostile device.
FEWEST_GROUPS, USUAL_GROUPS, LARGEST_GROUP = 3, 5, 32
#: Most devices in the one sum of mode "secure": each shares a key with each.
LARGEST_SUM = 128


def choose_mode(job: Job) -> str:
    """The mode that a job says, or else groups where it can be, and robust where not."""
    if job.mode != "auto":
        return job.mode
    possible = job.seeds == "shared" and not job.votes and not job.seed_pool
    return "groups" if possible and job.cohort >= FEWEST_GROUPS * max(job.group, LEAST_SUMMED) else MODES[0]


def least_summed(job: Job) -> int:
    """Devices in a sum at least, in the modes that sum."""
    if job.runs_as == "secure":
        return LEAST_SUMMED
    return job.group or min(max(job.cohort // USUAL_GROUPS, LEAST_SUMMED), LARGEST_GROUP)


def check_mode(job: Job) -> None:
    """Raise PlanError where a job's other settings do not allow its mode."""
    mode, least = job.runs_as, least_summed(job)
    if job.group and not LEAST_SUMMED <= job.group <= LARGEST_GROUP:
        raise PlanError("job.group-size", f"group is from {LEAST_SUMMED} to {LARGEST_GROUP} devices, not {job.group}")
    if mode == MODES[0]:
        return
    if job.seeds != "shared":
        raise PlanError(
            "job.mode-of-own-directions",
            f"mode = {mode} sums results along directions that devices share; with seeds = device the journal has each"
            " device's scalars under its name; set seeds = shared, or mode = robust",
        )
    if job.seed_pool:
        raise PlanError(
            "job.mode-of-pool",
            f"with a pool of seeds directions come again, and the sums of two rounds then tell of one device; leave out"
            f" seed_pool, or mode = {mode}",
        )
    if job.votes:
        raise PlanError("job.mode-of-votes", f"votes need each device's result; leave out mode = {mode}")
    fewest = least if mode == "secure" else FEWEST_GROUPS * least
    if job.cohort < fewest:
        raise PlanError(
            "job.cohort-too-small", f"mode = {mode} needs a cohort of {fewest}, not {job.cohort}; raise cohort"
        )
    if mode == "secure" and job.aggregate not in (CHOICES[0], *LINEAR):
        raise PlanError(
            "job.aggregate-of-one-sum",
            f"mode = secure has one sum, with nothing to compare it to; leave out aggregate = {job.aggregate}, or set"
            " mode = groups",
        )
    if mode == "secure" and job.cohort > LARGEST_SUM:
        raise PlanError(
            "job.cohort-too-large",
            f"mode = secure sums {LARGEST_SUM} devices at most, not {job.cohort}; lower cohort, or set mode = groups",
        )


def mask_plan(job: Job, plan: Plan) -> Plan:
    """A plan that also says how results are masked, where the job's mode masks them.

    Raises:
        PlanError: sums of its examples and devices do not fit in words.
    """
    if job.runs_as == MODES[0]:
        return plan
    least = least_summed(job)
    most = job.cohort if job.runs_as == "secure" else 2 * least - 1
    # The plan's clip holds for a whole vector, and the job's for its root mean square.
    largest = largest_scalar(plan)
    clip = largest if job.clip == type(job).clip and largest < math.inf else job.clip
    masking = Masking(job.runs_as, 1, math.sqrt(plan.scalars) * clip, least, most)
    plan = replace(plan, masking=(masking,), base_seed=seed_attempt(plan.base_seed, plan.round, 1))
    make_grid(plan)  # has the rules of sums
    return plan


def largest_sums(job: Job, plan: Plan) -> tuple[GroupSum, ...]:
    """Sums as large as an entry's can be, no more than are too many; none where the plan masks no results."""
    if not plan.masking:
        return ()
    groups, size = 1 if plan.mode == "secure" else job.cohort // plan.masking[0].least, 4 * count_words(plan)
    return (GroupSum(plan.masking[0].most, bytes(size)),) * min(groups, MAX_BYTES // size + 1)
