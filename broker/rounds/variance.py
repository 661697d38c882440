"""The variance of FedSPZO's gradient estimate, block by block, as formulas.

Let block b have n_b trained weights with gradient g_b, scale s_b and P_b directions z_b, whose entries are independent
and symmetric about zero with variance 1 and kurtosis κ = E z⁴. To first order in ε a scalar is d = Σ_c s_c z_c·g_c,
over the blocks that were perturbed together, and block b's estimate is the mean of (d/s_b)·z_b. What d holds of z_b
itself gives (z_b·g_b) z_b, with mean g_b; since E[z_i² z_j²] is 1 and E[z_i⁴] is κ,

    E|(z·g) z − g|² = (n + κ − 2)·|g|²,

(n − 1)·|g|² for random signs, (n + 1)·|g|² for normal numbers. What d holds of another block's z_c has mean zero and
the mean square (s_c/s_b)²·|g_c|²·n_b. All these terms are uncorrelated, so that their mean over paths divides each by
the number of independent draws in it: P_b for a block's own, and for that with another block as many as the later one
of the two has paths, since the scalars under a path are averaged:

    E|ĝ_b − g_b|² = (n_b + κ − 2)·|g_b|²/P_b + n_b·Σ_{c ≠ b} (s_c/s_b)²·|g_c|²/P_max(b, c).

One-sided, blocks are perturbed alone and the sum falls away. The scalar then has the curvature's ½·ε·s_b²·z_b·H_b z_b
also, whose mean is ½·ε·s_b²·tr H_b; times z_b, which is as often −z_b, it has mean zero and adds to the variance.
What is of higher order in ε is left out.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedspzo.device_runtime.directions.quantiles import NORMAL
from fedspzo.device_runtime.protocol.plan import Plan


def kurtosis(distribution: str) -> float:
    """E z⁴ of an entry of a direction: 1 for signs; for the table of normal quantiles a little below a normal's 3."""
    return 1.0 if distribution == "rademacher" else float(np.mean(NORMAL.astype(np.float64) ** 4))


def step_variance(plan: Plan, weights: Sequence[int], squares: Sequence[float]) -> list[float]:
    """E|ĝ_b − g_b|² of each block, of one device's local step on a given batch; 0 for one that is frozen.

    Args:
        plan: its blocks, sides and distribution count.
        weights: n_b, trained weights of each block.
        squares: |g_b|², of the gradient of the batch's mean loss.
    """
    tail = kurtosis(plan.distribution) - 2
    paths = [sum(1 for _ in plan.paths(block)) for block in range(len(plan.blocks))]
    found = []
    for b, (block, own, size) in enumerate(zip(plan.blocks, paths, weights, strict=True)):
        if not own:
            found.append(0.0)
            continue
        variance = (size + tail) * squares[b] / own
        for c, other in enumerate(plan.blocks):
            if plan.sides == 2 and c != b and paths[c]:
                variance += size * (other.scale / block.scale) ** 2 * squares[c] / paths[max(b, c)]
        found.append(variance)
    return found


def curvature_variance(
    plan: Plan, weights: Sequence[int], traces: Sequence[float], norms: Sequence[float]
) -> list[float]:
    """What the curvature adds to :func:`step_variance`, one-sided: ¼·(ε s_b)²·n_b·E[(z·Hz)²]/P_b; two-sided nothing.

    E[(z·Hz)²] is (tr H)² + 2·|H|² for normal numbers; signs have less by twice the diagonal's squares, left out here.

    Args:
        plan: see :func:`step_variance`; its ε counts as well.
        weights: see :func:`step_variance`.
        traces: tr H_b, of each block's own part of the Hessian.
        norms: |H_b|², the sum of its squares.
    """
    if plan.sides == 2:
        return [0.0] * len(plan.blocks)
    return [
        (plan.epsilon * block.scale) ** 2 / 4 * size * (trace**2 + 2 * norm) / block.fanout if block.fanout else 0.0
        for block, size, trace, norm in zip(plan.blocks, weights, traces, norms, strict=True)
    ]


def cohort_variance(variances: Sequence[float], shares: Sequence[float]) -> float:
    """Of a weighted mean of devices that each have directions of their own: Σ w²·V.

    With directions that all share, a cohort is one device with the cohort's mean gradient: :func:`step_variance`.

    Args:
        variances: of one block's estimate by each device, about the gradient of that device's own batch.
        shares: of the devices; they sum to 1.
    """
    return float(np.dot(np.square(shares), variances))


def batch_variance(spread: float, batch: int, examples: int) -> float:
    """E|g_B − g|², the gradient of a batch drawn without replacement about that of all of a device's examples.

    An estimate ĝ on a batch has mean g_B, so that E|ĝ − g|² is the sum of this and of its variance on the batch, in
    which E|g_B|² = |g|² + this stands for |g|².

    Args:
        spread: mean over the examples of |g_i − g|².
        batch, examples: how many are drawn, of how many.
    """
    return spread / batch * (examples - batch) / max(examples - 1, 1)
