"""Learning from what people do: reactions as data, objectives and their estimates, the guard, old devices."""

from __future__ import annotations

import argparse
import io
import itertools
import json
import math
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import raises
from tiny import TASK

from fedspzo.api.simulation import simulate
from fedspzo.broker.rounds.anomalies import examine
from fedspzo.broker.rounds.guard import find_breach
from fedspzo.broker.rounds.job import Job, check_job, plan_round
from fedspzo.broker.rounds.robust import RULES, RULES_OF_GROUPS
from fedspzo.broker.server.devices import Member, Roster, accept
from fedspzo.broker.server.server import Server
from fedspzo.broker.simulation.partition import Partition, Skew
from fedspzo.cli import main
from fedspzo.commands.predict import _record
from fedspzo.device_runtime.data.feedback import Feedback
from fedspzo.device_runtime.data.sources import parse_record
from fedspzo.device_runtime.data.store import DataStore, load_data, subset
from fedspzo.device_runtime.data.suggestion import Suggestion, suggest
from fedspzo.device_runtime.device.measuring import Measurer
from fedspzo.device_runtime.engines.protocol import create_engine
from fedspzo.device_runtime.errors import DataError, PlanError
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.model.task import Task
from fedspzo.device_runtime.protocol.codec import encode, fingerprint
from fedspzo.device_runtime.protocol.messages import OBJECTIVES, Decline, Result, Sync
from fedspzo.device_runtime.protocol.objective import Objective
from fedspzo.device_runtime.protocol.plan import Noise, Plan
from fedspzo.device_runtime.protocol.signing import SIGNATURE_BYTES
from fedspzo.device_runtime.replica.state import DeviceState
from fedspzo.device_runtime.replica.weights import Replica
from fedspzo.device_runtime.step import objectives
from fedspzo.device_runtime.step.estimator import measure
from fedspzo.device_runtime.step.objectives import Known, Outputs, find_measure
from fedspzo.device_runtime.step.rewards import estimate_reward, summarise
from fedspzo.device_runtime.step.runner import Forward
from fedspzo.device_runtime.step.scores import evaluate

MakePlan = Callable[..., Plan]
REWARD = Objective("reward", 10.0, 1.0)
logits = st.lists(st.floats(-3, 3), min_size=3, max_size=3)
shares = st.lists(st.floats(0.05, 1), min_size=3, max_size=3).map(lambda each: np.array(each) / sum(each))
rewards = st.lists(st.floats(-1, 1), min_size=3, max_size=3).map(np.array)


@pytest.fixture(scope="module")
def forward(bundle: Bundle) -> Forward[Replica]:
    return Forward(create_engine("litert"), Replica(bundle))


@pytest.fixture(scope="module")
def reacted(store: DataStore) -> DataStore:
    """The tiny model's examples, of which each fifth has a label and the others reactions."""
    random = np.random.default_rng(3)
    shown = np.where(np.arange(20) % 5 == 0, -1, random.integers(0, 3, 20)).astype(np.int32)
    feedback = Feedback(shown, random.choice([-1, 1], 20).astype(np.float32), np.full(20, 0.7, np.float32))
    return replace(store, feedback=feedback)


def softmax(row: list[float]) -> np.ndarray:
    powers = np.exp(np.array(row, np.float32).astype(np.float64))
    return np.asarray(powers / powers.sum())


def costs(row: list[float], shown: int, reward: float, shown_with: float, cap: float) -> float:
    """Of one example, by the objective."""
    outputs = Outputs(np.zeros(1), np.array([row], np.float32))
    feedback = Feedback(np.array([shown]), np.array([reward]), np.array([shown_with]))
    measured = find_measure(Objective("reward", cap, 1.0), TASK)(outputs, Known(np.array([0]), feedback))
    return float(measured[0])


@given(logits, shares, rewards)
@settings(max_examples=50)
def test_the_estimate_is_unbiased_over_all_that_could_be_shown(
    row: list[float], policy: np.ndarray, reward: np.ndarray
) -> None:
    """By enumeration: the mean over what the logging policy shows is the reward of the model's own answers."""
    terms = np.array([-costs(row, shown, reward[shown], policy[shown], 64.0) for shown in range(3)])
    assert policy @ terms == pytest.approx(softmax(row) @ reward, abs=1e-9)
    # Its variance over what may be shown, from the definition, is the one that is estimated on average.
    variance = policy @ terms**2 - (policy @ terms) ** 2
    weights = softmax(row) / policy
    pairs = list(itertools.product(range(3), repeat=2))
    estimates = [summarise(weights[list(pair)], reward[list(pair)]).variance for pair in pairs]
    expected = sum(policy[a] * policy[b] * each for (a, b), each in zip(pairs, estimates, strict=True))
    assert expected == pytest.approx(variance / 2, abs=1e-9), "of the mean of two"


