"""Directions are a format: golden vectors, a second implementation written from its description, and properties."""

from __future__ import annotations

import hashlib
import shutil
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedspzo.device_runtime.directions.format import (
    CHUNK,
    DISTRIBUTIONS,
    Direction,
    DirectionKernel,
    NumpyKernel,
    Step,
    derive_seed,
)
from fedspzo.device_runtime.directions.halves import DTYPES
from fedspzo.device_runtime.directions.native import LIBRARY, make_kernel
from fedspzo.device_runtime.directions.quantiles import NORMAL
from fedspzo.device_runtime.model.arrays import aligned_empty

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


def kernels(distribution: str) -> list[DirectionKernel]:
    """The one in numpy, and the one in C with one thread and with several."""
    return [NumpyKernel(distribution), make_kernel(distribution, 1), make_kernel(distribution, 3)]


def z(kernel: DirectionKernel, seed: int, tensor: int, size: int) -> np.ndarray:
    out = np.empty(size, np.float32)
    kernel.shift({tensor: np.zeros(size, np.float32)}, [Direction(seed, 1.0)], {tensor: out})
    return out


@pytest.mark.skipif(shutil.which("cc") is None, reason="without a C compiler the package is installed without it")
def test_the_kernel_in_c_is_built() -> None:
    assert LIBRARY.exists(), "install the package again: pip install -e ."
    assert not isinstance(make_kernel("rademacher"), NumpyKernel)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("size", SIZES)
def test_kernels_follow_the_description(distribution: str, size: int) -> None:
    expected = z_by_description(distribution, 12345, 3, size)
    for kernel in kernels(distribution):
        np.testing.assert_array_equal(z(kernel, 12345, 3, size), expected)


