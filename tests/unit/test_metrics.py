"""Metrics by name against scikit-learn and SciPy, and ROUGE-L against its definition."""

from __future__ import annotations

import itertools
import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import raises
from scipy import stats
from sklearn.metrics import accuracy_score, f1_score, mean_squared_error

from fedspzo.device_runtime.model.metrics import DEFAULTS, METRICS, MULTI, REGRESSION, SINGLE, TEXT, format_score, score

NUMBERS = st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.5, 3.0, 5.0]), min_size=3, max_size=20)
WORDS = st.lists(st.sampled_from(["the", "Cat", "sat", "on", "mat", "mat."]), max_size=7).map(" ".join)


def test_defaults_are_metrics() -> None:
    assert all(set(DEFAULTS[kind]) <= METRICS[kind].keys() for kind in (SINGLE, MULTI, REGRESSION, TEXT))


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=30))
@settings(max_examples=50)
def test_labels(pairs: list[tuple[int, int]]) -> None:
    found, expected = np.array(pairs).T
    scores = score(SINGLE, METRICS[SINGLE], found, expected, np.zeros(1))
    assert scores["accuracy"] == pytest.approx(accuracy_score(expected, found))
    assert scores["macro_f1"] == pytest.approx(f1_score(expected, found, average="macro", zero_division=0))


@given(st.lists(st.lists(st.booleans(), min_size=6, max_size=6), min_size=1, max_size=12))
@settings(max_examples=50)
def test_sets_of_labels(rows: list[list[bool]]) -> None:
    found, expected = np.split(np.array(rows), 2, axis=1)
    scores = score(MULTI, METRICS[MULTI], found, expected, np.zeros(1))
    assert scores["accuracy"] == pytest.approx(accuracy_score(expected, found))
    assert scores["macro_f1"] == pytest.approx(f1_score(expected, found, average="macro", zero_division=0))


@given(NUMBERS, st.randoms(use_true_random=False))
@settings(max_examples=50)
def test_numbers(values: list[float], draw) -> None:  # type: ignore[no-untyped-def]
    found, expected = np.array(values), np.array([draw.choice(values) for _ in values])
    scores = score(REGRESSION, METRICS[REGRESSION], found, expected, np.zeros(1))
    assert scores["mse"] == pytest.approx(mean_squared_error(expected, found))
    if np.ptp(found) > 0 and np.ptp(expected) > 0:
        assert scores["pearson"] == pytest.approx(stats.pearsonr(found, expected)[0])
        assert scores["spearman"] == pytest.approx(stats.spearmanr(found, expected)[0])
    else:
        assert math.isnan(scores["pearson"])
        assert math.isnan(scores["spearman"])


@given(WORDS, WORDS)
@settings(max_examples=50)
def test_rouge_l_is_f1_of_the_longest_common_subsequence(one: str, other: str) -> None:
    words, right = (re.findall(r"\w+", text.lower()) for text in (one, other))
    subsequences = {sub for n in range(len(words) + 1) for sub in itertools.combinations(words, n)}
    longest = max(n for n in range(len(right) + 1) for sub in itertools.combinations(right, n) if sub in subsequences)
    if words and right:
        precision, recall = longest / len(words), longest / len(right)
        expected = 2 * precision * recall / (precision + recall) if longest else 0.0
    else:
        expected = float(words == right)
    assert METRICS[TEXT]["rouge_l"].compute([one], [[other]]) == pytest.approx(expected)


def test_texts() -> None:
    found, right = (
        ["The cat!", "a dog", "police killed the gunman"],
        [["cat"], ["bird", "big dog"], ["police kill gunman"]],
    )
    scores = score(TEXT, METRICS[TEXT], found, right, np.array([1.0, 2.0, 3.0]))
    assert scores["exact_match"] == pytest.approx(1 / 3)
    assert scores["f1"] == pytest.approx((1 + 2 / 3 + 2 / 3) / 3)
    assert scores["rouge_l"] == pytest.approx((2 / 3 + 1 / 2 + 4 / 7) / 3)
    assert scores["perplexity"] == pytest.approx(math.exp(2))


def test_scores_for_people() -> None:
    assert format_score("macro_f1", 0.713) == "macro f1 71.3%"
    assert format_score("mse", 0.4213) == "mse 0.4213"


@pytest.mark.parametrize(
    ("name", "answer", "right", "value"),
    [
        ("pattern", "from Oslo to Rome", ["x", r"from \w+ to \w+"], 1.0),
        ("pattern", "from Oslo to Rome please", [r"from \w+ to \w+"], 0.0),
        ("quantity", "It is 1,500.0 m away", ["1500 m"], 1.0),
        ("quantity", "1.5 km", ["1500 m"], 0.0),
        ("quantity", "12", ["12 kg"], 0.0),
        ("quantity", "12kg.", ["11 kg", "12 kg"], 1.0),
        ("quantity", "far", ["far"], 0.0),
        ("valid_json", '{"size": [1, null]}', [], 1.0),
        ("valid_json", "{'size': 1}", [], 0.0),
        ("valid_json", "[" * 100_000, [], 0.0),
    ],
)
def test_answers_that_a_check_accepts(name: str, answer: str, right: list[str], value: float) -> None:
    assert score(TEXT, [name], [answer], [right], np.zeros(1)) == {name: value}


def test_a_pattern_that_is_none() -> None:
    with raises("data.pattern", "'(' is no regular expression"):
        score(TEXT, ["pattern"], ["a"], [["("]], np.zeros(1))