@given(logits, shares, rewards, st.floats(0.1, 5))
@settings(max_examples=50)
def test_a_cap_is_off_by_what_it_cuts(row: list[float], policy: np.ndarray, reward: np.ndarray, cap: float) -> None:
    """In both directions: cut rewards make the estimate lower, cut punishments higher."""
    own = softmax(row)
    estimate = sum(policy[k] * -costs(row, k, reward[k], policy[k], cap) for k in range(3))
    cut = np.maximum(own - cap * policy, 0)
    assert estimate == pytest.approx(own @ reward - cut @ reward, abs=1e-9)


@given(st.lists(st.tuples(st.floats(0.01, 10), st.floats(-1, 1)), min_size=2, max_size=9))
def test_the_self_normalised_form_is_its_definition(pairs: list[tuple[float, float]]) -> None:
    weights, reward = (np.array(each) for each in zip(*pairs, strict=True))
    found = summarise(weights, reward)
    assert found.reward == pytest.approx(np.mean(weights * reward))
    assert found.normalised == pytest.approx((weights @ reward) / weights.sum())
    off = weights * (reward - found.normalised)
    assert found.normalised_variance == pytest.approx((off @ off) / weights.sum() ** 2)
    assert 1 - 1e-9 <= found.effective <= len(pairs) + 1e-9
    shifted = summarise(weights, reward + 0.5)
    assert shifted.normalised == pytest.approx(found.normalised + 0.5), "which the other form does not do"


def test_what_objectives_are(bundle: Bundle) -> None:
    outputs = Outputs(np.array([0.1, 0.2]), np.array([[2, 0, 0], [0, 0, 2]], np.float32))
    known = Known(np.array([0, 1]), None)
    task = bundle.manifest.task
    right = softmax([2, 0, 0])
    assert find_measure(None, task)(outputs, known).tolist() == [0.1, 0.2]
    assert find_measure(Objective("error", 1, 1), task)(outputs, known).tolist() == [0, 1]
    expected = find_measure(Objective("expected-error", 1, 1), task)(outputs, known)
    assert expected == pytest.approx([1 - right[0], 1 - right[1]])
    assert find_measure(Objective("reward", 1, 2), task)(outputs, known) == pytest.approx(
        [-2 * right[0], -2 * right[1]]
    )
    generated = Outputs(np.array([0.5]), np.zeros((1, 0), np.float32))
    shown = Known(np.array([0]), Feedback(np.array([0]), np.array([-1.0]), np.array([1.0])))
    assert find_measure(REWARD, task)(generated, shown) == pytest.approx([math.exp(-0.5)])
    with raises("plan.unknown-objective"):
        find_measure(Objective("other:none", 1, 1), task)


