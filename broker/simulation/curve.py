"""A simulated run's loss against the operations that its devices spent, taken at some points of a budget."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from fedspzo.broker.simulation.driver import DIVERGED, SimulatedRound
from fedspzo.device_runtime.errors import PlanError

#: A run has lost a loss that it had reached when it is this many times above it again.
LEFT = 1.03


@dataclass(frozen=True)
class Curve:
    """A run so far.

    Attributes:
        flops: operations of all devices, at each point.
        losses: at each point.
        rounds: closed.
    """

    flops: tuple[float, ...]
    losses: tuple[float, ...]
    rounds: int

    def reached(self, loss: float) -> float:
        """Operations until the loss was first at a value, by lines between the points; infinite if it never was."""
        for k in range(1, len(self.losses)):
            above, below = self.losses[k - 1], self.losses[k]
            if below <= loss < above:
                share = (above - loss) / (above - below)
                return self.flops[k - 1] + share * (self.flops[k] - self.flops[k - 1])
        return math.inf

    def until(self, loss: float) -> float:
        """The same where it stays there to the end; else infinite."""
        since = self.reached(loss)
        later = [held for flops, held in zip(self.flops, self.losses, strict=True) if flops >= since]
        return since if later and max(later) <= LEFT * loss else math.inf


@dataclass(frozen=True)
class Budget:
    """What a run may spend.

    Attributes:
        flops: operations of all devices in a whole run.
        points: of a whole run's curve.
        diverged: a run whose loss is this many times the initial loss is over.
        least: operations that a round counts as at least.
    """

    flops: float
    points: int
    diverged: float
    least: float = 0.0


def draw_curve(
    rounds: Iterable[SimulatedRound],
    loss: Callable[[], float],
    budget: Budget,
    share: float = 1.0,
    curve: Curve | None = None,
) -> Curve:
    """Draw rounds until they have spent a share of the budget.

    Args:
        rounds: of the driver; no more are drawn than that takes. Where they diverge, the last loss is infinite.
        loss: of the model after the round drawn last.
        curve: what the rounds continue; None for those of the start.
    """
    curve = curve or Curve((0.0,), (loss(),), 0)
    flops, losses, closed, spent = list(curve.flops), list(curve.losses), curve.rounds, curve.flops[-1]
    for made in _until_diverged(rounds):
        if made is None:
            return Curve((*flops, spent), (*losses, math.inf), closed)
        spent, closed = spent + max(made.flops, budget.least), made.round
        ended = spent >= budget.flops * share
        if ended or spent >= budget.flops * len(flops) / budget.points:
            flops.append(spent)
            losses.append(loss())
            if ended or not losses[-1] < budget.diverged * losses[0]:
                break
    return Curve(tuple(flops), tuple(losses), closed)


def _until_diverged(rounds: Iterable[SimulatedRound]) -> Iterator[SimulatedRound | None]:
    """The rounds, and None at the end where they diverge."""
    try:
        yield from rounds
    except PlanError as error:
        if error.kind != DIVERGED:
            raise
        yield None
