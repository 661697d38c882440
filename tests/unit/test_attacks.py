"""Attacks on what devices send: they find what can be found, and no more under masks and noise."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from refusals import raises

from fedspzo.broker.privacy import attacks, trials
from fedspzo.broker.privacy.attacks import attribute, find_bits, find_subset
from fedspzo.broker.privacy.audit import clopper_pearson, lower_bound, observe_canary
from fedspzo.broker.privacy.dictionary import Dictionary, every_label, measure_dictionary
from fedspzo.broker.privacy.trials import attribute_masked, find_drawn, find_members, link_rounds, pick_known
from fedspzo.broker.rounds.job import Job
from fedspzo.broker.simulation.partition import subset
from fedspzo.cli import main
from fedspzo.device_runtime.data.store import DataStore
from fedspzo.device_runtime.engines.protocol import create_engine
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.privacy.budget import discrete_rho, epsilon, guess_rate, rho_within
from fedspzo.device_runtime.privacy.masks import unmask
from fedspzo.device_runtime.privacy.noise import draw
from fedspzo.device_runtime.protocol.plan import Plan
from fedspzo.device_runtime.replica.weights import Replica
from fedspzo.device_runtime.step.estimator import measure, measure_examples
from fedspzo.device_runtime.step.runner import Forward

#: Candidates, scalars of a round and loss.
COUNT, WIDTH = 40, 9


@pytest.fixture
def chance() -> np.random.Generator:
    return np.random.default_rng(3)


def make_words(rounds: int, chance: np.random.Generator) -> np.ndarray:
    return np.rint(chance.normal(0, 20_000, (rounds, COUNT, WIDTH))).astype(np.int64)


@pytest.mark.parametrize("sides", [1, 2])
def test_a_lone_example_is_found_bit_by_bit(
    bundle: Bundle, store: DataStore, make_plan: Callable[..., Plan], sides: int
) -> None:
    """What an attacker measures of an example among others is what a device sends that has it alone."""
    forward = Forward(create_engine("litert", 1), Replica(bundle, None, 1))
    plan = make_plan(sides=sides)
    scalars, losses = measure_examples(forward, store, plan)
    known = scalars.astype(np.float32)
    for own in (0, 7):
        sent = measure(forward, subset(store, np.array([own])), plan, "device")
        assert find_bits(np.array(sent.scalars, np.float32), known).tolist() == [own]
        assert sent.loss == losses[own]
    together = measure(forward, subset(store, np.arange(4)), plan, "device")
    np.testing.assert_allclose(together.scalars, scalars[:4].mean(axis=0), rtol=1e-5, atol=1e-6)


def test_directions_of_their_own_are_no_sum_to_attack(bundle: Bundle, store: DataStore) -> None:
    forward = Forward(create_engine("litert", 1), Replica(bundle, None, 1))
    with raises("privacy.own-directions", "seeds = shared"):
        measure_dictionary(forward, store, Job(seeds="device", stages=5), 1)


@pytest.mark.parametrize("size", [3, 4])
def test_all_members_of_a_small_sum_are_found_if_all_are_candidates(chance: np.random.Generator, size: int) -> None:
    words = make_words(1, chance)[0]
    members = tuple(range(5, 5 + size))
    assert find_subset(words[list(members)].sum(axis=0), words, size) == members
    assert find_subset(words[list(members)].sum(axis=0) + 1, words, size) is None


@pytest.mark.parametrize("size", [4, 8, 32, pytest.param(128, marks=pytest.mark.slow)])
def test_masks_leave_a_sentence_to_any_of_the_group(chance: np.random.Generator, size: int) -> None:
    """Known sentences are attributed to their devices as often as guessing is right, 1/g; without masks always."""
    words = np.rint(chance.normal(0, 20_000, (200, WIDTH))).astype(np.int64)
    rate = attribute_masked(words, size, 2_000, chance)
    assert abs(rate.value - 1 / size) < 2 * math.sqrt((1 - 1 / size) / size / rate.tries)
    plain = words[:size]
    assert [attribute(plain, known, 1 << 32, chance) for known in plain] == list(range(size))


def test_what_is_attributed_are_the_messages_of_a_group(
    chance: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their masks cancel; and with masks that do not hide, sentences are named."""
    sums = np.zeros(WIDTH, np.int64)

    def attack(sent: np.ndarray, known: np.ndarray, modulus: int, chance: np.random.Generator) -> int:
        sums[:] += unmask(list(sent.astype(np.uint32)))
        return 0

    words = make_words(1, chance)[0][:4]
    monkeypatch.setattr(trials, "attribute", attack)
    attribute_masked(words, 4, 150, chance)
    assert sums.tolist() == (150 * words.sum(axis=0)).tolist()
    monkeypatch.undo()
    monkeypatch.setattr(trials, "mask", lambda words, *_: words)
    assert attribute_masked(words, 4, 40, chance).value == 1


def test_rounds_add_up(chance: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attacks, "MOST_HALVES", 2_000)
    words = make_words(20, chance)
    assert find_members(words, 16, 20, chance).value == 1
    assert find_members(words[:1], 16, 20, chance).value < 0.9
    assert find_members(words, 16, 20, chance, variance=1e12).value < 16 / COUNT + 0.1
    assert link_rounds(words, 8, 4, 5, chance).value > 0.9
    assert link_rounds(words[:1], 8, 4, 5, chance).value <= 1 / 4 + 0.2
    drawn = Dictionary(words[..., :-1].astype(np.float64), words[..., -1].astype(np.float64))
    assert find_drawn(drawn, 10, 2, 5, chance).value > 0.8


