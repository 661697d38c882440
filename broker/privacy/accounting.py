"""What a job's noise has promised so far: of its plans, and of every round in its journal.

Every round counts in full for everybody who may have taken part in all of them. Which devices a round asks and which
examples they draw follows from published seeds, so that no amplification by sampling is claimed.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable

from fedspzo.broker.rounds.job import Job
from fedspzo.broker.rounds.private import NO_PRIVACY
from fedspzo.device_runtime.errors import FedSPZOError, install_hint
from fedspzo.device_runtime.privacy.budget import epsilon
from fedspzo.device_runtime.privacy.release import cost, units_within
from fedspzo.device_runtime.protocol.entry import Entry
from fedspzo.device_runtime.protocol.plan import Plan

log = logging.getLogger(__name__)


class Spent:
    """What the rounds of a journal have cost, and whether the job's budget has room for another.

    Attributes:
        limited: whether the job has a budget.
        unit: what the job's noise hides.
        rho: of the rounds with noise, for that unit: the server may have been started with another before.
        open_rounds: rounds without noise: of these nothing is promised.
    """

    def __init__(self, job: Job, entries: Iterable[Entry]) -> None:
        """``entries`` are those of the journal so far."""
        self.limited = job.privacy != NO_PRIVACY
        self.unit = job.privacy
        self.rho, self.open_rounds = 0.0, 0
        self._job = job
        if self.limited:
            for entry in entries:
                self.follow(entry)

    def follow(self, entry: Entry) -> None:
        """A round was closed."""
        if entry.plan.noise:
            self.rho += spent(entry.plan, self.unit)
        else:
            self.open_rounds += 1

    @property
    def epsilon(self) -> float:
        """ε of the rounds so far, at the job's δ; math.inf where a round had no noise."""
        return math.inf if self.open_rounds else epsilon(self.rho, self._job.delta)

    def affords(self, plan: Plan) -> bool:
        """Whether the budget has room for a round, and this attempt of it; always where the job has none."""
        if not self.limited or not plan.noise:
            return True
        return epsilon(self.rho + spent(plan, self.unit), self._job.delta) <= self._job.privacy_budget * (1 + 1e-6)


def tell_spent(job: Job, last: int) -> None:
    """Say that a job ends before its time."""
    log.warning(
        "the job ends after round %d of %d: its privacy budget, ε = %g at δ = %g, has no room for another",
        *(last, job.rounds, job.privacy_budget, job.delta),
    )


def spent(plan: Plan, unit: str) -> float:
    """ρ for a unit of a round with noise: of all its attempts so far, whose sums the server may have seen."""
    return cost(plan) * units_within(plan, unit) ** 2 * (plan.masking[0].attempt if plan.masking else 1)


def account(costs: Iterable[float], delta: float) -> float:
    """The ε of releases that cost ρ each, as dp-accounting has it by Rényi orders: math.inf where one promises nothing.

    Raises:
        FedSPZOError: dp-accounting is not installed.
    """
    try:
        from dp_accounting import dp_event
        from dp_accounting.rdp import RdpAccountant
    except ImportError:
        raise FedSPZOError(
            "install.missing-package", f"this needs dp-accounting, which is not installed; {install_hint('privacy')}"
        ) from None
    accountant = RdpAccountant()
    for rho in costs:
        if math.isinf(rho):
            return math.inf
        accountant.compose(dp_event.ZCDpEvent(rho))
    return float(accountant.get_epsilon(delta))
