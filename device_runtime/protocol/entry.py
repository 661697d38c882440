"""Entries of the journal: what became of a round. With the entries before it and θ₀, one is the model."""

from __future__ import annotations

from dataclasses import dataclass

from fedspzo.device_runtime.directions.format import Direction
from fedspzo.device_runtime.errors import PlanError
from fedspzo.device_runtime.protocol.plan import Plan


@dataclass(frozen=True)
class Contribution:
    """Scalars of one owner of directions in a closed round.

    Attributes:
        owner: device id, or "" for shared directions.
        weight: its share of the step; shares of a round sum to 1, or to less where the step was shortened.
        scalars: float32, as many as the plan asks for.
    """

    owner: str
    weight: float
    scalars: tuple[float, ...]


@dataclass(frozen=True)
class GroupSum:
    """What the results of a group of devices add up to.

    Attributes:
        devices: how many they are.
        words: int32, little-endian, see :mod:`fedspzo.device_runtime.privacy.words`.
    """

    devices: int
    words: bytes


@dataclass(frozen=True)
class Entry:
    """A closed round: with the entries before it and θ₀, it is the model.

    Attributes:
        plan: of the round.
        contributions: what replicas apply.
        sums: what the server learned, where results were masked; the contributions are made of them.
    """

    plan: Plan
    contributions: tuple[Contribution, ...]
    sums: tuple[GroupSum, ...] = ()

    def __post_init__(self) -> None:
        """Raises PlanError when a contribution does not answer the plan."""
        if any(len(contribution.scalars) != self.plan.scalars for contribution in self.contributions):
            raise PlanError("plan.wrong-scalars", f"an entry's contributions have {self.plan.scalars} scalars each")

    @property
    def round(self) -> int:
        """The round's number."""
        return self.plan.round

    def updates(self) -> list[list[Direction]]:
        """For each block, the directions that applying the entry adds, in their order."""
        updates: list[list[Direction]] = [[] for _ in self.plan.blocks]
        measured = self.plan.measured
        for contribution in self.contributions:
            for step in range(self.plan.steps):
                scalars = contribution.scalars[step * measured : (step + 1) * measured]
                step_updates = self.plan.updates(contribution.owner, step, scalars, contribution.weight)
                for block, directions in zip(updates, step_updates, strict=True):
                    block.extend(directions)
        return updates
