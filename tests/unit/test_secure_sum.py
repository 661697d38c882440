"""The pure core of the secure sum: whole numbers that keep to their clip, and masks that cancel in a group alone."""

from __future__ import annotations

import itertools
import secrets
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import raises

from fedspzo.broker.rounds.anomalies import Watch
from fedspzo.broker.rounds.groups import divide, group_results, sum_results, try_again
from fedspzo.broker.rounds.job import Job
from fedspzo.broker.rounds.modes import least_summed, mask_plan
from fedspzo.device_runtime.privacy.masks import Purpose, hash_group, mask, pair_key, pseudonym, unmask
from fedspzo.device_runtime.privacy.quantise import LARGEST, Grid, quantise
from fedspzo.device_runtime.privacy.words import unpack
from fedspzo.device_runtime.protocol.agreement import key_agreement
from fedspzo.device_runtime.protocol.codec import decode, encode
from fedspzo.device_runtime.protocol.messages import Result
from fedspzo.device_runtime.protocol.plan import Block, Masking, Plan

GRID = Grid(clip=40.0, examples=8, devices=32)
SCALARS = st.lists(st.floats(-1e9, 1e9, width=32), min_size=1, max_size=24)


@pytest.fixture(scope="module")
def keys() -> dict[bytes, tuple[bytes, dict[bytes, bytes]]]:
    """Pseudonym → its public key, and the keys of its pairs; of 12 devices."""
    own = [key_agreement().private_key(secrets.token_bytes(32)) for _ in range(12)]
    names = {pseudonym("job", b"bundle", bytes(32), each.public): each for each in own}
    return {
        name: (each.public, {other: pair_key(each, k.public) for other, k in names.items() if other != name})
        for name, each in names.items()
    }


@given(SCALARS, st.floats(-1e9, 1e9), st.integers(1, GRID.examples))
def test_words_keep_to_the_clip_and_fit(scalars: list[float], loss: float, examples: int) -> None:
    words = quantise(scalars, loss, examples, GRID)
    assert words.dtype == np.int64
    assert words.shape == (len(scalars) + 1,)
    assert sum(int(word) ** 2 for word in words) <= (examples * GRID.steps) ** 2
    assert GRID.devices * int(np.abs(words).max()) <= LARGEST


@given(st.lists(st.floats(-8, 8, width=32), min_size=1, max_size=16), st.floats(0, 20), st.integers(1, 8))
def test_what_is_within_the_clip_comes_back(scalars: list[float], loss: float, examples: int) -> None:
    back, mean_loss = GRID.mean(quantise(scalars, loss, examples, GRID), examples)
    assert back.dtype == np.float32
    assert np.abs(back - np.asarray(scalars, np.float32)).max() <= GRID.clip / GRID.steps + 1e-6
    assert abs(mean_loss - loss) <= 64 / GRID.steps


def test_a_larger_vector_is_cut_and_keeps_its_direction() -> None:
    back, _ = GRID.mean(quantise([300.0, -400.0], 0.0, 3, GRID), 3)
    assert back.tolist() == pytest.approx([24.0, -32.0], rel=1e-5)


