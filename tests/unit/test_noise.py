"""Noise in plans: what leaves a device, what it promises, and who stops when the promise is spent."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from refusals import raises, refused
from tiny import TASK
from victim import JOB, NOWHERE

from fedspzo.api.simulation import simulate
from fedspzo.broker.privacy.accounting import Spent, account
from fedspzo.broker.rounds.adaptive import Pace
from fedspzo.broker.rounds.aggregate import ClosedRound, check_result
from fedspzo.broker.rounds.job import Job, check_job, plan_round
from fedspzo.broker.rounds.objective import steepness
from fedspzo.broker.server.loop import Loop
from fedspzo.broker.server.state_folder import read_journal
from fedspzo.broker.server.store import ServerStore
from fedspzo.cli import main
from fedspzo.device_runtime.data.store import DataStore
from fedspzo.device_runtime.device.measuring import Measurer
from fedspzo.device_runtime.engines.protocol import create_engine
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.privacy.budget import epsilon
from fedspzo.device_runtime.privacy.ledger import Ledger
from fedspzo.device_runtime.privacy.promise import describe_noise
from fedspzo.device_runtime.privacy.release import cost, count_units, make_release, sensitivity, words_of
from fedspzo.device_runtime.privacy.words import add_up, pack, unpack
from fedspzo.device_runtime.protocol.codec import fingerprint
from fedspzo.device_runtime.protocol.entry import Contribution, Entry
from fedspzo.device_runtime.protocol.messages import Decline, Result
from fedspzo.device_runtime.protocol.objective import Objective
from fedspzo.device_runtime.protocol.plan import MAX_SHARES, UNITS, Plan
from fedspzo.device_runtime.replica.chain import EMPTY
from fedspzo.device_runtime.replica.state import DeviceState
from fedspzo.device_runtime.replica.weights import Replica
from fedspzo.device_runtime.step.estimator import measure
from fedspzo.device_runtime.step.objectives import Known, Outputs, find_measure
from fedspzo.device_runtime.step.runner import Forward

SETTINGS = {"split": (3,), "fanouts": (1, 4), "stages": 5, "batch": 4, "cohort": 4, "quorum": 4, "mode": "robust"}


def make_noisy(**more: object) -> Plan:
    settings: dict[str, object] = {**SETTINGS, "privacy": "device", "rounds": 5, **more}
    return plan_round(Job(**settings), 1)  # type: ignore[arg-type]


def draw_words(plan: Plan, scalars: np.ndarray, losses: np.ndarray) -> np.ndarray:
    """A release's whole numbers, with the same noise each time."""
    return words_of(plan, *make_release(plan, scalars, losses, random.Random(1).randrange))


@pytest.mark.parametrize("unit", ["device", "example"])
def test_one_unit_changes_a_release_no_more_than_the_accounting_says(unit: str) -> None:
    plan, chance = make_noisy(privacy=unit), np.random.default_rng(0)
    for size in (1, 100, 1e6):
        scalars, losses = chance.normal(0, size, (4, 4)), chance.exponential(1, 4)
        gone = (scalars[:3], losses[:3]) if unit == "example" else (0 * scalars, 0 * losses)
        change = np.linalg.norm(draw_words(plan, scalars, losses) - draw_words(plan, *gone))
        assert 0 < change <= sensitivity(plan.noise[0])
    assert change > 0.9 * sensitivity(plan.noise[0])  # large ones are clipped to all that is allowed
    broken = np.vstack([scalars, np.full(4, np.nan)])
    np.testing.assert_array_equal(
        draw_words(make_noisy(privacy="example"), broken, np.append(losses, 1.0)),
        draw_words(make_noisy(privacy="example"), scalars, losses),
    )


