"""What a job has devices measure: its rules, and how large a perturbation an objective needs."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from fedspzo.device_runtime.errors import PlanError
from fedspzo.device_runtime.protocol.objective import (
    BUILT_IN,
    ERROR,
    EXPECTED_ERROR,
    LOSS,
    METRIC,
    OWN,
    REWARD,
    Objective,
)
from fedspzo.device_runtime.protocol.plan import Plan

if TYPE_CHECKING:
    from fedspzo.broker.rounds.job import Job

#: Objectives that have few values, which a small perturbation does not change → how much larger a one they need.
COARSENESS = {ERROR: 8.0, METRIC: 128.0}


def check_objective(job: Job) -> None:
    """Raise PlanError where a job names an objective that there is not, or settings that do not go with it."""
    if job.objective == LOSS and job.guard:
        raise PlanError(
            "job.guard-of-loss",
            "guard is for another objective than the loss; leave it out, or stop by --patience in its place",
        )
    if job.objective not in BUILT_IN and not job.objective.startswith((METRIC, OWN)):
        raise PlanError(
            "job.unknown-objective",
            f"objective is one of {', '.join(BUILT_IN)}, {METRIC}NAME for a metric of generated answers, or {OWN}NAME"
            f" for an entry point, not '{job.objective}'",
        )
    if job.temperature and not job.objective.startswith(METRIC):
        raise PlanError(
            "job.temperature",
            f"temperature is for metrics of generated answers, and this job measures {job.objective}; set objective ="
            f" {METRIC}exact_match, or leave it out",
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
    objective = find_objective(job)
    return plan if objective is None else replace(plan, objective=(objective,))


def find_objective(job: Job) -> Objective | None:
    """What a job's devices measure; None for the loss. Raises PlanError where it cannot be named."""
    if job.objective == LOSS:
        return None
    return Objective(job.objective, job.reward_cap, job.label_weight, job.temperature)


def largest_scalar(plan: Plan) -> float:
    """The largest that any data give, where costs lie between 0 and 1; infinite for the loss and for others."""
    bounded = any(objective.name.startswith((ERROR, EXPECTED_ERROR, METRIC)) for objective in plan.objective)
    return 1.0 / (plan.sides * plan.epsilon) if bounded else math.inf


def steepness(objective: str) -> float:
    """The largest derivative of an example's cost by a score f of the model, as a share of the loss's largest.

    |∂(-log π)/∂f| is 1 - π ≤ 1 at most, and |∂π/∂f| is π·(1 - π) ≤ 1/4. A text's π is a geometric mean, for which the
    same holds. A reward of what was shown by chance counts for more, and is clipped where a job clips. All of this
    follows from the objective alone, so that noise may be sized by it: no data tell of themselves.
    """
    return 0.25 if objective in (EXPECTED_ERROR, REWARD) else 1.0


def coarseness(objective: str) -> float:
    """A factor on the size of perturbations; 1 for an objective that a small one changes."""
    return next((factor for name, factor in COARSENESS.items() if objective.startswith(name)), 1.0)