def test_a_grid_that_is_too_coarse_is_refused() -> None:
    with raises("plan.coarse-sums", "1000 devices", "5000 examples", "lower batch"):
        Grid(1.0, 5000, 1000)


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_the_sum_of_a_group_is_the_plain_sum(keys: dict, data: st.DataObject) -> None:
    """For each set of ready devices, in groups, with a third of all missing; groups without one count bit for bit."""
    ready = data.draw(st.lists(st.sampled_from(sorted(keys)), min_size=4, max_size=12, unique=True))
    missing = set(data.draw(st.lists(st.sampled_from(ready), max_size=len(ready) // 3, unique=True)))
    count = len(ready) // 4
    words = {name: np.array(data.draw(st.lists(st.integers(-GRID.limit, GRID.limit), min_size=5, max_size=5)))
             for name in ready}  # fmt: skip
    for group in (sorted(ready[start::count]) for start in range(count)):
        purpose = Purpose("job", b"bundle", b"plan", hash_group(group))
        masked = {
            name: mask(words[name], name, {other: keys[name][1][other] for other in group if other != name}, purpose)
            for name in group
        }
        plain = np.sum([words[name] for name in group], axis=0)
        arrived = [vector for name, vector in masked.items() if name not in missing]
        if len(arrived) == len(group):
            assert unmask(arrived).tolist() == plain.tolist()
        elif arrived:
            assert unmask(arrived).tolist() != np.sum([words[n] for n in group if n not in missing], axis=0).tolist()


def test_masks_of_another_purpose_do_not_cancel(keys: dict) -> None:
    group = sorted(keys)[:4]
    base = Purpose("job", b"bundle", b"plan", hash_group(group))
    others = [
        Purpose("job", b"bundle", b"other", hash_group(group)),
        Purpose("other", b"bundle", b"plan", hash_group(group)),
        Purpose("job", b"other", b"plan", hash_group(group)),
        Purpose("job", b"bundle", b"plan", hash_group(sorted(keys)[:5])),
    ]
    zero = np.zeros(4, np.int64)

    def masked(name: bytes, purpose: Purpose) -> np.ndarray:
        return mask(zero, name, {other: keys[name][1][other] for other in group if other != name}, purpose)

    assert unmask([masked(name, base) for name in group]).tolist() == zero.tolist()
    for other in others:
        assert unmask([masked(group[0], other), *(masked(name, base) for name in group[1:])]).any()


def test_who_shows_anothers_key_as_its_own_cancels_no_mask(keys: dict) -> None:
    """A device that believes two members to have one key sends nothing that is free of masks, wherever they stand."""
    own, honest = sorted(keys)[5:7]
    shared = keys[own][1][honest]
    purpose = Purpose("job", b"bundle", b"plan", b"")
    zero = np.zeros(64, np.int64)
    for copy in (bytes(16), b"\xff" * 16):
        assert mask(zero, own, {honest: shared, copy: shared}, purpose).all()
        alone = {honest: shared}
        assert (mask(zero, own, {honest: shared, copy: shared}, purpose) != mask(zero, own, alone, purpose)).any()


def test_a_pair_has_one_key_and_no_other_pair_has_it(keys: dict) -> None:
    found = set()
    for one, other in itertools.combinations(keys, 2):
        assert keys[one][1][other] == keys[other][1][one]
        found.add(keys[one][1][other])
    assert len(found) == 12 * 11 // 2
    with pytest.raises(ValueError, match="(?i)small order|computing shared key"):
        pair_key(key_agreement().private_key(bytes(32)), bytes(32))


def test_a_masked_result_says_nothing_of_the_words(keys: dict) -> None:
    """Under masks of which one is unknown, words are spread over all of 32 bits whatever they are."""
    own, other = sorted(keys)[:2]
    purpose = Purpose("job", b"bundle", b"plan", b"")
    for value in (0, 1, -1, GRID.limit):
        vector = mask(np.full(4096, value), own, {other: keys[own][1][other]}, purpose)
        top = np.bincount(vector >> 28, minlength=16)
        assert top.min() > 4096 / 16 / 2


PLAN = Plan(
    round=7, base_seed=1, shared=True, distribution="rademacher", steps=1, batch=8, epsilon=1e-3,
    blocks=(Block(2, 1, 1.0, 0.1),), deadline=5.0, digest=False,
)  # fmt: skip

BLOCKS = (Block(2, 1, 1.0, 0.1), Block(4, 16, 1.0, 0.1))


def test_a_plan_says_last_how_to_mask_and_otherwise_has_the_bytes_of_before() -> None:
    masked = replace(PLAN, masking=(Masking("groups", 1, 40.0, 4, 7),))
    assert decode(encode(masked)) == masked
    assert masked.mode == "groups"
    assert PLAN.mode == "robust"
    assert encode(PLAN)[0] + 4 == encode(masked)[0]  # an array of 4 fields more; the 3 before it come too


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"mode": "robust"}, "plan.unknown-mode"),
        ({"attempt": 0}, "plan.masking"),
        ({"clip": 0.0}, "plan.masking"),
        ({"least": 3}, "plan.group-too-small"),
        ({"most": 3}, "plan.group-too-small"),
    ],
)
def test_a_plan_that_does_not_hide_enough_is_refused(change: dict, kind: str) -> None:
    with raises(kind):
        Masking(**{"mode": "groups", "attempt": 1, "clip": 1.0, "least": 4, "most": 8, **change})