@pytest.mark.parametrize("budget", [8.0, 0.1])
def test_sums_are_those_of_the_whole_numbers(budget: float) -> None:
    """A float32 holds a release exactly, so that what is masked is what was drawn."""
    plan = make_noisy(privacy="example", privacy_budget=budget, cohort=12, quorum=12, mode="groups")
    assert plan.noise[0].shares == plan.masking[0].least == 4
    results, words = [], []
    for seed in range(4):
        scalars, loss = make_release(plan, np.ones((4, 4)), np.ones(4), random.Random(seed).randrange)
        results.append(Result(1, b"", tuple(scalars.tolist()), loss, plan.batch, 0.0, b""))
        words.append(words_of(plan, scalars, loss))
        assert np.abs(words[-1]).max() > 100
        again = np.float32(words[-1][:-1] / (sensitivity(plan.noise[0]) * count_units(plan)) * plan.noise[0].clip)
        np.testing.assert_array_equal(again, scalars)
    total = unpack(plan, add_up(np.sum([pack(plan, result) for result in results], axis=0), 4))
    np.testing.assert_allclose(total.scalars, np.mean([r.scalars for r in results], axis=0), rtol=1e-6)
    assert total.loss == pytest.approx(np.mean([result.loss for result in results]))
    with raises("plan.noise-of-more-than-a-sum", "lower honest"):
        replace(plan, noise=(replace(plan.noise[0], shares=5),))


def test_noise_of_devices_is_what_the_accounting_assumes(bundle: Bundle, store: DataStore) -> None:
    """What devices measure with a plan's noise, around what they measure without."""
    forward = Forward(create_engine("litert", 1), Replica(bundle, None, 1))
    plan = make_noisy(noise_clip=1e3)
    (noise,) = plan.noise
    quiet = replace(plan, noise=(replace(noise, variance=1),))
    centre = measure(forward, store, quiet, "device")
    deviation = math.sqrt(noise.variance) / sensitivity(noise) * noise.clip
    draws = [measure(forward, store, plan, "device") for _ in range(60)]
    found = (np.array([drawn.scalars for drawn in draws]) - centre.scalars) / deviation
    assert abs(found.mean()) < 5 / math.sqrt(found.size)
    assert abs(found.var() - 1) < 5 * math.sqrt(2 / found.size)
    assert {drawn.examples for drawn in draws} == {plan.batch}


@pytest.mark.parametrize("unit", ["device", "example"])
@pytest.mark.parametrize("budget", [8.0, 1.0])
def test_all_rounds_together_cost_the_budget(unit: str, budget: float) -> None:
    job = Job(**SETTINGS, privacy=unit, privacy_budget=budget, rounds=50)
    rho = 50 * cost(plan_round(job, 7))
    assert 0.99 * budget < epsilon(rho, job.delta) <= budget
    # One device's share of the noise alone promises a quarter as much.
    (noise,) = plan_round(job, 7).noise
    assert cost(replace(plan_round(job, 7), noise=(replace(noise, shares=1),))) == pytest.approx(4 * rho / 50)


def test_shares_of_noise_suffice_in_plain_sums_alone() -> None:
    """A rule that looks at single results sees each with a share of the noise only."""
    assert make_noisy().aggregate == "weighted-mean"
    assert make_noisy(honest=1, aggregate="median").aggregate == "median"
    job = Job(**SETTINGS, privacy="device")  # type: ignore[arg-type]
    pace = Pace(job, [Entry(plan_round(job, round), (Contribution("", 1.0, (1.0,) * 4),)) for round in range(1, 9)])
    assert pace.plan(9).bound == 0


def test_dp_accounting_agrees() -> None:
    plan = make_noisy(rounds=100, privacy_budget=2.0)
    assert account([cost(plan)] * 100, 1e-5) == pytest.approx(2.0, rel=1e-2)


def test_what_does_not_go_with_noise_is_refused() -> None:
    for kind, more in (
        ("job.honest-above-quorum", {"honest": 5}),
        ("job.privacy-of-aggregate", {"aggregate": "median"}),
        ("job.privacy-of-adapt", {"adapt": ("rates",)}),
        ("job.privacy-of-votes", {"votes": True}),
        ("plan.noise", {"steps": 2}),
        ("plan.noise", {"energy": True}),
        ("job.budget-too-small", {"privacy_budget": 1e-3, "rounds": 10**6}),
    ):
        with raises(kind):
            make_noisy(**more)


def test_noise_that_is_not_asked_for_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for more in ({"privacy_budget": 2.0}, {"delta": 1e-6}, {"noise_clip": 1.0}, {"honest": 2}):
        with raises("job.noise-without-privacy", *more, "add privacy = device or example"):
            Job(**more)  # type: ignore[arg-type]
    arguments = ["server", tmp_path, "--state", tmp_path, "--privacy-budget", "8"]  # the default, but given
    assert "[job.noise-without-privacy]" in refused(capsys, *arguments)


