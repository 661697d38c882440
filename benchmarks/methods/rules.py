"""Published zeroth-order rules whose directions or steps are not sums of seeded ones: pure functions of plain state.

A rule says what is added to the weights for a seed, and what a round does with a gradient estimate: the mean of
scalar · direction over the round's directions. All measure one-sided around a centre, as their baselines do.
Tensors are index → float32 array; a matrix is [inputs, outputs].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

import numpy as np

from fedspzo.device_runtime.directions.format import Direction
from fedspzo.device_runtime.directions.native import make_kernel

Tensors = Mapping[int, np.ndarray]
S = TypeVar("S")

_KERNEL = make_kernel("rademacher")


class Rule(Protocol[S]):
    """A way to perturb and to step."""

    def start(self, weights: Tensors) -> S:
        """The state before the first round, for weights of some shapes."""

    def begin(self, state: S, round: int) -> S:
        """The state that a round measures with."""

    def add(self, state: S, out: Tensors, terms: Sequence[tuple[int, float]]) -> None:
        """Add coefficient · direction to ``out`` for each (seed, coefficient)."""

    def step(self, state: S, gradient: Tensors) -> tuple[S, Tensors]:
        """The state after the round, and what to descend along; ``gradient`` may be changed in place."""


def _add_signs(out: Tensors, terms: Sequence[tuple[int, float]]) -> None:
    """Directions of ±1, as in the plans of jobs."""
    _KERNEL.shift(out, [Direction(seed, coefficient) for seed, coefficient in terms], out)


def _normal(seed: int, tensor: int, shape: tuple[int, ...]) -> np.ndarray:
    """float32, standard normal, for a seed and a tensor."""
    return np.random.Generator(np.random.Philox(key=np.array([seed, tensor], np.uint64))).standard_normal(
        shape, np.float32
    )


@dataclass(frozen=True)
class Momentum:
    """Heavy ball: v ← β·v + (1 − β)·ĝ, and a step along v.

    Attributes:
        decay: β.
    """

    decay: float = 0.9

    def start(self, weights: Tensors) -> Tensors:
        """v = 0."""
        return {index: np.zeros_like(array) for index, array in weights.items()}

    def begin(self, state: Tensors, round: int) -> Tensors:
        """Nothing changes."""
        return state

    def add(self, state: Tensors, out: Tensors, terms: Sequence[tuple[int, float]]) -> None:
        """Directions of ±1."""
        _add_signs(out, terms)

    def step(self, state: Tensors, gradient: Tensors) -> tuple[Tensors, Tensors]:
        """The velocity is the step; v is a mean, so that rates compare with those of plain steps."""
        moved = {index: self.decay * state[index] + (1 - self.decay) * array for index, array in gradient.items()}
        return moved, moved


@dataclass(frozen=True)
class Curvature:
    """HiSo (arXiv 2506.02370): directions H^(−1/2)·z, where H follows the square of the global estimate.

    Attributes:
        smoothing: ν of H ← (1 − ν)·H + ν·ĝ², from H = 1.
    """

    smoothing: float

    def start(self, weights: Tensors) -> Tensors:
        """H = 1."""
        return {index: np.ones_like(array) for index, array in weights.items()}

    def begin(self, state: Tensors, round: int) -> Tensors:
        """Nothing changes."""
        return state

    def add(self, state: Tensors, out: Tensors, terms: Sequence[tuple[int, float]]) -> None:
        """Σ coefficient · z, divided by √H."""
        total = {index: np.zeros_like(array) for index, array in out.items()}
        _add_signs(total, terms)
        for index, array in out.items():
            array += total[index] / np.sqrt(state[index])

    def step(self, state: Tensors, gradient: Tensors) -> tuple[Tensors, Tensors]:
        """Descend along the estimate, which has H^(−1/2) twice: in what was measured, and in its directions."""
        nu = np.float32(self.smoothing)
        return {index: (1 - nu) * state[index] + nu * array**2 for index, array in gradient.items()}, gradient


@dataclass(frozen=True)
class Factors:
    """What low-rank rules keep: for each matrix [m, n] a factor, and what is remembered in its small space.

    Attributes:
        bases: of each matrix W [outputs m, inputs n], float32 [m, rank] or [n, rank], see the rule.
        memory: of each matrix, a momentum [rank, n].
        frames: of each matrix, right singular vectors [n, k] of the momentum.
    """

    bases: Tensors
    memory: Tensors
    frames: Tensors


def _matrices(weights: Tensors) -> dict[int, tuple[int, int]]:
    """Outputs and inputs of each."""
    return {index: (array.shape[1], array.shape[0]) for index, array in weights.items() if array.ndim == 2}


@dataclass(frozen=True)
class LowRank:
    """LoZO (arXiv 2410.07698): matrices move along U·Vᵀ/√rank, U by seed, V drawn again every ``every`` rounds.

    As EGGROLL's (2511.16652), directions of a matrix have a rank far below its own. Vectors have normal directions.
    """

    rank: int = 4
    every: int = 100

    def start(self, weights: Tensors) -> Factors:
        """V comes with the first round."""
        bases = {index: np.zeros((shape[1], self.rank), np.float32) for index, shape in _matrices(weights).items()}
        return Factors(bases, {}, {})

    def begin(self, state: Factors, round: int) -> Factors:
        """Another V, where it is time."""
        if (round - 1) % self.every:
            return state
        return replace(state, bases={index: _normal(round, index, old.shape) for index, old in state.bases.items()})

    def add(self, state: Factors, out: Tensors, terms: Sequence[tuple[int, float]]) -> None:
        """Σ coefficient · U, times Vᵀ."""
        for index, array in out.items():
            if index in state.bases:
                shape = array.shape[1], self.rank
                left = sum(np.float32(c) * _normal(seed, index, shape) for seed, c in terms)
                array += state.bases[index] / np.float32(np.sqrt(self.rank)) @ np.transpose(left)
            else:
                array += sum(np.float32(c) * _normal(seed, index, array.shape) for seed, c in terms)

    def step(self, state: Factors, gradient: Tensors) -> tuple[Factors, Tensors]:
        """Descend along the estimate."""
        return state, gradient


@dataclass(frozen=True)
class Orthogonal:
    """ZO-Muon (arXiv 2602.17155): G of a seeded subspace, W ± ε·P·B, made orthogonal: a step along P·(GGᵀ)^(−1/2)·G.

    With ``frame`` it is ZO-MOPI (2605.09034): a power iteration that continues from round to round keeps that many
    singular directions of the momentum of G.

    Attributes:
        rank: of the subspace.
        every: rounds with one P.
        vectors: rate of biases and norms, whose estimates are not made orthogonal, as the authors' code has it.
        frame: k; 0 for ZO-Muon.
        decay: of the momentum.
    """

    rank: int = 64
    every: int = 100
    vectors: float = 1e-7
    frame: int = 0
    decay: float = 0.9

    def start(self, weights: Tensors) -> Factors:
        """P comes with the first round."""
        shapes = _matrices(weights)
        bases = {i: np.zeros((m, min(self.rank, m)), np.float32) for i, (m, _) in shapes.items()}
        if not self.frame:
            return Factors(bases, {}, {})
        memory = {i: np.zeros((bases[i].shape[1], n), np.float32) for i, (_, n) in shapes.items()}
        frames = {i: np.linalg.qr(_normal(0, i, (n, min(self.frame, n))))[0] for i, (_, n) in shapes.items()}
        return Factors(bases, memory, frames)

    def begin(self, state: Factors, round: int) -> Factors:
        """Another P, where it is time; the momentum is projected into it."""
        if (round - 1) % self.every:
            return state
        bases = {i: np.linalg.qr(_normal(round, i, old.shape))[0] for i, old in state.bases.items()}
        memory = {i: bases[i].T @ (state.bases[i] @ kept) for i, kept in state.memory.items()}
        return replace(state, bases=bases, memory=memory)

    def add(self, state: Factors, out: Tensors, terms: Sequence[tuple[int, float]]) -> None:
        """P · Σ coefficient · B."""
        for index, array in out.items():
            if index in state.bases:
                shape = array.shape[0], state.bases[index].shape[1]
                small = sum(np.float32(c) * _normal(seed, index, shape) for seed, c in terms)
                array += np.asarray(small) @ state.bases[index].T
            else:
                array += sum(np.float32(c) * _normal(seed, index, array.shape) for seed, c in terms)

    def step(self, state: Factors, gradient: Tensors) -> tuple[Factors, Tensors]:
        """Orthogonal in the subspace; vectors at their own rate."""
        memory, frames, along = dict(state.memory), dict(state.frames), {}
        for index, array in gradient.items():
            if index not in state.bases:
                along[index] = np.float32(self.vectors) * array
                continue
            base = state.bases[index]
            small = base.T @ array.T
            if self.frame:
                memory[index] = self.decay * memory[index] + (1 - self.decay) * small
                frames[index], turned = power_iteration(memory[index], frames[index])
            else:
                turned = orthogonalise(small)
            along[index] = (base @ turned).T
        return replace(state, memory=memory, frames=frames), along


def orthogonalise(matrix: np.ndarray) -> np.ndarray:
    """The nearest matrix float32 [r, n], r ≤ n, with orthonormal rows: all singular values become 1."""
    left, _, right = np.linalg.svd(matrix.astype(np.float64), full_matrices=False)
    return np.asarray((left @ right).astype(np.float32))


def power_iteration(matrix: np.ndarray, frame: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One iteration towards the leading right singular vectors.

    Args:
        matrix: float32 [r, n].
        frame: of the round before, [n, k], orthonormal columns.

    Returns:
        The frame that follows, and U·frameᵀ float32 [r, n], where U's columns are matrix · frame, each of length 1.
    """
    following = np.linalg.qr(matrix.T @ (matrix @ frame))[0]
    left = matrix @ following
    left /= np.maximum(np.linalg.norm(left, axis=0), np.finfo(np.float32).tiny)
    return following, left @ following.T


