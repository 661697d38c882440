"""Standard errors beside what is estimated: of rounds, of sums of groups, of evaluations and of rewards."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fedspzo
from fedspzo.broker.rounds.aggregate import describe_round
from fedspzo.broker.rounds.groups import describe_sums, sum_results
from fedspzo.broker.rounds.job import Job, check_job, plan_round
from fedspzo.broker.server.evaluation import Evaluated
from fedspzo.cli import main
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.privacy.words import unpack
from fedspzo.device_runtime.protocol.codec import fingerprint
from fedspzo.device_runtime.protocol.messages import Result
from fedspzo.device_runtime.protocol.plan import Plan
from fedspzo.device_runtime.step.spread import standard_error

Values = st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=20)


@given(Values)
def test_it_is_that_of_a_mean(values: list[float]) -> None:
    expected = np.std(values, ddof=1) / math.sqrt(len(values))
    assert standard_error(values) == pytest.approx(expected, abs=1e-9)
    assert standard_error(values, [1 / len(values)] * len(values)) == pytest.approx(expected, abs=1e-9)


@given(Values, st.floats(-1e3, 1e3), st.floats(0.1, 10))
def test_it_follows_units_and_no_origin(values: list[float], origin: float, unit: float) -> None:
    plain = standard_error(values)
    moved = standard_error([origin + unit * value for value in values])
    assert plain is not None
    assert moved == pytest.approx(unit * plain, rel=1e-6, abs=1e-6)


def test_it_is_not_known_of_one_or_of_what_is_no_number() -> None:
    assert standard_error([]) is standard_error([1.0]) is standard_error([1.0, math.nan]) is None


def test_it_covers_what_it_is_of() -> None:
    """The mean square of a weighted mean's distance from what it estimates is that of its standard error."""
    rng = np.random.default_rng(0)
    shares = np.array([0.3, 0.2, 0.2, 0.15, 0.15])
    draws = rng.normal(size=(4_000, 5))
    errors = [standard_error(draw, shares.tolist()) for draw in draws]
    assert np.mean(np.square(errors)) == pytest.approx(np.mean((draws @ shares) ** 2), rel=0.1)  # type: ignore[arg-type]


def test_rounds_say_it_and_one_sum_does_not(make_plan: Callable[..., Plan], bundle: Bundle) -> None:
    job = check_job(Job(cohort=12), bundle)
    losses = dict(zip("abcdefghijkl", np.linspace(0.5, 1.6, 12).tolist(), strict=True))

    def answers(plan: Plan) -> dict[str, Result]:
        scalars = (0.5,) * plan.scalars
        return {d: Result(1, fingerprint(plan), scalars, loss, 4, 0.1, b"") for d, loss in losses.items()}

    plan = make_plan()
    closed = describe_round(plan, answers(plan), 1.0)
    assert closed.loss_uncertainty == pytest.approx(np.std(list(losses.values()), ddof=1) / math.sqrt(12))
    assert describe_round(plan, {"a": answers(plan)["a"]}, 1.0).loss_uncertainty is None
    for mode, groups in (("groups", ["abcd", "efgh", "ijkl"]), ("secure", ["abcdefghijkl"])):
        masked = plan_round(replace(job, mode=mode), 1)
        results = answers(masked)
        totals = [unpack(masked, sum_results(masked, results, group)) for group in groups]
        summed = describe_sums(masked, totals, losses, 1.0)
        assert summed.loss == pytest.approx(np.mean(list(losses.values())), abs=1e-4)
        means = [np.mean([losses[name] for name in group]) for group in groups]
        expected = np.std(means, ddof=1) / math.sqrt(3) if len(groups) > 1 else None
        assert summed.loss_uncertainty == (expected and pytest.approx(expected, abs=1e-4))


def test_evaluations_say_it(bundle: Bundle, tmp_path: Path, write_examples: Callable[[Path, int], Path]) -> None:
    found = fedspzo.evaluate(bundle, write_examples(tmp_path / "d.jsonl", 9))
    assert found.loss_uncertainty is not None
    assert 0 < found.loss_uncertainty < found.loss
    assert Evaluated(3, found).record()["loss_uncertainty"] == found.loss_uncertainty
    assert "loss_uncertainty" not in Evaluated(3, replace(found, loss_uncertainty=None)).record()


def test_reactions_are_evaluated(bundle_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "reactions.jsonl"
    lines = [{"text": f"call mum {n * 'now '}", "shown": "call", "reward": n % 2, "probability": 0.5} for n in range(6)]
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert main(["evaluate", str(bundle_folder), "--data", str(data), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    expected = fedspzo.estimate_reward(bundle_folder, data)
    assert found["before"]["reward"] == expected.reward
    assert found["before"]["reward_uncertainty"] == pytest.approx(math.sqrt(expected.variance))
    assert main(["evaluate", str(bundle_folder), "--data", str(data)]) == 0
    assert capsys.readouterr().out.startswith(f"before: estimated reward {expected.reward:.4f} (standard error ")
    data.write_text(json.dumps(lines[1]) + "\n")
    assert main(["evaluate", str(bundle_folder), "--data", str(data), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["before"]["reward_uncertainty"] is None, "one shows no spread"
    assert main(["evaluate", str(bundle_folder), "--data", str(data)]) == 0
    assert "(standard error unknown)" in capsys.readouterr().out


def test_labels_beside_reactions_are_evaluated_too(
    bundle_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A correction is a reaction and a label."""
    both, alone = tmp_path / "both.jsonl", tmp_path / "labels.jsonl"
    right = [{"text": "call mum", "label": "call"}, {"text": "play a song", "label": "music"}]
    reacted = [
        {"text": "wake me", "shown": "alarm", "reward": 1},
        {"text": "play a song", "shown": "alarm", "corrected": "music"},
    ]
    both.write_text("".join(json.dumps(line) + "\n" for line in (right[0], *reacted)))
    alone.write_text("".join(json.dumps(line) + "\n" for line in right))
    assert main(["evaluate", str(bundle_folder), "--data", str(both), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    expected = fedspzo.evaluate(bundle_folder, alone)
    assert (found["examples"], found["reactions"]) == (2, 2)
    assert found["before"]["loss"] == pytest.approx(expected.loss)
    assert found["before"]["accuracy"] == expected.scores["accuracy"]
    assert found["before"]["reward"] == fedspzo.estimate_reward(bundle_folder, both).reward
    assert main(["evaluate", str(bundle_folder), "--data", str(both)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert [line.split(" ")[1] for line in said[:2]] == ["estimated", "loss"]
    assert said[2] == "2 reactions and 2 labels, corrections included"


def test_a_simulation_reports_it(
    bundle_folder: Path, tmp_path: Path, write_examples: Callable[[Path, int], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    data = str(write_examples(tmp_path / "d.jsonl", 12))
    given = ["--data", data, "--held-out", data, "--devices", "3", "--cohort", "2", "--rounds", "1", "--json"]
    assert main(["simulate", str(bundle_folder), *given, "--state", str(tmp_path / "state")]) == 0
    before, closed, *_ = map(json.loads, capsys.readouterr().out.splitlines())
    assert before["held_out_loss_uncertainty"] > 0
    assert closed["loss_uncertainty"] >= 0