@pytest.mark.parametrize("budget", [8.0, 1.0])
def test_who_knows_all_else_is_right_no_more_often_than_the_noise_allows(
    chance: np.random.Generator, budget: float
) -> None:
    words, rho = make_words(5, chance), rho_within(budget, 1e-5)
    clip = math.sqrt((words**2).sum(axis=2).max())
    rate = pick_known(words, 4_000, chance, 5 * clip**2 / (2 * rho))
    assert rate.value + 2 * rate.error > 1 / COUNT
    assert rate.value < guess_rate(rho, COUNT) + 2 * rate.error
    assert pick_known(words, 500, chance, 5 * clip**2 / (200 * rho)).value > guess_rate(rho, COUNT)  # too little


def test_budgets() -> None:
    """As dp-accounting has them, for zero-concentrated releases."""
    assert epsilon(1.0, 1e-5) == pytest.approx(7.0774, abs=1e-3)
    assert epsilon(0.0, 1e-5) == 0
    for budget in (0.1, 1.0, 8.0):
        assert budget * 0.999 < epsilon(rho_within(budget, 1e-6), 1e-6) <= budget
    assert discrete_rho(3.0, 100.0, 4, 17) == pytest.approx(9 / 800)
    assert discrete_rho(3.0, 0.1, 4, 17) > 9 / 0.8  # a sum of coarse shares is no discrete Gaussian


@pytest.mark.parametrize("variance", [1, 5])
def test_noise_is_the_discrete_gaussian(variance: int) -> None:
    """Chi-squared against the distribution that the accounting is for; its seed is fixed, so that it always holds."""
    drawn, reach = 20_000, 3 * math.isqrt(variance)
    below = random.Random(5).randrange
    found = np.array([draw(variance, below) for _ in range(drawn)])
    weights = np.exp(-(np.arange(-60, 61) ** 2) / (2 * variance))
    wanted = weights[60 - reach : 61 + reach] / weights.sum() * drawn
    counts = np.array([(found == value).sum() for value in range(-reach, reach + 1)])
    assert ((counts - wanted) ** 2 / wanted).sum() < 2 * reach + 1 + 3 * math.sqrt(2 * (2 * reach + 1))
    assert np.abs(found).max() < 10 * variance + 10


def test_large_noise_has_its_variance() -> None:
    below, variance = random.Random(6).randrange, 1 << 40
    found = np.array([draw(variance, below) for _ in range(4_000)], np.float64)
    assert abs(found.var() / variance - 1) < 4 * math.sqrt(2 / 4_000)
    assert abs(found.mean()) < 4 * math.sqrt(variance / 4_000)


def test_a_canary_proves_no_more_than_was_promised() -> None:
    """And it finds that the promise is broken where devices add a hundredth of the noise."""
    assert clopper_pearson(3, 100, 0.0125) == pytest.approx((0.00477761, 0.09416147), abs=1e-6)
    canary = np.array([3_000, -4_000, 0], np.int64)
    variance = round(25e6 / (2 * 2 * rho_within(1.0, 1e-5)))
    assert lower_bound(*observe_canary(canary, variance, 2, 300), 1e-5) < 1.0
    assert lower_bound(*observe_canary(canary, variance // 100, 2, 300), 1e-5) > 1.0


def test_the_command(bundle_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["wake", "me", "at", "six", "play", "some", "music", "stop", "the", "alarm"]
    lines = [{"text": f"{a} {b}", "label": ("alarm", "music")[len(a) % 2]} for a in words[:4] for b in words[4:7]]
    candidates = tmp_path / "candidates.jsonl"
    candidates.write_text("\n".join(map(json.dumps, lines)))
    options = ["--rounds", "2", "--groups", "4,32", "--noise", "1", "--trials", "20"]
    options += ["--split", "3", "--fanouts", "1,8"]
    arguments = ["privacy", "attack", str(bundle_folder), "--candidates", str(candidates), "--json", *options]
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    assert "sums of 32 are left out: they need more candidates than 12" in err
    found = [json.loads(line) for line in out.splitlines()]
    rates = {(each["attack"], each["rounds"], each["epsilon"]): each.get("rate") for each in found}
    assert rates["one result of one example: sentence and label", 1, None] == 1
    assert rates["who is in a sum of 4", 2, None] == 1
    assert 0 < rates["whose a known sentence is, in a masked group of 4", 1, None] < 0.5
    assert rates["a device's, all others known", 2, 1.0] < 0.5
    assert found[-1]["proved"] <= 1
    assert main([*arguments, "--noise", "none"]) == 1
    assert "[privacy.not-numbers]" in capsys.readouterr().err
    assert main([*arguments[:-2], "--groups", "x"]) == 1
    capsys.readouterr()
    for more, kind in (
        (["--trials", 0], "privacy.no-trials"),
        (["--groups", 1], "privacy.group-size"),
        (["--groups", 12], "privacy.too-few-candidates"),
        (["--rounds", 0], "job.out-of-range"),
    ):
        assert main([*arguments, *map(str, more)]) == 1
        assert f"[{kind}]" in capsys.readouterr().err


def test_each_candidate_has_every_label(store: DataStore) -> None:
    found = every_label(store, 3)
    assert len(found) == 3 * len(store)
    assert found.labels[:3].tolist() == [0, 1, 2]
    np.testing.assert_array_equal(found.ids[4], store.ids[1])
    assert found.lengths[5] == store.lengths[1]
