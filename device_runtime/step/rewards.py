"""What reward a model would have, from reactions to what another one showed; computed and kept on the device.

The self-normalised form is a ratio of sums: differences of it along directions are no means over examples, and devices'
ratios do not add up to that of all. So it is not sent, and jobs do not train on it; see docs/feedback.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fedspzo.device_runtime.data.store import DataStore, subset
from fedspzo.device_runtime.errors import DataError
from fedspzo.device_runtime.step.objectives import Outputs, importance
from fedspzo.device_runtime.step.runner import Forward, ModelWeights
from fedspzo.device_runtime.step.scores import predict


@dataclass(frozen=True)
class RewardEstimate:
    """Of the mean reward of answers drawn from a model's softmax.

    Attributes:
        reward: the mean of w·r, where w = min(π/p, cap).
        variance: of that mean, σ²/n where σ² is the sample variance of w·r over the n reactions.
        normalised: Σ w·r / Σ w.
        normalised_variance: of that ratio m, to first order: Σ w²·(r - m)² / (Σ w)².
        examples: reactions.
        effective: (Σ w)² / Σ w², how many reactions count fully.
    """

    reward: float
    variance: float
    normalised: float
    normalised_variance: float
    examples: int
    effective: float

    def record(self) -> dict[str, float]:
        """Plain values for people and programs, with standard errors, the roots of the variances."""
        return {
            "reward": self.reward,
            "reward_uncertainty": math.sqrt(self.variance),
            "normalised": self.normalised,
            "normalised_uncertainty": math.sqrt(self.normalised_variance),
            "effective": self.effective,
        }


def estimate_reward(forward: Forward[ModelWeights], store: DataStore, cap: float = 10.0) -> RewardEstimate:
    """The estimate on a store's reactions. Raises DataError when there are none."""
    if store.feedback is None:
        raise DataError("data.no-feedback", "the examples have labels and no reactions; give lines with 'shown'")
    reacted = np.flatnonzero(store.feedback.shown >= 0)
    feedback = store.feedback.at(reacted)
    return summarise(importance(Outputs(*predict(forward, subset(store, reacted))), feedback, cap), feedback.rewards)


def summarise(weights: np.ndarray, rewards: np.ndarray) -> RewardEstimate:
    """The estimate of clipped importance weights and rewards, both [examples], at least one."""
    weights, rewards = weights.astype(np.float64), rewards.astype(np.float64)
    count, total = len(weights), float(weights.sum())
    terms = weights * rewards
    ratio = float(terms.sum()) / total if total else 0.0
    return RewardEstimate(
        reward=float(terms.mean()),
        variance=float(terms.var(ddof=1)) / count if count > 1 else math.inf,
        normalised=ratio,
        normalised_variance=float((weights**2 * (rewards - ratio) ** 2).sum()) / total**2 if total else math.inf,
        examples=count,
        effective=total**2 / float((weights**2).sum()) if total else 0.0,
    )
