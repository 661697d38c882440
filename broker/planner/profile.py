"""What the planner knows of a model, its data and an engine: plain numbers, measured by ``probe``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

#: What a cost is counted in.
Unit = Literal["flops", "seconds"]


@dataclass(frozen=True)
class Segment:
    """Consecutive stages that blocks are not cut within; the first of them has something to train.

    Attributes:
        start, stop: its stages, from the first to before the last.
        weights: how many are trained.
        size: their root mean square.
        magnitude: mean |g|² of the gradient of one example's loss with respect to them: the mean square of its scalars.
        trace: tr(H) of the mean loss with respect to them, the larger of what second differences say and the magnitude.
        probed: size of the perturbation that they were measured with.
        flops: of a forward pass of its stages: batch size → operations.
        seconds: of the same on this engine.
        shift_seconds: to write its weights with a perturbation.
    """

    start: int
    stop: int
    weights: int
    size: float
    magnitude: float
    trace: float
    flops: Mapping[int, float]
    seconds: Mapping[int, float]
    shift_seconds: float
    probed: float


@dataclass(frozen=True)
class Profile:
    """A model with its data on an engine.

    Attributes:
        segments: what is trained, in order; stages before the first are not.
        stages: of the whole network.
        flops, seconds: of the stages before the first segment: batch size → operations and seconds.
        between: inner product of the gradients of two devices' examples, as a share of an example's |g|².
        within: the same of two examples of one device.
        sharpness: tr(H²)/tr(H)², the inverse of how many directions are curved.
        devices: in the fleet.
        examples: that a device has on average.
        loss: mean over the examples that were probed; of another objective than the loss, the mean cost.
        unit: mean size of an example's cost, that of the loss itself.
        loss_uncertainty: standard error of the loss, by its spread over the batches; None where it shows none.
        nonzero: share of the one-sided scalars of batches that are not zero.
        coarse: whether the cost has few values, so that perturbations are as large as those that were measured with.
    """

    segments: tuple[Segment, ...]
    stages: int
    flops: Mapping[int, float]
    seconds: Mapping[int, float]
    between: float
    within: float
    sharpness: float
    devices: int
    examples: float
    loss: float
    unit: float
    loss_uncertainty: float | None = None
    nonzero: float = 1.0
    coarse: bool = False

    @property
    def batches(self) -> tuple[int, ...]:
        """Batch sizes that there are graphs for."""
        return tuple(sorted(self.flops))

    @property
    def signal(self) -> float:
        """|ḡ|² of the fleet's mean loss, as a share of an example's |g|²."""
        return self.within / self.devices + (1 - 1 / self.devices) * self.between

    def moment(self, cohort: int, batch: int) -> float:
        """Mean square of a derivative averaged over the batches of a cohort, as a share of an example's."""
        cohort = min(cohort, self.devices)
        return self.within / cohort + (1 - 1 / cohort) * self.between + (1 - self.within) / (cohort * batch)

    def deviation(self, segment: Segment, batch: int) -> float:
        """Standard deviation of one device's scalars of a segment, over directions, devices and batches."""
        return math.sqrt(self.moment(1, batch) * segment.magnitude)

    def forward(self, unit: Unit, batch: int, start: int | None = None) -> float:
        """Cost of a pass with ``batch`` examples through all, or from a segment to the end."""
        before = 0.0 if start is not None else (self.flops if unit == "flops" else self.seconds)[batch]
        after = self.segments[start or 0 :]
        return before + math.fsum((p.flops if unit == "flops" else p.seconds)[batch] for p in after)