@pytest.mark.parametrize("which", range(3))
def test_golden_vectors(which: int) -> None:
    """These bytes may never change: replicas of older journals depend on them."""
    seed = 0xFEDC_BA98_7654_3210
    found = {
        (distribution, size): hashlib.sha256(z(kernels(distribution)[which], seed, 5, size).tobytes()).hexdigest()[:16]
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
    kernel = NumpyKernel(distribution)
    a, b = z(kernel, 1, 0, 1_000_000), z(kernel, 2, 0, 1_000_000)
    assert abs(a.mean()) < 0.005
    assert abs(a.var() - 1) < 0.005
    assert abs(float(np.mean(a.astype(np.float64) * b))) < 0.005
    assert abs(float(np.mean(a[:-1].astype(np.float64) * a[1:]))) < 0.005


coefficients = st.floats(-10, 10, width=32)
directions = st.lists(st.builds(Direction, st.integers(0, 2**64 - 1), coefficients), min_size=0, max_size=20)
sizes = st.one_of(st.integers(1, 9000), st.integers(CHUNK - 5, CHUNK + 5000), st.just(3 * CHUNK + 77))


@settings(max_examples=40, deadline=None)
@given(directions, st.sampled_from(DISTRIBUTIONS), st.integers(1, 9000), st.integers(0, 1000))
def test_a_sum_is_formed_in_order_in_float32(terms: list[Direction], distribution: str, size: int, tensor: int) -> None:
    weights = np.random.default_rng(size).standard_normal(size, np.float32)
    expected = weights.copy()
    if terms:
        unit = NumpyKernel(distribution)
        total = np.float32(terms[0].coefficient) * z(unit, terms[0].seed, tensor, size)
        for term in terms[1:]:
            total = total + np.float32(term.coefficient) * z(unit, term.seed, tensor, size)
        expected = weights + total
    for kernel in kernels(distribution):
        out, same = np.empty_like(weights), weights.copy()
        kernel.shift({tensor: weights}, terms, {tensor: out})
        kernel.shift({tensor: same}, terms, {tensor: same})
        np.testing.assert_array_equal(out, expected)
        np.testing.assert_array_equal(same, expected)


@settings(max_examples=40, deadline=None)
@given(directions, st.sampled_from(DISTRIBUTIONS), st.integers(1, 9000))
def test_a_pair_is_two_shifts(offsets: list[Direction], distribution: str, size: int) -> None:
    weights = np.random.default_rng(size).standard_normal(size, np.float32)
    direction = Direction(99, 0.125)
    for kernel in kernels(distribution):
        plus, minus, above, below = (np.empty_like(weights) for _ in range(4))
        before = weights.copy()
        kernel.shift_pair({4: weights}, offsets, direction, {4: plus}, {4: minus})
        kernel.shift({4: weights}, [*offsets, direction], {4: above})
        kernel.shift({4: weights}, [*offsets, Direction(99, -0.125)], {4: below})
        np.testing.assert_array_equal(plus, above)
        np.testing.assert_array_equal(minus, below)
        np.testing.assert_array_equal(weights, before)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(directions, max_size=4),
    st.sampled_from(DISTRIBUTIONS),
    st.sampled_from(list(DTYPES)),
    st.lists(sizes, min_size=1, max_size=3),
    st.floats(-9, 4),
)
def test_kernels_agree_to_the_bit(
    sums: list[list[Direction]], distribution: str, dtype: str, sizes: list[int], magnitude: float
) -> None:
    """Steps one after the other on several tensors, of any type, down to subnormal numbers and up to infinity."""
    random = np.random.default_rng(len(sums))
    drawn = [random.standard_normal(size, np.float32) * np.float32(10**magnitude) for size in sizes]
    stored = [_stored(weights, dtype) for weights in drawn]
    steps = [Step(terms, rounding) for rounding, terms in enumerate(sums)]
    shifts = [terms for terms in sums if terms]
    found = []
    for kernel in kernels(distribution):
        weights = {3 * index: array.copy() for index, array in enumerate(stored)}
        plus, minus = ({index: np.empty(w.size, np.float32) for index, w in weights.items()} for _ in range(2))
        for terms in shifts:
            kernel.shift_pair(weights, terms[:-1], terms[-1], plus, minus)
        kernel.step(weights, steps)
        found.append(
            [array.tobytes() for of in (weights, plus, minus) if of is weights or shifts for array in of.values()]
        )
    assert found[0] == found[1] == found[2]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.builds(Direction, st.integers(0, 2**64 - 1), coefficients), min_size=0, max_size=10),
    st.sampled_from(DISTRIBUTIONS),
    st.sampled_from(list(DTYPES)),
    st.sampled_from([8, 16, 32, 64]),
    st.integers(1, 400),
    st.integers(1, 12),
)
def test_panels_are_a_matrix_in_another_order(
    terms: list[Direction], distribution: str, dtype: str, panel: int, rows: int, panels: int
) -> None:
    """A weight [1, rows, columns] and its bias [columns], written to memory as engines pack them, nothing beside."""
    random = np.random.default_rng(rows)
    drawn = [random.standard_normal(shape, np.float32) for shape in ((1, rows, panels * panel), (panels * panel,))]
    stored = dict(enumerate(_stored(array, dtype) for array in drawn))
    expected = {index: np.empty(array.shape, np.float32) for index, array in stored.items()}
    NumpyKernel(distribution).shift(stored, terms, expected)
    for kernel in kernels(distribution):
        memory = aligned_empty((panels, rows + 2, panel))
        memory[...] = 7
        kernel.shift(stored, terms, {0: memory[:, 1:-1].transpose(1, 0, 2), 1: memory[:, 0]})
        np.testing.assert_array_equal(memory[:, 1:-1].transpose(1, 0, 2).reshape(1, rows, -1), expected[0])
        np.testing.assert_array_equal(memory[:, 0].reshape(-1), expected[1])
        assert (memory[:, -1] == 7).all()


def _stored(weights: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "bfloat16":
        return (weights.view(np.uint32) >> 16).astype("<u2")
    with np.errstate(over="ignore"):
        return weights.astype(DTYPES[dtype])


def test_seeds_differ_in_whatever_differs() -> None:
    variants = [
        (1, "", 0, 0, (0,)), (2, "", 0, 0, (0,)), (1, "a", 0, 0, (0,)), (1, "", 1, 0, (0,)), (1, "", 0, 0, (1,)),
        (1, "", 0, 1, (0, 0)), (1, "", 0, 1, (0, 1)), (1, "", 0, 1, (1, 0)), (1, "b", 0, 0, (0,)),
    ]  # fmt: skip
    assert len({derive_seed(*variant) for variant in variants}) == len(variants)
