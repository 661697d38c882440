"""Directions are a format: golden vectors, a second implementation written from its description, and properties."""

from __future__ import annotations

import hashlib
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from device_runtime.directions import CHUNK, DISTRIBUTIONS, Direction, DirectionKernel, derive_seed
from device_runtime.quantiles import NORMAL

SIZES = [1, 2, 31, 384, 4095, 4096, 4097, 100_000, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 4099]

GOLDEN = {
    ("rademacher", 7): "8cb32959208906fd",
    ("rademacher", 5000): "f3003abde8ed8af5",
    ("rademacher", CHUNK + 5000): "73a978802a3ea081",
    ("gaussian", 7): "93b9641eed3681b6",
    ("gaussian", 5000): "78417a71c1ab3ecf",
    ("gaussian", CHUNK + 5000): "520328ffd8ae2ae7",
}
GOLDEN_SEED = 4254051398216321934
GOLDEN_TABLE = "d9c3f5aa97ac35f6"


def z_by_description(distribution: str, seed: int, tensor: int, size: int) -> np.ndarray:
    """z(seed), element by element as the module's docstring says, each chunk reached by its counter."""
    elements = []
    for chunk in range(-(-size // CHUNK)):
        step = 512 if distribution == "rademacher" else 4096
        philox = np.random.Philox(key=np.array([seed, tensor], np.uint64), counter=chunk * step)
        words = [int(word) for word in philox.random_raw(2048 if distribution == "rademacher" else 16384)]
        for element in range(min(CHUNK, size - chunk * CHUNK)):
            if distribution == "rademacher":
                plane, column = divmod(element, 4096)
                word = words[column // 2] >> (32 * (column % 2)) & 0xFFFFFFFF
                elements.append(-1.0 if word >> (31 - plane) & 1 else 1.0)
            else:
                elements.append(NORMAL[words[element // 8] >> (8 * (element % 8)) & 0xFF])
    return np.array(elements, np.float32)


def z(distribution: str, seed: int, tensor: int, size: int) -> np.ndarray:
    out = np.empty(size, np.float32)
    DirectionKernel(distribution).shift(np.zeros(size, np.float32), [Direction(seed, 1.0)], tensor, out)
    return out


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("size", SIZES)
def test_kernel_follows_the_description(distribution: str, size: int) -> None:
    np.testing.assert_array_equal(z(distribution, 12345, 3, size), z_by_description(distribution, 12345, 3, size))


def test_golden_vectors() -> None:
    """These bytes may never change: replicas of older journals depend on them."""
    found = {
        (distribution, size): hashlib.sha256(z(distribution, 0xFEDC_BA98_7654_3210, 5, size).tobytes()).hexdigest()[:16]
        for distribution in DISTRIBUTIONS
        for size in (7, 5000, CHUNK + 5000)
    }
    assert found == GOLDEN
    assert derive_seed(1, "device-1", 2, 1, (0, 3)) == GOLDEN_SEED
    assert hashlib.sha256(NORMAL.tobytes()).hexdigest()[:16] == GOLDEN_TABLE


def test_quantiles_are_those_of_the_normal_distribution() -> None:
    exact = np.array([NormalDist().inv_cdf((i + 0.5) / 256) for i in range(256)])
    np.testing.assert_allclose(NORMAL, exact / np.sqrt((exact**2).mean()), rtol=1e-7)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_moments(distribution: str) -> None:
    a, b = z(distribution, 1, 0, 1_000_000), z(distribution, 2, 0, 1_000_000)
    assert abs(a.mean()) < 0.005
    assert abs(a.var() - 1) < 0.005
    assert abs(float(np.mean(a.astype(np.float64) * b))) < 0.005
    assert abs(float(np.mean(a[:-1].astype(np.float64) * a[1:]))) < 0.005


coefficients = st.floats(-10, 10, width=32)
directions = st.lists(st.builds(Direction, st.integers(0, 2**64 - 1), coefficients), min_size=0, max_size=4)


@settings(max_examples=50, deadline=None)
@given(directions, st.sampled_from(DISTRIBUTIONS), st.integers(1, 9000), st.integers(0, 1000))
def test_a_sum_is_formed_in_order_in_float32(terms: list[Direction], distribution: str, size: int, tensor: int) -> None:
    weights = np.random.default_rng(size).standard_normal(size, np.float32)
    out = np.empty_like(weights)
    kernel = DirectionKernel(distribution)
    kernel.shift(weights, terms, tensor, out)
    expected = weights
    if terms:
        total = np.float32(terms[0].coefficient) * z(distribution, terms[0].seed, tensor, size)
        for term in terms[1:]:
            total = total + np.float32(term.coefficient) * z(distribution, term.seed, tensor, size)
        expected = weights + total
    np.testing.assert_array_equal(out, expected)
    kernel.shift(weights, terms, tensor, weights)
    np.testing.assert_array_equal(weights, expected)


@settings(max_examples=50, deadline=None)
@given(directions, st.sampled_from(DISTRIBUTIONS), st.integers(1, 9000))
def test_a_pair_is_two_shifts(offsets: list[Direction], distribution: str, size: int) -> None:
    weights = np.random.default_rng(size).standard_normal(size, np.float32)
    kernel, direction = DirectionKernel(distribution), Direction(99, 0.125)
    plus, minus, above, below = (np.empty_like(weights) for _ in range(4))
    before = weights.copy()
    kernel.shift_pair(weights, offsets, direction, 4, plus, minus)
    kernel.shift(weights, [*offsets, direction], 4, above)
    kernel.shift(weights, [*offsets, Direction(99, -0.125)], 4, below)
    np.testing.assert_array_equal(plus, above)
    np.testing.assert_array_equal(minus, below)
    np.testing.assert_array_equal(weights, before)


def test_seeds_differ_in_whatever_differs() -> None:
    variants = [
        (1, "", 0, 0, (0,)), (2, "", 0, 0, (0,)), (1, "a", 0, 0, (0,)), (1, "", 1, 0, (0,)), (1, "", 0, 0, (1,)),
        (1, "", 0, 1, (0, 0)), (1, "", 0, 1, (0, 1)), (1, "", 0, 1, (1, 0)), (1, "b", 0, 0, (0,)),
    ]  # fmt: skip
    assert len({derive_seed(*variant) for variant in variants}) == len(variants)