def test_an_objective_of_ones_own_is_installed_and_never_sent(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    outputs, known = Outputs(np.ones(2), np.zeros((2, 3), np.float32)), Known(np.zeros(2, np.int32), None)
    task = bundle.manifest.task
    with raises("plan.no-own-objective", "install"):
        find_measure(Objective("own:none", 1, 1), task)
    point = EntryPoint("ones", "numpy:ones_like", objectives.GROUP)
    monkeypatch.setattr(objectives, "entry_points", lambda **wanted: [point] if wanted["name"] == "ones" else [])
    monkeypatch.setattr(EntryPoint, "load", lambda self: lambda outputs, known: np.full(2, 3.0))
    assert find_measure(Objective("own:ones", 1, 1), task)(outputs, known).tolist() == [3, 3]
    monkeypatch.setattr(EntryPoint, "load", lambda self: lambda outputs, known: np.ones(3))
    objectives._find_own.cache_clear()
    with raises("plan.own-objective"):
        find_measure(Objective("own:ones", 1, 1), task)(outputs, known)
    objectives._find_own.cache_clear()


@pytest.mark.parametrize("sides", [1, 2])
def test_labels_are_not_read(forward: Forward[Replica], reacted: DataStore, make_plan: MakePlan, sides: int) -> None:
    """Nonsense in place of the labels gives the same scalars, but for the examples that say that they have labels."""
    plan = make_plan(objective=(replace(REWARD, label_weight=0.0),), sides=sides)
    found = measure(forward, reacted, plan, "a")
    nonsense = replace(reacted, labels=(reacted.labels + 1) % 3)
    assert measure(forward, nonsense, plan, "a") == found
    assert measure(forward, nonsense, make_plan(objective=(REWARD,), sides=sides), "a") != found
    assert np.count_nonzero(found.scalars) == len(found.scalars)
    other = Feedback(reacted.feedback.shown, -reacted.feedback.rewards, reacted.feedback.probabilities)
    turned = measure(forward, replace(reacted, feedback=other), plan, "a")
    assert turned.scalars == pytest.approx([-scalar for scalar in found.scalars], rel=1e-6)


def test_the_loss_is_what_it_was(forward: Forward[Replica], store: DataStore, make_plan: MakePlan) -> None:
    plan = make_plan()
    assert not plan.objective
    expected = measure(forward, store, make_plan(objective=(Objective("expected-error", 1, 1),)), "a")
    assert measure(forward, store, plan, "a") != expected
    coarse = measure(forward, store, make_plan(objective=(Objective("error", 1, 1),)), "a")
    assert 0 <= coarse.loss <= 1
    sent = [len(encode(make_plan(objective=each))) for each in ((), (REWARD,))]
    assert sent[0] < sent[1]


def test_reactions_and_the_loss_do_not_go_together(
    forward: Forward[Replica], reacted: DataStore, make_plan: MakePlan
) -> None:
    for objective in ((), (Objective("error", 1, 1),)):
        with raises("plan.feedback-has-no-labels", "reward"):
            measure(forward, reacted, make_plan(objective=objective), "a")
    with raises("data.feedback-is-no-label"):
        evaluate(forward, reacted)
    assert estimate_reward(forward, reacted).examples == 16


def test_feedback_files(bundle: Bundle, tmp_path: Path) -> None:
    file = tmp_path / "feedback.jsonl"
    lines = [
        {"text": "wake me", "shown": "alarm", "reward": 1},
        {"prompt": "play a song", "shown": "music", "reward": -0.5, "probability": 0.25, "scores": {}, "round": 3},
        {"text": "call mum", "shown": "alarm", "corrected": "call"},
        {"text": "call mum", "label": "call"},
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    names = [label.name for label in bundle.manifest.task.labels]
    for _ in range(2):  # the second time from the cache
        found = load_data(file, bundle, tmp_path / "cache.npz")
        assert found.feedback is not None
        shown = [names[k] if k >= 0 else None for k in found.feedback.shown]
        assert shown == ["alarm", "music", "alarm", None, None]
        assert found.feedback.rewards[:3].tolist() == [1, -0.5, -1]
        assert found.feedback.probabilities.tolist() == [1, 0.25, 1, 1, 1]
        assert [names[k] for k in found.labels[3:]] == ["call", "call"], "a correction is a label, too"
        assert found.labels[:3].tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ({"shown": "alarm"}, "data.no-reward"),
        ({"shown": "alarm", "reward": 2}, "data.out-of-range"),
        ({"shown": "alarm", "reward": True}, "data.out-of-range"),
        ({"shown": "alarm", "reward": 1, "probability": 0}, "data.out-of-range"),
        ({"shown": "alarm", "corrected": "alarm"}, "data.correction"),
        ({"shown": 3, "reward": 1}, "data.not-text"),
        ({"shown": "dance", "reward": 1}, "data.unknown-label"),
    ],
)
def test_wrong_lines(bundle: Bundle, tmp_path: Path, line: dict[str, object], kind: str) -> None:
    file = tmp_path / "feedback.jsonl"
    file.write_text(json.dumps({"text": "call mum", **line}) + "\n")
    with raises(kind, "line 1"):
        load_data(file, bundle)


def test_a_reaction_without_a_field_names_what_it_has(bundle: Bundle) -> None:
    with raises("data.missing-field", "'text' is missing", "the record has 'words', 'shown', 'reward'"):
        parse_record({"words": "call mum", "shown": "call", "reward": 1}, bundle.manifest.task)


