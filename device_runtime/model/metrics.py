"""Metrics by name: pure functions of what a model answers and what is right, for each kind of answer."""

from __future__ import annotations

import json
import math
import re
import string
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedspzo.device_runtime.errors import DataError

#: Kinds of answer: one label, any number of labels, a number, a text.
SINGLE, MULTI, REGRESSION, TEXT = "single", "multi", "regression", "text"


@dataclass(frozen=True)
class Metric:
    """A metric.

    Attributes:
        compute: (answers, what is right) → the value. Labels are int [examples], sets of labels bool [examples,
            labels], numbers float [examples], and texts a sequence, with a sequence of right texts for each.
        share: whether it is a share, which people read in per cent.
        sign: 1 where more is better, -1 where less is.
    """

    compute: Callable[[Any, Any], float]
    share: bool = True
    sign: int = 1


def accuracy(found: np.ndarray, expected: np.ndarray) -> float:
    """Share of the examples whose label, or whole set of labels, is right."""
    same = np.asarray(found) == np.asarray(expected)
    return float(np.mean(same if same.ndim == 1 else same.all(axis=1)))


def macro_f1(found: np.ndarray, expected: np.ndarray) -> float:
    """Mean of the labels' F1; of single labels those count that occur, of sets all. 0 where F1 has no value."""
    if np.ndim(expected) == 1:
        occurring = np.union1d(found, expected)
        found, expected = (np.asarray(labels)[:, None] == occurring for labels in (found, expected))
    both, all_of_them = (found & expected).sum(axis=0), found.sum(axis=0) + expected.sum(axis=0)
    return float(np.mean(2 * both / np.maximum(all_of_them, 1)))


def mse(found: np.ndarray, expected: np.ndarray) -> float:
    """Mean squared error."""
    return float(np.mean((np.asarray(found, np.float64) - expected) ** 2))


def pearson(found: np.ndarray, expected: np.ndarray) -> float:
    """Pearson's correlation; not a number where either is constant."""
    one, other = (np.asarray(values, np.float64) - np.mean(values) for values in (found, expected))
    size = np.sqrt((one @ one) * (other @ other))
    return float(one @ other / size) if size > 0 else float("nan")


def spearman(found: np.ndarray, expected: np.ndarray) -> float:
    """Spearman's correlation: Pearson's of the ranks, equal values sharing their mean rank."""
    return pearson(_ranks(found), _ranks(expected))


def exact_match(found: Sequence[str], expected: Sequence[Sequence[str]]) -> float:
    """Share of the texts that are one of the right ones, apart from case, punctuation and articles, as SQuAD has it."""
    return _best(found, expected, lambda one, other: float(_bare_words(one) == _bare_words(other)))


def f1(found: Sequence[str], expected: Sequence[Sequence[str]]) -> float:
    """F1 over words without case, punctuation and articles, as SQuAD has it; the best over each text's right ones."""
    return _best(found, expected, lambda one, other: _overlap(_bare_words(one), _bare_words(other), _common))


def rouge_l(found: Sequence[str], expected: Sequence[Sequence[str]]) -> float:
    """ROUGE-L: F1 of the longest common subsequence of words in lower case; the best over each text's right ones."""
    return _best(found, expected, lambda one, other: _overlap(_words(one), _words(other), _subsequence))


def pattern(found: Sequence[str], expected: Sequence[Sequence[str]]) -> float:
    """Share of the texts that one of the right ones, a regular expression, matches as a whole.

    Raises DataError where one is no regular expression.
    """
    return _best(found, expected, lambda one, other: float(_compile(other).fullmatch(one) is not None))


def quantity(found: Sequence[str], expected: Sequence[Sequence[str]]) -> float:
    """Share of the texts whose first number is a right one's, to six digits, with the same unit after it."""
    return _best(found, expected, lambda one, other: float(_same_quantity(_quantity(one), _quantity(other))))


def valid_json(found: Sequence[str], expected: Sequence[Sequence[str]]) -> float:
    """Share of the texts that are JSON; whatever the right ones are."""
    return float(np.mean([_is_json(text) for text in found]))


def perplexity(losses: np.ndarray) -> float:
    """exp of the mean loss of an answer's tokens."""
    with np.errstate(over="ignore"):
        return float(np.exp(np.mean(losses)))