@dataclass(frozen=True)
class Sparse:
    """Meerkat (arXiv 2506.03337): a fixed small share of the weights, those with the largest gradients on public data.

    Attributes:
        chosen: of each tensor, the places of its weights that move.
    """

    chosen: Tensors

    def start(self, weights: Tensors) -> None:
        """There is no state."""

    def begin(self, state: None, round: int) -> None:
        """There is no state."""

    def add(self, state: None, out: Tensors, terms: Sequence[tuple[int, float]]) -> None:
        """Normal directions, of the chosen weights alone."""
        for index, array in out.items():
            if places := self.chosen.get(index, np.empty(0)).size:
                added = sum(np.float32(c) * _normal(seed, index, (places,)) for seed, c in terms)
                array.reshape(-1)[self.chosen[index]] += added

    def step(self, state: None, gradient: Tensors) -> tuple[None, Tensors]:
        """Descend along the estimate."""
        return None, gradient


def most_sensitive(squares: Tensors, share: float) -> dict[int, np.ndarray]:
    """Places of the share of all weights whose squared gradients are largest, at least one.

    Args:
        squares: of each tensor, the mean squared gradient.
    """
    everything = np.concatenate([array.ravel() for array in squares.values()])
    count = max(1, round(share * everything.size))
    least = np.partition(everything, -count)[-count]
    return {index: np.flatnonzero(array.ravel() >= least) for index, array in squares.items()}