def test_simulated_devices_leave_reactions_out_as_real_ones_do(bundle: Bundle, tmp_path: Path) -> None:
    """A file, and a folder with a file for each device, of which one that has no label is named."""
    corrections = [{"text": "call mum", "shown": "alarm", "corrected": "call"}] * 4
    reactions = [{"text": "wake me", "shown": "alarm", "reward": 1}] * 4
    for place, lines in (("mixed.jsonl", corrections + reactions), ("alone.jsonl", reactions)):
        (tmp_path / place).write_text("".join(json.dumps(line) + "\n" for line in lines))
    job = Job(rounds=1, cohort=2)
    assert len(simulate(bundle, tmp_path / "mixed.jsonl", job, devices=2, partition="iid").rounds) == 1
    for objective, count in ((None, 4), (REWARD, 12)):
        shares = Partition(tmp_path / "mixed.jsonl", 2, Skew.parse("iid"), None, 1, objective)(bundle)
        assert sum(len(shares.of(device)) for device in shares.devices) == count
    with raises("plan.feedback-has-no-labels", "alone.jsonl", "objective = reward"):
        simulate(bundle, tmp_path, job)
    with raises("data.feedback-is-no-label"):
        simulate(bundle, tmp_path / "mixed.jsonl", job, devices=2, held_out=tmp_path / "mixed.jsonl")


@given(shares, st.floats(0, 1), st.integers(0, 99))
def test_what_is_shown_has_its_probability(row: np.ndarray, explore: float, seed: int) -> None:
    scores = {str(k): float(row[k]) for k in np.argsort(-row)}
    found = suggest(scores, 7, explore, seed)
    likeliest = found.shown == next(iter(scores))
    assert found.probability == pytest.approx(explore / 3 + (1 - explore) * likeliest)
    record = found.record({"text": "a"}, 1.0)
    assert record["round"] == 7
    assert record["probability"] == found.probability > 0


def test_predict_writes_reactions_down(
    bundle_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "own" / "feedback.jsonl"
    file.parent.mkdir()
    ask = ["predict", str(bundle_folder), "call mum", "--record", str(file)]
    for said in ("y\n", "No\n", "\n", "dance\n"):
        monkeypatch.setattr("sys.stdin", io.StringIO(said))
        assert main(ask) == (1 if said == "dance\n" else 0)
    records = [json.loads(line) for line in file.read_text().splitlines()]
    assert [record["reward"] for record in records] == [1, -1], "nothing of a person who says nothing, or nonsense"
    assert records[0]["round"] == 0
    assert file.stat().st_mode & 0o077 == 0
    assert main(["predict", str(bundle_folder), "call mum", "--explore", "0.1"]) == 1
    assert load_data(file, Bundle(bundle_folder)).feedback is not None


def test_an_empty_answer_is_corrected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It cannot be accepted or rejected; what a person says is right is an example."""
    task = Task("answers", "generation", "{text}", answer=" {answer}\n", target="answer", answer_tokens=5)
    options = argparse.Namespace(record=tmp_path / "own.jsonl", text=["call mum"])
    for said in ("y\n", "n\n", "\n", "calling mum\n"):
        monkeypatch.setattr("sys.stdin", io.StringIO(said))
        _record(options, task, Suggestion("", 1.0, {}, 3))
    (line,) = options.record.read_text().splitlines()
    (example,) = parse_record(json.loads(line), task)
    assert (example.answers, example.reaction) == (("calling mum",), None)


def test_jobs_name_an_objective(bundle: Bundle) -> None:
    job = check_job(Job(objective="reward", reward_cap=2, guard=0.5), bundle)
    assert plan_round(job, 1).objective == (Objective("reward", 2.0, 1.0),)
    assert plan_round(check_job(Job(), bundle), 1).objective == ()
    finer, coarser = (check_job(Job(objective=name), bundle).scales[-1] for name in ("expected-error", "error"))
    assert coarser == pytest.approx(8 * finer, rel=1e-2), "0 and 1 hardly change under a small perturbation"
    for values, kind in (
        ({"objective": "joy"}, "job.unknown-objective"),
        ({"objective": "own:a b"}, "plan.objective"),
        ({"guard": 1.0}, "job.guard-of-loss"),
        ({"reward_cap": 3.0}, "job.reward-settings"),
    ):
        with raises(kind):
            Job(**values)  # type: ignore[arg-type]


def test_devices_that_are_too_old_are_not_asked() -> None:
    members = [Member(name, name.encode()) for name in ("old", "new")]
    for member, can in zip(members, ((), (OBJECTIVES,)), strict=True):
        accept(member, Sync(member.key, 1, b"", 0, b"", 1, 1.0, True, True, "1", can))
    roster, needs = Roster(iter(members)), frozenset((OBJECTIVES,))
    assert (set(roster.ready(1.0)), set(roster.ready(1.0, needs))) == ({"old", "new"}, {"new"})
    assert (roster.count_ready(1.0), roster.count_ready(1.0, needs), roster.too_old(1.0, needs)) == (2, 1, ["old"])


@pytest.mark.parametrize(
    ("losses", "costs", "breach"),
    [
        ((1.0, 0.8, 1.3), (-0.1, -0.3), 2),
        ((1.0, 0.8, 1.1), (-0.1, -0.3), None),  # within the bound
        ((1.0, 0.8, 1.3), (-0.3, -0.1), None),  # the reward falls, too: that is no hacking
        ((1.0, 1.6, 1.7), (-0.1, -0.3), 2),  # from the start
        ((1.0, math.nan, math.nan), (-0.1, -0.3), 2),
    ],
)
def test_the_guard(losses: tuple[float, ...], costs: tuple[float, ...], breach: int | None) -> None:
    from fedspzo.device_runtime.step.scores import Evaluation

    found = {round: Evaluation(loss, {}, 1) for round, loss in enumerate(losses)}
    assert find_breach(found, dict(enumerate(costs, 1)), 0.5) == breach
    assert find_breach(found, dict(enumerate(costs, 1)), 0.0) is None


def test_a_reward_that_can_be_hacked_is_stopped(
    bundle: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever shows 'music' is rewarded, whatever was meant; the held-out examples say what is right."""
    texts = [("wake me at six", "alarm"), ("play a song", "music"), ("call mum", "call")]
    data, held_out = tmp_path / "data", tmp_path / "held-out.jsonl"
    data.mkdir()
    hacked = [{"text": text, "shown": "music", "reward": 1} for text, _ in texts]
    for name in ("a", "b", "c", "d"):
        (data / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in hacked))
    held_out.write_text("".join(json.dumps({"text": t, "label": label}) + "\n" for t, label in texts))
    job = Job(rounds=40, cohort=4, objective="reward", guard=0.2)
    ended = simulate(bundle, data, job, held_out=held_out, evaluate_every=2, state=tmp_path / "state")
    last = len(ended.rounds)
    assert last < 40
    assert ended.rounds[-1].loss < ended.rounds[0].loss, "the reward rose"
    assert "the guard ends the job" in caplog.text
    again = simulate(bundle, data, job, held_out=held_out, evaluate_every=2, state=tmp_path / "state")
    assert not again.rounds, "a job that was stopped stays so"
    assert again.result.digest == ended.result.digest