#: Kind of answer → name → metric. The first ones of each kind are its default, see :data:`DEFAULTS`.
METRICS: Mapping[str, Mapping[str, Metric]] = {
    SINGLE: {"accuracy": Metric(accuracy), "macro_f1": Metric(macro_f1)},
    MULTI: {"macro_f1": Metric(macro_f1), "accuracy": Metric(accuracy)},
    REGRESSION: {
        "pearson": Metric(pearson, share=False), "spearman": Metric(spearman, share=False),
        "mse": Metric(mse, share=False, sign=-1),
    },
    TEXT: {
        "exact_match": Metric(exact_match), "f1": Metric(f1), "rouge_l": Metric(rouge_l), "pattern": Metric(pattern),
        "quantity": Metric(quantity), "valid_json": Metric(valid_json),
        "perplexity": Metric(lambda losses, _: perplexity(losses), share=False, sign=-1),
    },
}  # fmt: skip
#: Kind of answer → names of the metrics where a task names none.
DEFAULTS: Mapping[str, tuple[str, ...]] = {
    SINGLE: ("accuracy",), MULTI: ("macro_f1", "accuracy"), REGRESSION: ("pearson", "mse"), TEXT: ("exact_match", "f1"),
}  # fmt: skip
_ALL = {name: metric for metrics in METRICS.values() for name, metric in metrics.items()}


def score(kind: str, names: Iterable[str], found: Any, expected: Any, losses: np.ndarray) -> dict[str, float]:
    """Metrics of some answers: name → value.

    Args:
        kind: of answer.
        names: of metrics of that kind.
        found, expected: see :class:`Metric`.
        losses: of the examples; perplexity takes them in the answers' place.
    """
    return {name: METRICS[kind][name].compute(losses if name == "perplexity" else found, expected) for name in names}


def goodness(name: str, value: float) -> float:
    """A metric's value, negative where less is better."""
    return _ALL[name].sign * value if name in _ALL else value


def format_score(name: str, value: float) -> str:
    """A metric for people: ``accuracy 71.3%``, ``mse 0.4213``."""
    text = f"{value:.1%}" if name not in _ALL or _ALL[name].share else f"{value:.4f}"
    return f"{name.replace('_', ' ')} {text}"


def _best(found: Sequence[str], expected: Sequence[Sequence[str]], compare: Callable[[str, str], float]) -> float:
    pairs = zip(found, expected, strict=True)
    return float(np.mean([max(compare(text, right) for right in known) for text, known in pairs]))


def _overlap(one: list[str], other: list[str], common: Callable[[list[str], list[str]], int]) -> float:
    """F1 of what two texts have in common; of texts without words, whether both have none."""
    if not one or not other:
        return float(one == other)
    return 2 * common(one, other) / (len(one) + len(other))


def _common(one: list[str], other: list[str]) -> int:
    return sum((Counter(one) & Counter(other)).values())


def _subsequence(one: list[str], other: list[str]) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(other) + 1)
    for word in one:
        before = 0
        for at, right in enumerate(other, start=1):
            before, row[at] = row[at], before + 1 if word == right else max(row[at], row[at - 1])
    return row[-1]


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _bare_words(text: str) -> list[str]:
    """Words in lower case without punctuation and articles."""
    bare = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", bare).split()


def _compile(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except (re.error, OverflowError, RecursionError) as error:
        raise DataError("data.pattern", f"{text[:80]!r} is no regular expression ({error}); mend the answer") from None


def _quantity(text: str) -> tuple[float, str] | None:
    """A text's first number and the unit after it."""
    found = re.search(r"(-?\d[\d,]*(?:\.\d+)?(?:[eE][+-]?\d+)?)\s*([^\s\d.,;:!?]*)", text, re.ASCII)
    return (float(found[1].replace(",", "")), found[2]) if found else None


def _same_quantity(one: tuple[float, str] | None, other: tuple[float, str] | None) -> bool:
    return bool(one and other and one[1] == other[1] and math.isclose(one[0], other[0], rel_tol=1e-6))


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _ranks(values: np.ndarray) -> np.ndarray:
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[places]
