"""The strongest attacks known on what devices send: pure functions on arrays, which know the plan and some candidates.

An attacker who has measured what each candidate would send (:mod:`fedspzo.broker.privacy.dictionary`) compares. A
lone example is found bit by bit; a small group's members by a search over all subsets of their number; members of a
mean, of a large group or of a sum with noise by how well each candidate explains what was sent, over all rounds.
"""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import chain, combinations

import numpy as np

#: Most half subsets that a search keeps.
MOST_HALVES = 200_000


def find_bits(sent: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """The candidates whose scalars are what was sent, to the last bit.

    Args:
        sent: float32 [scalars].
        candidates: float32 [candidates, scalars].

    Returns:
        Their indices.
    """
    return np.flatnonzero((candidates.view(np.uint32) == sent.view(np.uint32)).all(axis=1))


def find_subset(total: np.ndarray, words: np.ndarray, size: int) -> tuple[int, ...] | None:
    """The candidates, ``size`` of them, whose words add up to a sum: by meeting in the middle.

    Args:
        total: int64 [width], the sum.
        words: int64 [candidates, width], each candidate's.

    Returns:
        Their indices in order; None where no such candidates are among these.
    """
    chance = np.random.Generator(np.random.Philox(key=size))
    hashing = chance.integers(0, 1 << 64, words.shape[1], np.uint64)
    hashed = (words.view(np.uint64) * hashing).sum(axis=1)  # modulo 2⁶⁴, so that sums of hashes are hashes of sums
    wanted = (total.view(np.uint64) * hashing).sum()
    lower, upper = (_subsets(len(words), half) for half in (size // 2, size - size // 2))
    sums = hashed[upper].sum(axis=1)
    order = np.argsort(sums)
    missing = wanted - hashed[lower].sum(axis=1)
    places = np.minimum(np.searchsorted(sums, missing, sorter=order), len(order) - 1)
    for first in np.flatnonzero(sums[order[places]] == missing):
        members = sorted({*lower[first].tolist(), *upper[order[places[first]]].tolist()})
        if len(members) == size and np.array_equal(words[members].sum(axis=0), total):
            return tuple(members)
    return None


def searchable(candidates: int, size: int) -> int:
    """How many of some candidates a search for ``size`` of them can look at."""
    half = size - size // 2
    most = candidates
    while most > size and math.comb(most, half) > MOST_HALVES:
        most -= 1
    return most if math.comb(most, half) <= MOST_HALVES else 0


class Explainer:
    """How much of each candidate is in a sum: the linear estimate with the least mean square error.

    The sum has ``size`` of the candidates, all equally likely, and noise. Rounds are stacked: more rows.
    """

    def __init__(self, vectors: np.ndarray, size: int, variance: float = 0.0) -> None:
        """Prepare it.

        Args:
            vectors: float64 [rows, candidates], what each candidate adds to the sum.
            variance: of the noise in each row.
        """
        count = vectors.shape[1]
        share = size / count
        left, singular, right = np.linalg.svd(vectors - vectors.mean(axis=1, keepdims=True), full_matrices=False)
        prior = share * (1 - share) * count / max(count - 1, 1)
        kept = singular > singular[0] * 1e-10
        gains = prior * singular[kept] / (prior * singular[kept] ** 2 + variance)
        self._filter = (right[kept].T * gains) @ left[:, kept].T
        self._centre = size * vectors.mean(axis=1)

    def scores(self, total: np.ndarray) -> np.ndarray:
        """For sums [..., rows] a score of each candidate [..., candidates]."""
        return (total - self._centre) @ self._filter.T


def likeliest(total: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """The candidate that is nearest to what was sent: the likeliest where all else in it is known noise.

    Args:
        total: float64 [..., rows].
        vectors: float64 [rows, candidates].
    """
    return np.asarray((total @ vectors - (vectors**2).sum(axis=0) / 2).argmax(axis=-1))


def attribute(sent: np.ndarray, known: np.ndarray, modulus: int, chance: np.random.Generator) -> int:
    """The device of a group that a known sentence most likely comes from.

    Args:
        sent: int64 [devices, width], what each device sent, masked or not.
        known: int64 [width], what the sentence adds.
        modulus: that words are taken by.

    Returns:
        The index of the device whose words are nearest; of equally near ones, any.
    """
    apart = (sent - known) % modulus
    distance = np.minimum(apart, modulus - apart).astype(np.float64).sum(axis=1)
    return int(chance.choice(np.flatnonzero(distance == distance.min())))


@lru_cache(maxsize=2)
def _subsets(count: int, size: int) -> np.ndarray:
    """All subsets, int16 [subsets, size]."""
    flat = np.fromiter(chain.from_iterable(combinations(range(count), size)), np.int16)
    return flat.reshape(math.comb(count, size), size)