@pytest.mark.parametrize("mode", ["robust", "groups", "secure"])
def test_every_trust_mode_learns_from_feedback(bundle: Bundle, tmp_path: Path, mode: str) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for number in range(12):
        line = {"text": "wake me at six", "shown": "music", "reward": -1 if number % 2 else 1}
        (data / f"{number:02d}.jsonl").write_text(json.dumps(line) + "\n")
    job = Job(rounds=1, cohort=12, mode=mode, objective="reward")
    (closed,) = simulate(bundle, data, job).rounds
    assert len(closed.devices) == 12
    assert closed.loss == pytest.approx(0, abs=1e-2), "as many accept as reject"


def test_a_result_is_as_large_as_before(forward: Forward[Replica], reacted: DataStore, make_plan: MakePlan) -> None:
    """Scalars, the mean cost and counts are all that it has room for."""
    plan = make_plan(objective=(REWARD,))
    found = measure(forward, reacted, plan, "a")
    result = Result(1, fingerprint(plan), found.scalars, found.loss, found.examples, 0.1, bytes(16))
    assert len(encode(result)) + SIGNATURE_BYTES <= 128 + 4 * plan.scalars


def test_a_declined_plan_tells_no_words_of_the_data(bundle: Bundle, tmp_path: Path, make_plan: MakePlan) -> None:
    """A device's right answers may be no patterns; the server learns that something is wrong, and not what."""

    def examples() -> DataStore:
        raise DataError("data.pattern", "'my secret (' is no regular expression")

    measurer = Measurer(create_engine("litert"), DeviceState(tmp_path / "state", bundle, "device"), examples)
    found = measurer.answer(make_plan())
    assert isinstance(found, Decline)
    assert "secret" not in found.reason


