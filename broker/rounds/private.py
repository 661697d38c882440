"""The noise of a job's plans: as little as its budget allows when each of its rounds has the same."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING

from fedspzo.broker.rounds.modes import least_summed
from fedspzo.broker.rounds.objective import steepness
from fedspzo.broker.rounds.robust import CHOICES, LINEAR
from fedspzo.device_runtime.errors import PlanError
from fedspzo.device_runtime.model.modes import MODES
from fedspzo.device_runtime.privacy.budget import rho_within
from fedspzo.device_runtime.privacy.quantise import LARGEST
from fedspzo.device_runtime.privacy.release import LARGEST_WORD, sensitivity
from fedspzo.device_runtime.protocol.plan import UNITS, Noise, Plan

if TYPE_CHECKING:
    from fedspzo.broker.rounds.job import Job

#: What noise can hide; the first is a job without noise.
NO_PRIVACY = "none"
PRIVACY = (NO_PRIVACY, *UNITS)
#: The settings that say what the noise is like.
OF_NOISE = ("privacy_budget", "delta", "noise_clip", "honest")
#: The largest norm of the loss's scalars that counts, where it is not said.
CLIP = 100.0
#: Standard deviations of noise that a word should hold.
_REACH = 8


def check_privacy(job: Job) -> None:
    """Raise PlanError where a job's other settings do not go with its noise."""
    if job.privacy == NO_PRIVACY:
        check_given([name for name in OF_NOISE if getattr(job, name) != getattr(type(job), name)])
        return
    if job.votes:
        raise PlanError("job.privacy-of-votes", "votes are not for scalars with noise; leave out votes or privacy")
    if job.adapt:
        raise PlanError("job.privacy-of-adapt", "derivatives under noise say little; leave out adapt or privacy")
    if _is_plain_sum(job) and job.aggregate not in (CHOICES[0], *LINEAR):
        raise PlanError(
            "job.privacy-of-aggregate",
            f"the noise of several devices only suffices in a plain mean, and {job.aggregate} looks at each result; set"
            " aggregate = mean, honest = 1, or mode = groups",
        )
    if job.honest > _seen_together(job):
        raise PlanError(
            "job.honest-above-quorum",
            f"the noise of {job.honest} devices is counted on, and a sum may be of {_seen_together(job)}; lower honest,"
            " or raise quorum or group",
        )


def check_given(names: Sequence[str]) -> None:
    """Raise PlanError for settings of :data:`OF_NOISE` that were given to a job without noise."""
    if names:
        raise PlanError(
            "job.noise-without-privacy",
            f"{', '.join(names)} says what the noise is like, and this job adds no noise; add privacy ="
            f" {' or '.join(UNITS)}",
        )


def count_shares(job: Job) -> int:
    """Devices whose noise must suffice."""
    return job.honest or _seen_together(job)


def _is_plain_sum(job: Job) -> bool:
    """Whether results must be summed as they are: what is made of single ones would depend on more than their sum."""
    return job.runs_as == MODES[0] and count_shares(job) > 1


def _seen_together(job: Job) -> int:
    """Results at least of the smallest sum that is seen: by the server, or in mode robust by who reads the journal."""
    return job.fewest if job.runs_as == MODES[0] else least_summed(job)


def add_noise(job: Job, plan: Plan) -> Plan:
    """A plan that also says what noise devices add, where the job wants privacy."""
    if job.privacy == NO_PRIVACY:
        return plan
    # In units of the clip; a little more than needed, since the variance is a whole number.
    total = math.sqrt(job.rounds / (2 * _rho(job.privacy_budget, job.delta))) * (1 + 1e-6)
    share = total / math.sqrt(count_shares(job))
    units = 1 if job.privacy == "device" else plan.batch
    fit = max(math.ceil(LARGEST * (_REACH * share + units) / LARGEST_WORD), 1 << 15)
    if fit > 1 << 20:
        raise PlanError(
            "job.budget-too-small",
            f"ε = {job.privacy_budget:g} for {job.rounds} rounds takes noise that drowns all; raise privacy_budget or"
            " honest, or lower rounds",
        )
    clip = job.noise_clip or CLIP * steepness(job.objective)
    noise = Noise(job.privacy, clip, fit, 1, count_shares(job))
    if _is_plain_sum(job) and plan.aggregate not in LINEAR:
        plan = replace(plan, aggregate=LINEAR[0])
    return replace(plan, noise=(replace(noise, variance=math.ceil((share * sensitivity(noise)) ** 2)),))


@lru_cache
def _rho(budget: float, delta: float) -> float:
    return rho_within(budget, delta)
