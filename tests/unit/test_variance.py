"""The estimator's variance: measured with many seeds on the engine, it is what its formula says."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from gradients import Autograd
from variance import squared_errors

from fedspzo.broker.rounds.variance import batch_variance, cohort_variance, curvature_variance, kurtosis, step_variance
from fedspzo.device_runtime.data.store import DataStore
from fedspzo.device_runtime.directions.format import DISTRIBUTIONS, Direction, NumpyKernel
from fedspzo.device_runtime.engines.protocol import create_engine
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.protocol.plan import Block, Plan
from fedspzo.device_runtime.replica.weights import Replica
from fedspzo.device_runtime.step.runner import Forward

WHOLE, TWO = (Block(5, 8, 1.0, -1.0),), (Block(3, 2, 0.5, -1.0), Block(5, 3, 1.0, -1.0))


@pytest.mark.parametrize(
    ("blocks", "sides", "distribution", "repeats"),
    [
        (WHOLE, 2, "gaussian", 300),
        pytest.param(TWO, 2, "rademacher", 1200, marks=pytest.mark.slow),
        pytest.param(TWO, 1, "gaussian", 1200, marks=pytest.mark.slow),
    ],
)
def test_a_step_varies_as_the_formula_says(
    bundle: Bundle,
    store: DataStore,
    make_plan: Callable[..., Plan],
    blocks: tuple[Block, ...],
    sides: int,
    distribution: str,
    repeats: int,
) -> None:
    """E|ĝ − g|² of each block on a given batch, within 10 %, where a standard error is 3 %."""
    forward = Forward(create_engine("litert"), Replica(bundle))
    plan = make_plan(blocks=blocks, sides=sides, distribution=distribution)
    batch = np.arange(4)
    gradient = [np.mean(own, axis=0) for own in zip(*Autograd(forward, store).gradients(plan, batch), strict=True)]
    errors = squared_errors(forward, store, plan, lambda _: [batch], gradient, repeats).mean(axis=0)
    squares = [float(own @ own) for own in gradient]
    np.testing.assert_allclose(errors, step_variance(plan, [own.size for own in gradient], squares), rtol=0.1)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_kurtosis_is_that_of_the_directions(distribution: str) -> None:
    z = np.zeros(1 << 20, np.float32)
    NumpyKernel(distribution).shift({0: z}, [Direction(3, 1.0)], {0: z})
    assert np.mean(z.astype(np.float64) ** 4) == pytest.approx(kurtosis(distribution), rel=0.01)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_a_direction_on_the_curvature(distribution: str, make_plan: Callable[..., Plan]) -> None:
    """What a quadratic form alone puts into a one-sided estimate, with directions drawn in numpy."""
    random = np.random.default_rng(0)
    half = random.standard_normal((40, 40))
    hessian = half + half.T - np.diag(np.diag(half + half.T)) + np.eye(40) / 2  # a diagonal that counts for little
    plan = make_plan(blocks=(Block(5, 1, 0.5, -1.0),), sides=1, distribution=distribution)
    draws = np.zeros((20000, 40), np.float32)
    NumpyKernel(distribution).shift({0: draws}, [Direction(3, 1.0)], {0: draws})
    z = draws.astype(np.float64)
    found = np.mean((plan.epsilon * 0.5 / 2 * np.sum(z @ hessian * z, axis=1)) ** 2 * np.sum(z**2, axis=1))
    expected = curvature_variance(plan, [40], [np.trace(hessian)], [np.sum(hessian**2)])
    assert found == pytest.approx(expected[0], rel=0.2)  # with 40 weights |z|² varies, and signs lack the diagonal


def test_a_frozen_block_and_two_sided_curvature_vary_by_nothing(make_plan: Callable[..., Plan]) -> None:
    frozen = make_plan(blocks=(Block(3, 0, 0.25, 1e-3), Block(5, 4, 1.0, 1e-2)))
    assert step_variance(frozen, [100, 50], [1.0, 2.0]) == [0.0, 49 * 2 / 4]
    assert curvature_variance(frozen, [100, 50], [1.0, 1.0], [1.0, 1.0]) == [0.0, 0.0]


def test_nested_blocks_are_noisier_than_blocks_alone(make_plan: Callable[..., Plan]) -> None:
    """Block 2's estimate takes block 1's whole term, block 1's the mean of block 2's under it; scales weigh both."""
    blocks = (Block(3, 1, 0.25, 1e-3), Block(5, 4, 1.0, 1e-2))
    first, second = step_variance(make_plan(blocks=blocks), [100, 50], [3.0, 2.0])
    assert first == pytest.approx(99 * 3 + 100 * 4**2 * 2 / 4)
    assert second == pytest.approx(49 * 2 / 4 + 50 * 0.25**2 * 3 / 4)
    assert step_variance(make_plan(blocks=blocks, sides=1), [100, 50], [3.0, 2.0]) == [99 * 3, 49 * 2 / 4]


def test_cohorts_and_batches() -> None:
    assert cohort_variance([4.0, 8.0], [0.5, 0.5]) == 3.0
    assert batch_variance(6.0, 3, 3) == 0.0
    spread = np.arange(5.0) - 2
    pairs = [(spread[i] + spread[j]) / 2 for i in range(5) for j in range(5) if i != j]
    assert batch_variance(float(np.mean(spread**2)), 2, 5) == pytest.approx(np.mean(np.square(pairs)))
