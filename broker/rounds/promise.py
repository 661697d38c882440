"""How much a step promises to lower what it measured, and that none is taken that promises more than can be.

Along a direction with the derivative d a step moves the weights by η·d over the number of directions, which lowers the
loss by η·d² over it, to first order. So the step promises Σ η·v over the blocks, with v the mean square of a block's
derivatives. No loss falls by more than it is. A step that promises more is long enough for curvature to decide, and
the loss may well rise: Polyak's step size and its stochastic kin (arXiv 2002.10542) end where the promise is the loss.
The bound here is a number, since results are often summed and a loss is not always sent; the step keeps its direction.
"""

from __future__ import annotations

import math
from dataclasses import replace

from fedspzo.device_runtime.protocol.entry import Entry

#: What a plan's rule is called after its name where steps are bounded by their promise.
BOUNDED = "/promise"
#: The largest promise of a step, in nats.
MOST = 0.5


def mean_squares(entry: Entry) -> list[float | None]:
    """Mean square of each block's scalars; None for a block that was frozen.

    Two-sided, a scalar is the derivative along directions of all blocks together, and serves each of them.
    """
    plan = entry.plan
    squares: list[list[float]] = [[] for _ in plan.blocks]
    for contribution in entry.contributions:
        for start in range(0, plan.scalars, plan.measured):
            for block, found in zip(plan.blocks, squares, strict=True):
                count = block.fanout if plan.sides == 1 else plan.measured * (block.fanout > 0)
                scalars = contribution.scalars[start : start + count]
                found += [contribution.weight * (scalar / block.scale) ** 2 for scalar in scalars]
                start += count if plan.sides == 1 else 0
    shares = math.fsum(contribution.weight for contribution in entry.contributions)
    sources = len(entry.contributions) / (shares or 1.0)  # a rule of a user's own may leave a round out
    return [sources * math.fsum(found) / len(found) if found else None for found in squares]


def promise(entry: Entry) -> float:
    """What the step would lower the loss by, were it linear; of all local steps, before the step was bounded."""
    squares = zip(entry.plan.blocks, mean_squares(entry), strict=True)
    return entry.plan.steps * math.fsum(block.learning_rate * (square or 0.0) for block, square in squares)


def bound(entry: Entry) -> Entry:
    """The entry, with less weight where its step promises more than :data:`MOST`; its scalars stay what they are."""
    promised = promise(entry)
    if promised <= MOST:
        return entry
    kept = [replace(each, weight=each.weight * MOST / promised) for each in entry.contributions]
    return replace(entry, contributions=tuple(kept))
