"""Results as whole numbers, whose sums are exact: clipped once in L2, and weighted by examples.

The vector (scalars / clip, loss / :data:`LOSS_UNIT`) of a device is scaled down to L2 norm 1 where it is larger, and
cut to whole numbers towards zero, so that they keep to the clip. A sum of as many devices as a :class:`Grid` is for
fits in a signed word of 32 bits. Nothing depends on the order of a sum, so a masked sum equals a plain one bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedspzo.device_runtime.errors import PlanError

#: What a loss of 1 in the clipped vector stands for.
LOSS_UNIT = 64.0
#: The largest size of a word.
LARGEST = (1 << 31) - 1
#: The fewest steps between zero and the clip.
_FEWEST_STEPS = 1 << 10


@dataclass(frozen=True)
class Grid:
    """The whole numbers that results are cut to.

    Attributes:
        clip: largest L2 norm of a device's scalars.
        examples: most that a device counts in a round.
        devices: the sum of as many devices must fit.
    """

    clip: float
    examples: int
    devices: int

    def __post_init__(self) -> None:
        """Raises PlanError where the steps would be too coarse."""
        if self.steps < _FEWEST_STEPS:
            raise PlanError(
                "plan.coarse-sums",
                f"a sum of {self.devices} devices with {self.examples} examples each does not fit in 32 bits; lower"
                " batch, steps or the devices in a sum",
            )

    @property
    def limit(self) -> int:
        """Largest size of a device's word."""
        return LARGEST // self.devices

    @property
    def steps(self) -> int:
        """Whole numbers between zero and the clip, for one example."""
        return self.limit // self.examples

    def mean(self, words: np.ndarray, examples: int) -> tuple[np.ndarray, float]:
        """Scalars, float32 of shape (scalars,), and loss that a sum of :func:`quantise`'s words, int64, stands for.

        Args:
            examples: of all devices together.
        """
        shares = words / (self.steps * examples)
        return (shares[:-1] * self.clip).astype(np.float32), float(shares[-1] * LOSS_UNIT)


def quantise(scalars: Sequence[float], loss: float, examples: int, grid: Grid) -> np.ndarray:
    """The words of a result, int64 of shape (scalars + 1,): those of the scalars, then that of the loss.

    Their L2 norm is at most ``examples · grid.steps``.
    """
    vector = np.append(np.asarray(scalars, np.float64) / grid.clip, loss / LOSS_UNIT)
    norm = math.sqrt(math.fsum(vector**2))
    if norm > 1:
        vector /= norm * (1 + 2**-40)  # no rounding brings it beyond the clip again
    return examples * np.trunc(grid.steps * vector).astype(np.int64)