def test_a_device_leaves_reactions_out_where_labels_are_needed(
    bundle: Bundle, reacted: DataStore, tmp_path: Path, make_plan: MakePlan
) -> None:
    """Of its own examples; it declines where none has a label, and keeps the reason for its owner."""
    state, mine = DeviceState(tmp_path / "state", bundle, "device"), [reacted]
    measurer = Measurer(create_engine("litert"), state, lambda: mine[-1])
    whole = replace(subset(reacted, np.arange(0, 20, 5)), feedback=None)
    plan = make_plan()
    found = measurer.answer(plan)
    assert isinstance(found, Result)
    assert found.scalars == measure(measurer.forward, whole, plan, "device").scalars
    mine.append(subset(reacted, np.arange(1, 5)))
    declined = measurer.answer(make_plan(base_seed=8))
    assert isinstance(declined, Decline)
    assert "give some with labels or corrections" in measurer.why
    assert isinstance(measurer.answer(make_plan(base_seed=8, objective=(REWARD,))), Result)


def test_a_persons_function_that_fails_is_a_clear_refusal(
    forward: Forward[Replica], reacted: DataStore, make_plan: MakePlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    def own(outputs: Outputs, known: Known) -> np.ndarray:
        raise ValueError("my secret")

    point = EntryPoint("mine", "test:own", objectives.GROUP)
    monkeypatch.setattr(EntryPoint, "load", lambda self: own)
    monkeypatch.setattr(objectives, "entry_points", lambda **_: [point])
    objectives._find_own.cache_clear()
    with pytest.raises(PlanError, match="ValueError") as caught:
        measure(forward, reacted, make_plan(objective=(Objective("own:mine", 1.0, 1.0),)), "device")
    assert caught.value.kind == "plan.own-failed"
    assert "secret" not in str(caught.value)
    objectives._find_own.cache_clear()


def test_counts_of_errors_accuse_nobody_and_stop_no_group(make_plan: MakePlan) -> None:
    """One example that changed is far larger than many that did not; noise is larger than any."""
    plan = make_plan(objective=(Objective("error", 1.0, 1.0),), sides=1, epsilon=1e-3)
    quiet, loud = np.zeros(plan.scalars), np.zeros(plan.scalars)
    loud[1] = 125.0
    vectors = [quiet, quiet, quiet, loud]
    results = {f"d{n}": Result(1, b"", tuple(v.tolist()), 0.5, 8, 0.1, b"") for n, v in enumerate(vectors)}
    assert not any(found.large for found in examine(plan, results).values())
    assert np.any(RULES_OF_GROUPS["clipped-mean"](np.array(vectors), np.full(4, 0.25)))
    assert np.any(RULES["clipped-mean"](np.array(vectors), np.full(4, 0.25)))
    hostile = replace(results["d3"], scalars=tuple(5000.0 for _ in loud))
    assert examine(plan, {**results, "d3": hostile})["d3"].large
    noisy = replace(plan, noise=(Noise("device", 100.0, 1 << 15, 9, 1),))
    loud_everywhere = {name: replace(result, scalars=hostile.scalars) for name, result in results.items()}
    assert not any(found.large for found in examine(noisy, loud_everywhere).values())


@pytest.mark.parametrize(
    ("record", "kind"),
    [
        ({"text": "wake me", "label": "alarm", "shown": "music", "reward": 1}, "data.label-and-reaction"),
        ({"text": "wake me", "shown": "music", "reward": 1, "probability": 1e-60}, "data.out-of-range"),
        ({"text": "wake me", "shown": "music", "reward": "much"}, "data.out-of-range"),
    ],
)
def test_records_that_say_too_much_or_too_little(record: dict[str, object], kind: str) -> None:
    with raises(kind, ""):
        parse_record(record, TASK)


def test_reactions_in_tables() -> None:
    """Cells are texts there, and empty ones say nothing."""
    shown, label = parse_record({"text": "wake me", "shown": "music", "reward": "-1", "corrected": "alarm"}, TASK)
    assert shown.reaction is not None
    assert shown.reaction.reward == -1
    assert label.reaction is None
    (plain,) = parse_record({"text": "wake me", "label": "alarm", "shown": "", "reward": ""}, TASK)
    assert plain.reaction is None
    (empty,) = parse_record({"text": "", "shown": "music", "reward": "-1", "corrected": ""}, TASK)
    assert empty.fields == {"text": ""}, "which is a text, as in an example with a label"


def test_reactions_are_no_held_out_examples(bundle: Bundle, reacted: DataStore, tmp_path: Path) -> None:
    with raises("data.feedback-is-no-label", "all have labels"):
        Server(bundle, Job(rounds=1), None, tmp_path / "server", held_out=reacted)  # type: ignore[arg-type]
