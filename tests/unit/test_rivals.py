"""Rivals of the study: their rules are those of their papers, and what measures them is what measures jobs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from refusals import raises
from rivals import LABELS, RIVALS, Rival, RivalTraining
from rules import (
    Curvature,
    LowRank,
    Momentum,
    Orthogonal,
    Preconditioned,
    Sparse,
    factor,
    most_sensitive,
    orthogonalise,
    power_iteration,
)
from settings import Setting
from trial import COMPARABLE

from fedspzo.broker.rounds.aggregate import close_round
from fedspzo.broker.rounds.anomalies import examine
from fedspzo.broker.rounds.bound import FEWEST, Bound
from fedspzo.broker.rounds.job import Job, check_job, plan_round
from fedspzo.broker.rounds.methods import METHODS
from fedspzo.broker.rounds.recommend import last_trained
from fedspzo.broker.rounds.robust import normalise
from fedspzo.broker.server.store import ServerStore
from fedspzo.broker.simulation.driver import simulate
from fedspzo.broker.simulation.fleet import CALM, Fleet
from fedspzo.broker.simulation.partition import Shares, Skew, device_names, share_out
from fedspzo.broker.simulation.workers import LocalWorkers, Work
from fedspzo.broker.simulation.zeroth_order import ZerothOrder
from fedspzo.device_runtime.data.store import DataStore
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.protocol.codec import fingerprint
from fedspzo.device_runtime.protocol.messages import Result
from fedspzo.device_runtime.replica.weights import Replica

WEIGHTS = {0: np.zeros((12, 8), np.float32), 1: np.zeros(8, np.float32)}
DEVICES, ROUNDS = 4, 3


def drawn(seed: int = 0) -> dict[int, np.ndarray]:
    random = np.random.default_rng(seed)
    return {index: random.standard_normal(array.shape).astype(np.float32) for index, array in WEIGHTS.items()}


def added(rule: object, state: object, seed: int) -> dict[int, np.ndarray]:
    out = {index: np.zeros_like(array) for index, array in WEIGHTS.items()}
    rule.add(state, out, [(seed, 1.0)])  # type: ignore[attr-defined]
    return out


def result(plan_bytes: bytes, scalars: list[float], examples: int = 4) -> Result:
    return Result(1, plan_bytes, tuple(scalars), 1.0, examples, 0.1, b"")


FZOO = Job(cohort=3, batch=4, stages=5, seed=1, **METHODS["fzoo"].settings(4))


def test_fzoo_divides_a_step_by_the_standard_deviation_of_its_losses() -> None:
    plan = plan_round(FZOO, 1)
    losses = {"a": [2.5, 2.1, 1.9, 2.7], "b": [1.0, 1.4, 1.1, 0.9]}
    centres = {"a": 2.0, "b": 1.2}
    results = {
        device: result(fingerprint(plan), [(loss - centres[device]) / plan.epsilon for loss in found])
        for device, found in losses.items()
    }
    (one,) = close_round(plan, results).contributions
    mean = (np.array(losses["a"]) + losses["b"]) / 2
    expected = (mean - 1.6) / np.std(mean, ddof=1)
    np.testing.assert_allclose(one.scalars, expected, rtol=1e-5)
    own = close_round(plan_round(replace(FZOO, seeds="device"), 1), results).contributions
    for contribution, (device, found) in zip(own, losses.items(), strict=True):
        alone = (np.array(found) - centres[device]) / np.std(found, ddof=1)
        np.testing.assert_allclose(contribution.scalars, alone, rtol=1e-5)


def test_each_block_has_its_own_deviation_and_equal_losses_move_nothing() -> None:
    found = normalise(np.array([1.0, 3.0, 10.0, 20.0, 30.0, 5.0, 5.0]), [2, 3, 2])
    np.testing.assert_allclose(found, [2**-0.5, 3 * 2**-0.5, 1, 2, 3, 0, 0])


def test_what_was_divided_says_nothing_of_how_large_results_may_be() -> None:
    bound = Bound(FZOO)
    for number in range(1, FEWEST + 2):
        plan = plan_round(FZOO, number)
        bound.follow(close_round(plan, {"a": result(fingerprint(plan), [100.0, 50.0, -70.0, 10.0])}))
    assert bound.apply(plan_round(FZOO, FEWEST + 2)).bound == 0


def test_nobody_is_accused_of_a_size_that_no_past_round_says_is_unusual() -> None:
    """A device whose examples are hard may well measure ten times what devices with easy ones do."""
    plan = plan_round(FZOO, 9)
    scalars = {"a": [1.0, -1.0, 1.0, -1.0], "b": [1.0, 1.0, -1.0, -1.0], "c": [10.0, -11.0, 9.0, 12.0]}
    results = {device: result(fingerprint(plan), own) for device, own in scalars.items()}
    assert not any(finding.large for finding in examine(plan, results).values())
    assert examine(replace(plan, aggregate="clipped-mean"), results)["c"].large


@pytest.mark.parametrize("more", [{"sides": 2}, {"fanouts": (1,)}, {"steps": 2}])
def test_a_deviation_needs_several_losses_around_a_centre(more: dict[str, object]) -> None:
    with raises("job.normalise-without-deviation", "normalise", "sides = 1"):
        replace(FZOO, **more)  # type: ignore[arg-type]


def test_nothing_adapts_to_steps_without_a_size() -> None:
    with raises("job.normalise-and-adapt", "normalise", "leave out"):
        replace(FZOO, adapt=("rates",))


def test_orthogonal_steps_have_singular_values_of_one() -> None:
    turned = orthogonalise(drawn()[0].T)
    np.testing.assert_allclose(turned @ turned.T, np.eye(8), atol=1e-5)
    rule = Orthogonal(rank=3)
    state = rule.begin(rule.start(WEIGHTS), 1)
    np.testing.assert_allclose(state.bases[0].T @ state.bases[0], np.eye(3), atol=1e-5)
    gradient = drawn()
    _, along = rule.step(state, gradient)
    np.testing.assert_allclose(np.linalg.svd(along[0])[1], [1, 1, 1, 0, 0, 0, 0, 0], atol=1e-5)
    np.testing.assert_array_equal(along[1], np.float32(rule.vectors) * gradient[1])


def test_a_power_iteration_finds_the_leading_directions() -> None:
    left, _, right = np.linalg.svd(drawn()[0].T, full_matrices=False)
    matrix = (left * [9, 6, 1, 1, 1, 1, 1, 1] @ right).astype(np.float32)
    frame = np.linalg.qr(drawn(1)[0][:, :2])[0]
    for _ in range(20):
        frame, turned = power_iteration(matrix, frame)
    np.testing.assert_allclose(turned, left[:, :2] @ right[:2], atol=1e-3)


def test_a_momentum_is_carried_into_the_next_subspace() -> None:
    rule = Orthogonal(rank=8, every=2, frame=2)
    state = rule.begin(rule.start(WEIGHTS), 1)
    state, _ = rule.step(state, drawn())
    later = rule.begin(state, 3)
    assert rule.begin(state, 2) is state
    assert not np.allclose(later.bases[0], state.bases[0])
    before, after = (each.bases[0] @ each.memory[0] for each in (state, later))
    np.testing.assert_allclose(after, before, atol=1e-5)  # a base of full rank loses nothing


def test_curvature_follows_its_recurrence_and_scales_directions() -> None:
    rule = Curvature(0.1)
    state, gradient = rule.start(WEIGHTS), drawn()
    expected = np.ones_like(gradient[0])
    for _ in range(3):
        state, along = rule.step(state, gradient)
        expected = 0.9 * expected + 0.1 * gradient[0] ** 2
        assert along is gradient
    np.testing.assert_allclose(state[0], expected, rtol=1e-5)
    np.testing.assert_allclose(added(rule, state, 5)[0] ** 2, 1 / state[0], rtol=1e-5)


def test_low_rank_directions_have_their_rank_and_share_a_factor_for_some_rounds() -> None:
    rule = LowRank(rank=2, every=3)
    states = [rule.begin(rule.start(WEIGHTS), 1)]
    states += [rule.begin(states[-1], number) for number in (2, 3, 4)]
    matrices = [added(rule, states[0], 7)[0], added(rule, states[2], 8)[0], added(rule, states[3], 9)[0]]
    assert [np.linalg.matrix_rank(matrix) for matrix in matrices] == [2, 2, 2]
    assert np.linalg.matrix_rank(np.hstack(matrices[:2])) == 2, "one V"
    assert np.linalg.matrix_rank(np.hstack(matrices)) == 4, "another V"
    many = np.array([added(rule, states[0], seed)[1] for seed in range(200)])
    assert many.std() == pytest.approx(1, rel=0.1)


def test_only_the_most_sensitive_weights_move() -> None:
    squares = {0: np.zeros((12, 8)), 1: np.zeros(8)}
    squares[0][3, 4], squares[1][2], squares[0][0, 0] = 5.0, 4.0, 3.0
    chosen = most_sensitive(squares, 2 / 104)
    out = added(Sparse(chosen), None, 3)
    assert [np.flatnonzero(out[index]).tolist() for index in (0, 1)] == [[3 * 8 + 4], [2]]


def test_directions_follow_the_factors_of_public_gradients() -> None:
    gradients = [drawn(seed)[0] * np.linspace(0.1, 3, 12, dtype=np.float32)[:, None] for seed in range(20)]
    inputs = np.mean([g @ g.T for g in gradients], axis=0)
    outputs = np.mean([g.T @ g for g in gradients], axis=0)
    rule = Preconditioned({0: (factor(inputs, 0.25), factor(outputs, 0.25))})
    many = np.array([added(rule, None, seed)[0] for seed in range(400)])
    assert np.mean(many**2) == pytest.approx(1, rel=0.05), "as long as directions of ±1"
    expected = np.sqrt(np.diag(inputs))
    np.testing.assert_allclose((many**2).mean(axis=(0, 2)), expected / expected.mean(), rtol=0.25)
    assert set(np.abs(added(rule, None, 1)[1])) == {1.0}, "vectors as in jobs"
    plain = Preconditioned({0: (factor(inputs, 0.0), factor(outputs, 0.0))})
    np.testing.assert_allclose(np.abs(added(plain, None, 1)[0]), 1.0, atol=1e-5)


def test_momentum_is_a_decaying_mean() -> None:
    rule, first, second = Momentum(0.5), drawn(1), drawn(2)
    state, _ = rule.step(rule.start(WEIGHTS), first)
    _, along = rule.step(state, second)
    np.testing.assert_allclose(along[0], 0.25 * first[0] + 0.5 * second[0], rtol=1e-6)


@pytest.mark.parametrize("method", ["decomfl-one-sided", "frozen", "frozen-labels"])
def test_a_rival_that_does_what_a_job_does_moves_and_spends_as_the_job(
    bundle: Bundle, store: DataStore, tmp_path: Path, method: str
) -> None:
    """Losses on weights in memory are those of the estimator, behind a frozen prefix as well."""
    settings = COMPARABLE[method].settings(2, 1e-3)
    cut = {"split": (last_trained(bundle.manifest),)} if method.endswith(LABELS) else {}
    job = check_job(Job(**settings, **cut, rounds=ROUNDS, cohort=3, quorum=1, seed=5, batch=2), bundle)

    def shares(bundle: Bundle) -> Shares:
        return share_out(store, DEVICES, Skew(float("inf")), 0)

    setting = Setting("tiny", bundle, bundle, store, store, 1.0, tmp_path)
    plain = Rival(COMPARABLE[method], lambda *_: Momentum(0.0))
    workers = LocalWorkers(Work(bundle.folder, "litert", 1, None, shares))
    trained, flops = [], []
    for training in (
        ZerothOrder(job, ServerStore(tmp_path, bundle.identity), workers),
        RivalTraining(job, setting, plain, shares(bundle)),
    ):
        replica = Replica(bundle)
        flops.append([each.flops for each in simulate(job, Fleet(device_names(DEVICES), CALM, 0), training)])
        training.advance(replica)
        trained.append(replica.trainable)
    assert flops[0] == flops[1]
    apart = moved = 0.0
    for index, start in Replica(bundle).trainable.items():
        apart = max(apart, float(np.abs(trained[1][index] - trained[0][index]).max()))
        moved = max(moved, float(np.abs(trained[0][index] - start).max()))
    assert apart < 2e-3 * moved, "graphs round losses their own way, and ε magnifies that"


def test_every_rival_is_there_for_the_whole_model_and_for_parts_of_it() -> None:
    parts = ("-frozen", LABELS)
    assert all(rival.method.first == (0 if name.endswith(parts) else None) for name, rival in RIVALS.items())
    assert not RIVALS.keys() & METHODS.keys()