@pytest.mark.parametrize(("objective", "clip"), [("loss", 100), ("reward", 25), ("expected-error", 25), ("error", 100)])
def test_a_clip_that_is_not_said_suits_the_objective(bundle: Bundle, objective: str, clip: float) -> None:
    """By the objective's name alone. Rates, which cannot adapt under noise, follow as well."""
    job = check_job(Job(objective=objective, privacy="example"), bundle)
    assert plan_round(job, 1).noise[0].clip == clip
    assert plan_round(replace(job, noise_clip=7.0), 1).noise[0].clip == 7
    of_loss = check_job(Job(privacy="example"), bundle)
    assert job.learning_rates[-1] == pytest.approx(of_loss.learning_rates[-1] * 100 / clip, rel=1e-2)
    adapting, of_loss = check_job(Job(objective=objective), bundle), check_job(Job(), bundle)
    assert adapting.learning_rates == of_loss.learning_rates, "they are divided by what is measured"


@given(st.lists(st.tuples(st.floats(-20, 20), st.floats(-10, 10)), min_size=2, max_size=6), st.integers(0, 1))
def test_a_probability_is_a_quarter_as_steep_as_its_logarithm(scores: list[tuple[float, float]], label: int) -> None:
    """Along any change of scores: by as much as the loss at most, and by a quarter of that where a cost is 1 - π."""
    start, along = np.array(scores).T
    most = np.abs(along - along[label]).max()
    labelled = Known(np.array([label], np.int32), None)

    def slope(measure: Callable[[np.ndarray], float]) -> float:
        step = 1e-4
        return abs(measure(start + step * along) - measure(start - step * along)) / (2 * step)

    def loss(logits: np.ndarray) -> float:
        return float(np.logaddexp.reduce(logits) - logits[label])

    def cost(logits: np.ndarray) -> float:
        outputs = Outputs(np.zeros(1), logits[None])
        return float(find_measure(Objective("expected-error", 1.0, 1.0), TASK)(outputs, labelled)[0])

    assert slope(loss) <= steepness("loss") * most + 1e-6
    assert slope(cost) <= steepness("expected-error") * most + 1e-6


def test_people_are_told_of_the_noise(make_plan: Callable[..., Plan]) -> None:
    plan = make_noisy(rounds=5, privacy_budget=2.0)
    said = describe_noise(plan, 5, 1e-5)
    for part in ("all data of a device", "ε = 2 at δ = 1e-05 for 5 rounds", "clipped to 100", "4 honest devices"):
        assert part in said
    assert f"ε = {epsilon(cost(plan), 1e-5):.3g} at δ = 1e-05 a round" in describe_noise(plan)
    assert describe_noise(make_plan()) == ""


def test_a_job_stops_at_its_budget(bundle_folder: Path, tmp_path: Path, write_examples: Callable[..., Path]) -> None:
    data, state = write_examples(tmp_path / "data.jsonl", 24), tmp_path / "state"
    job = Job(**SETTINGS, privacy="device", rounds=2, privacy_budget=1.0)
    assert len(simulate(bundle_folder, data, job, devices=4, state=state).rounds) == 2
    again = simulate(bundle_folder, data, replace(job, rounds=4), devices=4, state=state, held_out=data)
    assert again.rounds == ()
    assert max(again.evaluations) == again.model.round == 2, "its last round is evaluated, though it was to have more"
    more = simulate(bundle_folder, data, replace(job, rounds=4, privacy_budget=2.0), devices=4, state=state)
    assert 0 < len(more.rounds) < 3
    spent = Spent(replace(job, privacy_budget=2.0), read_journal(state))
    assert 1.0 < epsilon(spent.rho, job.delta) <= 2.0
    assert not spent.open_rounds


def test_attempts_count(make_plan: Callable[..., Plan]) -> None:
    """The server may have seen sums of every attempt of a round."""
    plan = make_noisy(cohort=12, quorum=12, mode="groups")
    spent = Spent(Job(**SETTINGS, privacy="device"), [])
    spent.follow(Entry(replace(plan, masking=(replace(plan.masking[0], attempt=3),)), ()))
    assert spent.rho == pytest.approx(3 * cost(plan))
    spent.follow(Entry(make_plan(), ()))
    assert spent.open_rounds == 1


