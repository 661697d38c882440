"""Ways to make several devices' scalars one vector, from the plain mean to rules that outliers do not move.

All are pure functions of vectors, float64 of shape (devices, scalars), whose rows are in the order of the devices'
names. Sums are exact (``math.fsum``) and nothing goes through a matrix library, so that a live server, a simulation and
an audit have the same bits on any machine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import reduce

import numpy as np

#: Vectors → the vectors that count.
Step = Callable[[np.ndarray], np.ndarray]
#: Vectors, and the devices' shares of the examples, which sum to 1 → one vector, float64 of shape (scalars,).
Rule = Callable[[np.ndarray, np.ndarray], np.ndarray]

#: What a clipped mean leaves of a device's vector: this many times the cohort's median size.
MOST_OF_MEDIAN = 2.0
#: The same of a group's, where one that is MOST_OF_MEDIAN times as large is left out.
MOST_OF_GROUPS = 1.25
#: Share of the values of a coordinate that a trimmed mean leaves out at each end.
TRIMMED = 0.25
#: Iterations of centred clipping and of the geometric median.
CLIPPINGS, WEISZFELD = 3, 16


def sizes(vectors: np.ndarray) -> np.ndarray:
    """Root mean square of each vector."""
    return np.array([math.sqrt(math.fsum(row) / len(row)) for row in vectors**2])


def usual_size(found: np.ndarray) -> float:
    """The median size; of an even number the smaller of the middle two, so that one half cannot raise it."""
    return float(np.sort(found)[(len(found) - 1) // 2])


def clip(vectors: np.ndarray, most: float) -> np.ndarray:
    """The vectors, those whose root mean square is above ``most`` scaled down to it; the others keep their bits."""
    found = sizes(vectors)
    factors = np.divide(most, found, out=np.ones_like(found), where=found > most)
    return np.asarray(vectors * factors[:, None])


def clip_to_median(vectors: np.ndarray) -> np.ndarray:
    """The vectors, each at most some times as large as the cohort's median.

    One or two have no such median, nor has a cohort of which half measured no change at all, as counts of errors do.
    """
    usual = usual_size(sizes(vectors)) if len(vectors) > 2 else 0.0
    return clip(vectors, MOST_OF_MEDIAN * usual) if usual else vectors


def mean(vectors: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """The mean, each device the same: claims of many examples gain nothing."""
    return weighted_mean(vectors, np.full(len(vectors), 1 / len(vectors)))


def weighted_mean(vectors: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """The mean weighted by examples."""
    return np.array([math.fsum(column) for column in (vectors * shares[:, None]).T])


def mean_of_usual(vectors: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """The weighted mean of groups, none much larger than the median one, without those that are some times as large.

    Nobody in a group is sent away, so that one of few groups may be hostile in every round.
    """
    found = sizes(vectors)
    usual = usual_size(found)
    if len(vectors) < 3 or not usual:  # a median of 0 says nothing of groups that measured a change
        return weighted_mean(vectors, shares)
    kept = found <= MOST_OF_MEDIAN * usual
    return weighted_mean(clip(vectors[kept], MOST_OF_GROUPS * usual), shares[kept] / math.fsum(shares[kept]))


def votes(vectors: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """The sign of the weighted mean of the signs (FeedSign, arXiv 2501.17610)."""
    return np.asarray(np.sign(np.float32(weighted_mean(np.sign(vectors), shares))))


def median(vectors: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """The median of each coordinate."""
    return np.asarray(np.median(vectors, axis=0))


def trimmed_mean(vectors: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """The mean of each coordinate without its smallest and largest values (arXiv 1803.01498)."""
    out = int(TRIMMED * len(vectors))
    kept = np.sort(vectors, axis=0)[out : len(vectors) - out]
    return mean(kept, shares)


def krum(vectors: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """The vector nearest to those around it (arXiv 1703.02757)."""
    return np.asarray(vectors[_by_krum(vectors)[0]])


def multi_krum(vectors: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """The mean of the vectors that Krum likes best, all but as many as it takes to be hostile."""
    kept = sorted(_by_krum(vectors)[: len(vectors) - _hostile(vectors)])
    return mean(vectors[kept], shares)


def centred_clipping(vectors: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """The mean of what lies around a centre, far ones drawn to it (arXiv 2012.10333).

    It starts at the median of each coordinate; near is what the median distance is.
    """
    centre = median(vectors, shares)
    for _ in range(CLIPPINGS):
        away = vectors - centre
        centre = centre + mean(clip(away, float(np.median(sizes(away)))), shares)
    return centre


def geometric_median(vectors: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """The point whose distances to the vectors have the least sum, by Weiszfeld's iteration (arXiv 1912.13445)."""
    centre = median(vectors, shares)
    for _ in range(WEISZFELD):
        away = sizes(vectors - centre)
        near = 1 / np.maximum(away, 1e-6 * max(float(np.median(away)), np.finfo(np.float32).tiny))
        centre = weighted_mean(vectors, near / math.fsum(near))
    return centre


