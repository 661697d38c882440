"""What a plan's noise promises, in words for people."""

from __future__ import annotations

from fedspzo.device_runtime.privacy.budget import epsilon
from fedspzo.device_runtime.privacy.ledger import DELTA
from fedspzo.device_runtime.privacy.release import cost
from fedspzo.device_runtime.protocol.plan import HIDDEN, Plan


def describe_noise(plan: Plan, rounds: int = 1, delta: float = DELTA) -> str:
    """What follows on :meth:`Plan.describe`; "" for a plan without noise.

    Args:
        rounds: as this one, whose ε is told.
        delta: that it is told for.
    """
    if not plan.noise:
        return ""
    (noise,) = plan.noise
    found, over = epsilon(rounds * cost(plan), delta), "a round" if rounds == 1 else f"for {rounds} rounds"
    return (
        f"; noise hides {HIDDEN[noise.unit]}: ε = {found:.3g} at δ = {delta:g} {over}, clipped to {noise.clip:g}, with"
        f" the shares of {noise.shares} honest devices; losses are with noise"
    )