@dataclass(frozen=True)
class Preconditioned:
    """Directions L·Z·R of each matrix, Z of ±1: the larger where gradients on public data are, as Shampoo has it.

    (arXiv 1802.09568; it divides gradients by the factors that a direction is multiplied by here.)

    Attributes:
        factors: of each matrix [inputs, outputs], L [inputs, inputs] and R [outputs, outputs], float32.
    """

    factors: Mapping[int, tuple[np.ndarray, np.ndarray]]

    def start(self, weights: Tensors) -> None:
        """There is no state."""

    def begin(self, state: None, round: int) -> None:
        """There is no state."""

    def add(self, state: None, out: Tensors, terms: Sequence[tuple[int, float]]) -> None:
        """L · Σ coefficient · Z · R; vectors have directions of ±1."""
        total = {index: np.zeros_like(array) for index, array in out.items()}
        _add_signs(total, terms)
        for index, array in out.items():
            left, right = self.factors.get(index, (None, None))
            array += total[index] if left is None else left @ total[index] @ right

    def step(self, state: None, gradient: Tensors) -> tuple[None, Tensors]:
        """Descend along the estimate, which has the factors twice: in what was measured, and in its directions."""
        return None, gradient


def factor(moment: np.ndarray, power: float, damping: float = 1e-3) -> np.ndarray:
    """A factor of directions, float32 [n, n], whose columns have a mean squared length of 1.

    Args:
        moment: mean of G·Gᵀ, or of Gᵀ·G, over gradients G: [n, n], symmetric.
        power: that it is raised to; 0 for the identity.
        damping: share of its mean eigenvalue that is added to each.
    """
    values, vectors = np.linalg.eigh(moment.astype(np.float64))
    scales = (np.maximum(values, 0.0) + damping * values.mean()) ** power
    scales /= np.sqrt(np.mean(scales**2))
    return np.asarray((vectors * scales @ vectors.T).astype(np.float32))
