"""What devices measure of an example, as a plan names it: the loss, or something that has no derivative."""

from __future__ import annotations

import re
from dataclasses import dataclass

from fedspzo.device_runtime.errors import PlanError

#: Today's: what the graphs give.
LOSS = "loss"
#: Whether the likeliest label is wrong, and the probability that the softmax leaves to wrong ones.
ERROR, EXPECTED_ERROR = "error", "expected-error"
#: What people's reactions to what was shown say of what the model would show.
REWARD = "reward"
#: What comes before the name of a metric of the answers that a model generates.
METRIC = "metric:"
#: What comes before the name of a function of the device's owner.
OWN = "own:"
BUILT_IN = (LOSS, ERROR, EXPECTED_ERROR, REWARD)
#: Largest cap on importance weights, weight of a label, and cost: what devices mask or add noise to goes no further.
MOST = 64.0
#: Highest temperature.
HOTTEST = 1e6
_NAME = re.compile(r"[a-z][a-z0-9._-]*(:[A-Za-z0-9._-]+)?")
_LONGEST = 64


@dataclass(frozen=True)
class Objective:
    """An objective that is not the loss.

    Attributes:
        name: one that devices know, of :data:`BUILT_IN` or with a prefix, :data:`METRIC` or :data:`OWN`.
        cap: importance weights π/p are cut to it: how much an example counts that was shown by chance.
        label_weight: of an example with a label, where one with a reaction has 1.
        temperature: that answers are drawn with, by all queries with the same noise; 0 takes the likeliest tokens.
    """

    name: str
    cap: float
    label_weight: float
    temperature: float = 0.0

    def __post_init__(self) -> None:
        """Raises PlanError when it can be none."""
        if not _NAME.fullmatch(self.name) or len(self.name) > _LONGEST or self.name == LOSS:
            raise PlanError(
                "plan.objective", f"an objective is a name of up to {_LONGEST} lower-case letters, such as '{REWARD}'"
            )
        if not (0 < self.cap <= MOST and 0 <= self.label_weight <= MOST):
            raise PlanError("plan.objective", f"an objective's cap and label_weight are at most {MOST:g}, from 0 on")
        if not 0 <= self.temperature <= HOTTEST:
            raise PlanError("plan.objective", f"an objective's temperature is at most {HOTTEST:g}, from 0 on")