def test_rounds_for_another_unit_count_for_the_jobs_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A job was started again with another unit: all data of a device are up to as many examples as a step draws."""
    plans = {unit: make_noisy(privacy=unit) for unit in UNITS}
    entries = [Entry(plan, ()) for plan in plans.values()]
    example, device = cost(plans["example"]), cost(plans["device"])
    expected = {"example": example + device, "device": SETTINGS["batch"] ** 2 * example + device}
    for unit in UNITS:
        job = Job(**SETTINGS, privacy=unit, privacy_budget=20.0, rounds=5)  # type: ignore[arg-type]
        assert Spent(job, entries).rho == pytest.approx(expected[unit])
        room = replace(job, privacy_budget=epsilon(expected[unit] + example, job.delta))
        assert Spent(room, entries).affords(plans["example"]) == (unit == "example")
    with ServerStore(tmp_path, bytes(32)) as store:
        for number, plan in enumerate((plans["example"], plans["device"]), 1):
            store.close_round(Entry(replace(plan, round=number), ()), ClosedRound(number, 1.0, ("a",), 1.0, 0.1))
    assert main(["privacy", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["unit"], found["rho"]) == ("example", pytest.approx(expected["example"]))


def test_attempts_of_an_open_round_count(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also where it was given up, for want of budget."""
    plan = make_noisy(cohort=12, quorum=12, mode="groups")
    with ServerStore(tmp_path, bytes(32)) as store:
        store.close_round(Entry(plan, ()), ClosedRound(1, 1.0, ("a",), 1.0, 0.1))
        store.save_open_round(replace(plan, round=2, masking=(replace(plan.masking[0], attempt=3),)), ("a",))
    assert main(["privacy", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rho"] == pytest.approx(4 * cost(plan))
    assert main(["privacy", str(tmp_path)]) == 0
    assert "1 rounds of the journal and the one that is open: ε" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("answers", "budget", "closed"), [(1, 8.0, 0), (7, 8.0, 0), (8, 8.0, 1), (8, 4.0, 1), (8, 2.0, 0)]
)
def test_an_open_round_waits_for_what_its_plan_promises(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, answers: int, budget: float, closed: int
) -> None:
    """Also where the server was started again with a smaller quorum; and none that costs more than the budget."""
    plan, names = make_noisy(cohort=8, quorum=8), [f"d{number}" for number in range(8)]
    job = Job(**{**SETTINGS, "cohort": 1, "quorum": 1}, privacy="device", privacy_budget=budget, rounds=5)  # type: ignore[arg-type]
    evaluator: Any = SimpleNamespace(
        round=0, head=EMPTY, follow=lambda round: None, end=lambda: None, close=lambda: None
    )
    with ServerStore(tmp_path, bytes(32)) as store:
        store.save_open_round(plan, tuple(names))
        for name in names[:answers]:
            store.save_result(name, Result(1, fingerprint(plan), (1.0,) * plan.scalars, 1.0, plan.batch, 0.0, b""))
        loop = Loop(NOWHERE, JOB, job, store, lambda report: evaluator)
        if opened := loop._progress.round:
            opened.deadline = 0.0
        loop.turn([None])
        assert store.journal.last_round == closed
        assert ("round 1 stays open: the privacy budget has no room for it" in caplog.text) == (budget == 2.0)
        loop.close()


def test_all_results_with_noise_weigh_the_same() -> None:
    """A mean in which some weigh more has less noise than the promise is of."""
    plan = make_noisy()
    answer = Result(1, fingerprint(plan), (1.0,) * plan.scalars, 1.0, plan.batch, 0.0, b"")
    check_result(plan, ("a",), "a", answer)
    with raises("result.example-count", "1 examples"):
        check_result(plan, ("a",), "a", replace(answer, examples=1))


def test_a_device_keeps_account_of_its_data(tmp_path: Path, make_plan: Callable[..., Plan]) -> None:
    file, plan = tmp_path / "data.jsonl.spent.json", make_noisy(privacy_budget=1.0, rounds=2, honest=1)
    for _ in range(2):
        assert Ledger(file, 1.0).refusal(plan) == ""
        Ledger(file, 1.0).spend(plan)
    assert "spent" in Ledger(file, 1.0).refusal(plan)
    assert "ε = 1 of 1 for all data of a device" in Ledger(file, 1.0).describe(plan)
    assert Ledger(file, 1.0).describe(make_plan()) == ""
    assert Ledger(file, 1.0).refusal(make_plan())  # without noise
    assert Ledger(file).refusal(make_plan()) == Ledger(file, 3.0).refusal(plan) == ""
    assert epsilon(json.loads(file.read_text())["device"], 1e-5) == pytest.approx(1.0, rel=1e-3)
    assert not file.stat().st_mode & 0o077
    Ledger(file).spend(make_noisy(privacy="example", rounds=2, privacy_budget=1.0, honest=1))
    found = json.loads(file.read_text())
    assert found["device"] == pytest.approx(found["example"] * (1 + 4**2 / 2) / 1.5, rel=0.3)
    file.write_text('{"device": -1, "example": 0}')
    with raises("state.ledger-damaged", file):
        Ledger(file, 1.0).refusal(plan)
    with raises("state.ledger-unusable", "--ledger"):
        Ledger(tmp_path / "gone" / "file").spend(plan)


def test_a_device_counts_on_no_others_where_the_server_sees_its_own_result(tmp_path: Path) -> None:
    """Whatever the plan says of others. Under masks it sends nothing in a smaller group."""
    plan = make_noisy(rounds=1, privacy_budget=1.0)
    (noise,) = plan.noise
    alone = replace(plan, noise=(replace(noise, shares=1),))
    ledger = Ledger(tmp_path / "robust")
    ledger.spend(plan)
    assert json.loads((tmp_path / "robust").read_text())["device"] == cost(alone) > 3.9 * cost(plan)
    claim = replace(plan, noise=(replace(noise, shares=MAX_SHARES, variance=4 * noise.variance // MAX_SHARES),))
    assert epsilon(cost(claim), 1e-5) < 1.01
    assert Ledger(tmp_path / "claim", 1.0).refusal(claim) == Ledger(tmp_path / "claim", 1.0).spend(claim) != ""
    masked = make_noisy(rounds=1, privacy_budget=1.0, mode="secure")
    assert masked.noise[0].shares == masked.masking[0].least == 4
    Ledger(tmp_path / "masked", 1.0).spend(masked)
    assert json.loads((tmp_path / "masked").read_text())["device"] == cost(masked)
    for shares in (0, MAX_SHARES + 1, 10**6):
        with raises("plan.shares-out-of-range", shares):
            replace(noise, shares=shares)


def test_two_accounts_of_one_data_set_do_not_spend_its_rest_twice(tmp_path: Path) -> None:
    """Both find that there is room, and measure; then one of them is late."""
    file, plan = tmp_path / "spent", make_noisy(privacy_budget=1.0, rounds=1, honest=1)
    first, second = Ledger(file, 1.0), Ledger(file, 1.0)
    assert first.refusal(plan) == second.refusal(plan) == ""
    assert first.spend(plan) == ""
    assert second.spend(plan) == "its privacy budget is spent"
    assert epsilon(json.loads(file.read_text())["device"], 1e-5) <= 1.0
    assert Ledger(file).spend(plan) == "", "where no limit is given, it is only noted"


@pytest.mark.parametrize("given", ["refusal", "spend"])
def test_a_device_declines_what_its_account_has_no_room_for(
    bundle: Bundle, store: DataStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    """When it is asked, or when it has measured and another process has spent the rest meanwhile."""
    plan = make_noisy(privacy_budget=1.0, rounds=1, honest=1)
    other, ledger = Ledger(tmp_path / "spent", 1.0), Ledger(tmp_path / "spent", 1.0)
    state = DeviceState(tmp_path / "state", bundle, "a")
    measurer = Measurer(create_engine("litert", 1), state, lambda: store, ledger=ledger)
    assert other.spend(plan) == ""
    if given == "spend":
        monkeypatch.setattr(ledger, "refusal", lambda plan: "")
    assert measurer.answer(plan) == Decline(1, "its privacy budget is spent", passing=False)
    state.close()


def test_the_command(bundle_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["privacy", str(bundle_folder), "--split", "3", "--fanouts", "1,4", "--rounds", "20"]
    assert main(arguments) == 0
    assert "no promise" in capsys.readouterr().out
    assert main([*arguments, "--privacy", "example", "--privacy-budget", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["epsilon"] == pytest.approx(2, rel=1e-3)
    assert found["dp_accounting"] == pytest.approx(2, rel=1e-2)
    assert found["epsilon_to_server"] > 1.4 * found["epsilon"]
    assert main([*arguments, "--privacy", "device"]) == 0
    said = capsys.readouterr().out
    assert "all data of a device" in said
    assert "the server sees each result with a share of the noise: against it" in said
    assert main([*arguments, "--privacy", "device", "--honest", "1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["epsilon_to_server"] == found["epsilon"]
