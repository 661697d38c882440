"""What leaves a device of a plan with noise: clipped, cut to whole numbers, summed, and noise on it.

The unit of the promise is clipped in L2, once: what a device measured with its loss, or what each of its examples
gives, which is then summed. Two neighbours differ in one unit that is there or counts as nothing; that the device took
part is not hidden. So a release changes by at most :func:`sensitivity`. It does not say how many examples a device has.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from fedspzo.device_runtime.privacy.budget import discrete_rho
from fedspzo.device_runtime.privacy.noise import Below, add_noise
from fedspzo.device_runtime.privacy.quantise import LOSS_UNIT, Grid, quantise
from fedspzo.device_runtime.protocol.plan import Noise, Plan

#: The largest word of a release: float32 holds it, and sums of 128 devices fit in words of 32 bits.
LARGEST_WORD = 1 << 23


def make_grid(noise: Noise) -> Grid:
    """The whole numbers that what one unit adds is cut to."""
    return Grid(noise.clip, 1, noise.fit)


def sensitivity(noise: Noise) -> int:
    """Most that one unit changes a release in L2."""
    return make_grid(noise).steps


def cost(plan: Plan) -> float:
    """ρ of one round for one unit that takes part, where as many devices add noise as the plan counts on."""
    (noise,) = plan.noise
    return discrete_rho(sensitivity(noise), noise.variance, noise.shares, plan.scalars + 1)


def cost_to_server(plan: Plan) -> float:
    """ρ of one round, as :func:`cost`, against who gets what is sent: without masks the noise of one device alone."""
    (noise,) = plan.noise
    return cost(plan if plan.masking else replace(plan, noise=(replace(noise, shares=1),)))


def units_within(plan: Plan, unit: str) -> int:
    """Units of a plan that one ``unit`` has at most: all of a device's data are at most the examples that a step draws.

    Together these cost their number squared times the ρ of one.
    """
    return plan.batch if (plan.noise[0].unit, unit) == ("example", "device") else 1


def make_release(
    plan: Plan, scalars: np.ndarray, losses: np.ndarray, below: Below = secrets.randbelow
) -> tuple[np.ndarray, float]:
    """What a device sends instead of what it measured.

    Args:
        scalars: float64 [examples, scalars], of each example that it drew; one that is not finite counts as nothing.
        losses: float64 [examples].

    Returns:
        Scalars, float32 of shape (scalars,), and the loss.
    """
    (noise,) = plan.noise
    grid = make_grid(noise)
    rows = np.column_stack([scalars, losses])
    rows = np.where(np.isfinite(rows).all(axis=1, keepdims=True), rows, 0.0)
    if noise.unit == "device":
        rows = rows.mean(axis=0, keepdims=True)
    words = np.sum([quantise(row[:-1], float(row[-1]), 1, grid) for row in rows], axis=0)
    return grid.mean(add_noise(words, noise.variance, below), count_units(plan))


def count_units(plan: Plan) -> int:
    """Units that a device's release is the mean of."""
    return 1 if plan.noise[0].unit == "device" else plan.batch


def words_of(plan: Plan, scalars: Sequence[float], loss: float) -> np.ndarray:
    """The whole numbers that :func:`make_release` made scalars and loss of: int64 [scalars + 1].

    Float32 holds them exactly, as large as plans make them.
    """
    grid = make_grid(plan.noise[0])
    shares = np.append(np.asarray(scalars, np.float64) / grid.clip, loss / LOSS_UNIT)
    words = np.rint(shares * grid.steps * count_units(plan)).astype(np.int64)
    return np.clip(words, -LARGEST_WORD, LARGEST_WORD)


def mean(plan: Plan, words: np.ndarray, devices: int) -> tuple[np.ndarray, float]:
    """Scalars, float32 of shape (scalars,), and loss that a sum of some devices' words, int64, stands for."""
    return make_grid(plan.noise[0]).mean(words, devices * count_units(plan))