def normalise(vector: np.ndarray, counts: Sequence[int]) -> np.ndarray:
    """A vector divided by its standard deviation, as FZOO's steps are (arXiv 2506.09034): they get no shorter with it.

    One-sided, the deviation of a block's scalars is that of its losses, divided by ε.

    Args:
        vector: float64 (scalars,), one-sided.
        counts: scalars of each block. A block whose scalars are all alike is not moved.
    """
    parts, start = [], 0
    for count in counts:
        part = vector[start : start + count]
        mean = math.fsum(part) / max(count, 1)
        deviation = math.sqrt(math.fsum((part - mean) ** 2) / max(count - 1, 1))
        parts.append(part / deviation if deviation else np.zeros(count))
        start += count
    return np.concatenate(parts)


def after(*steps: Step, rule: Rule) -> Rule:
    """A rule on what some steps leave of the vectors."""
    return lambda vectors, shares: rule(reduce(lambda left, step: step(left), steps, vectors), shares)


#: Name → rule.
RULES: Mapping[str, Rule] = {
    "clipped-mean": after(clip_to_median, rule=weighted_mean),
    "weighted-mean": weighted_mean,
    "mean": mean,
    "median": median,
    "trimmed-mean": trimmed_mean,
    "krum": krum,
    "multi-krum": multi_krum,
    "centred-clipping": centred_clipping,
    "geometric-median": geometric_median,
    "votes": votes,
}
#: The same over groups of devices.
RULES_OF_GROUPS: Mapping[str, Rule] = {**RULES, "clipped-mean": mean_of_usual}
#: Those that an operator chooses among; votes are a method of their own.
CHOICES = tuple(name for name in RULES if name != "votes")
#: Those whose entry is a function of the sum of results.
LINEAR = ("weighted-mean", "mean")
#: What the name of a plan's rule ends with where steps are divided by their standard deviation: :func:`normalise`.
NORMALISED = "/deviation"
#: Rules of single devices' vectors, which are there as well where each device has directions of its own.
OWN: Mapping[str, Step] = {"clipped-mean": clip_to_median, "weighted-mean": lambda vectors: vectors}


def _hostile(vectors: np.ndarray) -> int:
    """The most hostile devices that Krum's proof allows among some: n ≥ 2f + 3."""
    return max(0, (len(vectors) - 3) // 2)


def _by_krum(vectors: np.ndarray) -> Sequence[int]:
    """Indices of the vectors, those first whose nearest neighbours are nearest; of equals the first."""
    count = len(vectors)
    near = max(0, count - _hostile(vectors) - 2)
    scores = [math.fsum(np.sort(sizes(vectors - own) ** 2)[1 : near + 1]) for own in vectors]
    return sorted(range(count), key=lambda index: scores[index])