def test_directions_of_the_devices_own_cannot_be_summed() -> None:
    with raises("plan.masked-own-directions", "share"):
        replace(PLAN, shared=False, masking=(Masking("groups", 1, 1.0, 4, 8),))


def test_a_job_sums_groups_where_it_can() -> None:
    assert Job(cohort=12).runs_as == "groups"
    for other in (Job(cohort=11), Job(cohort=12, seeds="device"), Job(cohort=12, votes=True), Job(cohort=15, group=8)):
        assert other.runs_as == "robust"
    assert [least_summed(Job(cohort=cohort)) for cohort in (12, 20, 32, 100, 1000)] == [4, 4, 6, 20, 32]
    assert [Job(cohort=cohort, quorum=quorum).fewest for cohort, quorum in ((12, 1), (12, 9), (4, 1))] == [4, 9, 1]


@pytest.mark.parametrize(
    ("settings", "kind", "cure"),
    [
        ({"mode": "groups", "cohort": 11}, "job.cohort-too-small", "raise cohort"),
        ({"mode": "secure", "cohort": 3}, "job.cohort-too-small", "raise cohort"),
        ({"mode": "secure", "aggregate": "krum"}, "job.aggregate-of-one-sum", "mode = groups"),
        ({"mode": "secure", "cohort": 129}, "job.cohort-too-large", "mode = groups"),
        ({"mode": "secure", "seeds": "device"}, "job.mode-of-own-directions", "seeds = shared"),
        ({"mode": "groups", "cohort": 12, "votes": True}, "job.mode-of-votes", "leave out mode"),
        ({"group": 3}, "job.group-size", "from 4 to 32"),
        ({"mode": "secure", "cohort": 128, "batch": 20_000}, "plan.coarse-sums", "lower batch"),
    ],
)
def test_what_a_mode_excludes_is_refused(settings: dict, kind: str, cure: str) -> None:
    with raises(kind, cure):
        Job(**settings)


@given(st.integers(12, 200), st.integers(1, 9))
def test_groups_are_even_and_drawn_again_for_each_attempt(count: int, attempt: int) -> None:
    plan = mask_plan(Job(cohort=count), replace(PLAN, base_seed=attempt))
    (masking,) = plan.masking
    devices = [f"d{number}" for number in range(count)]
    groups = divide(plan, devices)
    assert sorted(device for group in groups for device in group) == sorted(devices)
    assert masking.least <= min(map(len, groups)) <= max(map(len, groups)) <= masking.most
    assert len(groups) >= 3
    assert groups == divide(plan, devices[::-1])
    again = try_again(plan, seed=0)
    assert again.masking[0].attempt == masking.attempt + 1
    assert divide(again, devices) != groups


def test_a_device_in_large_groups_is_noted_and_nobody_is_accused() -> None:
    """One of 12 sends what its clip allows, which makes its group about twice as large as the others."""
    watch, devices = Watch({}, limit=3), [f"d{number:02d}" for number in range(12)]
    random = np.random.default_rng(3)
    for number in range(1, 61):
        plan = mask_plan(Job(cohort=12, clip=4.0), replace(PLAN, round=number, base_seed=number, blocks=BLOCKS))
        drawn = {device: random.standard_normal(16) for device in devices}
        drawn["d05"] *= 100
        results = {
            device: Result(number, b"", tuple(vector.tolist()), 1.0, 8, 0.1, b"") for device, vector in drawn.items()
        }
        groups = divide(plan, devices)
        totals = [unpack(plan, sum_results(plan, results, group)) for group in groups]
        watch.close_sums(plan, groups, group_results(plan, totals))
    assert [device for device, record in watch.records.items() if record.grouped] == ["d05"]
    assert not any(record.accused or record.expelled for record in watch.records.values())
    assert "in groups larger than others" in watch.records["d05"].reason
