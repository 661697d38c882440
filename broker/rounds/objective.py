"""What a job has devices measure: its rules, and how large a perturbation an objective needs."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from fedspzo.device_runtime.errors import PlanError
from fedspzo.device_runtime.protocol.objective import BUILT_IN, ERROR, LOSS, OWN, REWARD, Objective
from fedspzo.device_runtime.protocol.plan import Plan

if TYPE_CHECKING:
    from fedspzo.broker.rounds.job import Job

#: Objectives that have few values: a small perturbation changes none of them.
COARSE = (ERROR,)
#: How much larger a perturbation they need.
COARSER = 8.0


def check_objective(job: Job) -> None:
    """Raise PlanError where a job names an objective that there is not, or settings that do not go with it."""
    if job.objective == LOSS and job.guard:
        raise PlanError(
            "job.guard-of-loss",
            "guard is for another objective than the loss; leave it out, or stop by --patience in its place",
        )
    if job.objective not in BUILT_IN and not job.objective.startswith(OWN):
        raise PlanError(
            "job.unknown-objective",
            f"objective is one of {', '.join(BUILT_IN)}, or {OWN}NAME for an entry point, not '{job.objective}'",
        )
    if job.objective != REWARD:
        given = [name for name in ("reward_cap", "label_weight") if getattr(job, name) != getattr(type(job), name)]
        if given:
            raise PlanError(
                "job.reward-settings",
                f"{', '.join(given)} is for rewards, and this job measures {job.objective}; set objective = {REWARD}",
            )


def add_objective(job: Job, plan: Plan) -> Plan:
    """A plan that also says what is measured, where that is not the loss. Raises PlanError where it cannot be named."""
    if job.objective == LOSS:
        return plan
    return replace(plan, objective=(Objective(job.objective, job.reward_cap, job.label_weight),))


def coarseness(job: Job) -> float:
    """A factor on the size of perturbations."""
    return COARSER if job.objective in COARSE else 1.0
